"""Scripts for what `load` found: what was asked for against what is effective, and the weights themselves.

In: the load check. Out: a `Body` that looks at exactly what was found wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compat.axes import ATTENTION, DTYPES
from compat.axes.attention import KERNEL_KINDS, kernel_kind
from compat.records import Check
from compat.reproduce.body import Body, Name

_MAIN = '''
def main() -> bool:
    """Load as a user does, and look at what EXPECTED names."""
    where = checkpoint()
    shows = False

    def seen(what: str, found: Any, wrong: bool) -> None:
        nonlocal shows
        shows = shows or wrong
        print(f"  {what}: asked for {EXPECTED[what]}, found {found}{' <- the defect' if wrong else ''}")

    if "switch" in EXPECTED:
        model = load(where, "eager")
        model.set_attn_implementation(EXPECTED["switch"])
        named, kinds = model.config._attn_implementation, kernels(model)
        seen("switch", f"{named}, kernels {sorted(kinds)}", named != EXPECTED["switch"] or not kinds & set(WANTED))
    model = candidate(where)
    if "attention" in EXPECTED:
        named = model.config._attn_implementation
        seen("attention", named, named != EXPECTED["attention"])
    if "kernels" in EXPECTED:
        kinds = kernels(model)
        seen("kernels", sorted(kinds), not kinds or not kinds <= set(EXPECTED["kernels"]))
    if "dtype" in EXPECTED:
        dtypes = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
        seen("dtype", sorted(dtypes), EXPECTED["dtype"] not in dtypes)
    if "eval mode" in EXPECTED:
        seen("eval mode", not model.training, model.training)
    master = master_of(where)
    if "quantized share" in EXPECTED:
        meant = quantizable_parameters(master)
        done = sum(n for path, n in meant.items() if path.removesuffix(".weight") in quantized_modules(model))
        share = done / sum(meant.values())
        seen("quantized share", f"{share:.3f}", share < EXPECTED["quantized share"])
    if "weights differing" in EXPECTED:
        stored = dict(master.named_parameters())
        pairs = [(n, p, stored[n].to(p.dtype)) for n, p in model.named_parameters()
                 if n in stored and p.dtype.is_floating_point and stored[n].shape == p.shape]
        names = [n for n, p, own in pairs if not torch.equal(p.cpu(), own)]
        seen("weights differing", names[:6], bool(names))
    if "offload difference" in EXPECTED:
        apart = max(offloaded(where).values())
        seen("offload difference", f"{apart:.4g} eps rms(output)", apart > EXPECTED["offload difference"])
    return shows


def offloaded(where: Checkpoint) -> dict[str, float]:
    """How far the output is from that of the same weights fetched from the host, and from the disk, in eps rms(output);
    named are parameters that come back in another dtype."""
    import accelerate

    def answer(network: Any) -> torch.Tensor:
        with torch.no_grad():
            return output_of(network(**inputs_of(network)), TASK).cpu()

    model = load(where, "eager")
    own = answer(model)
    unit = torch.finfo(own.dtype).eps * float(own.double().square().mean().sqrt())
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    memory = {0: int(0.7 * total), "cpu": 0} if DEVICE.type == "cuda" else {"cpu": int(0.7 * total)}
    arguments = {**where.arguments, **dtype_argument(DTYPE), "attn_implementation": "eager", "device_map": "auto"}
    disk = auto_class(TASK).from_pretrained(
        where.location, **arguments, max_memory=memory, offload_folder=str(temporary())
    ).eval()
    dtypes = {n: p.dtype for n, p in model.named_parameters()}
    print("  from the disk in another dtype:", [n for n, p in disk.named_parameters() if p.dtype != dtypes.get(n)][:4])
    found = {"disk": disk, "host": accelerate.cpu_offload(load(where, "eager"), execution_device=DEVICE)}
    apart = {}
    for way, network in found.items():
        other = answer(network)
        whole = other.shape == own.shape and other.dtype == own.dtype and bool(torch.isfinite(other).all())
        apart[way] = float((other.double() - own.double()).abs().max()) / unit if whole else float("inf")
        print(f"  from the {way}: {apart[way]:.4g} eps rms(output)")
    return apart


def inputs_of(model: Any) -> dict[str, Any]:
    """Two rows without a mask, or two images or sounds."""
    if TASK in CLASSIFYING:
        return unpadded(Rows(images=torch.randn(2, *sample_shape(model.config))), DEVICE, DTYPE)
    inputs: dict[str, Any] = {"input_ids": torch.arange(5, 38, device=DEVICE)[None].repeat(2, 1)}
    if TASK == "seq2seq-lm":
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :17]
    return inputs


def kernels(model: Any) -> set[str]:
    """The kinds of attention kernel that one forward runs."""
    with kernels_seen(IMPLEMENTATION) as names:
        run(model, **inputs_of(model))
    return {kind for name in names if (kind := next((k for part, k in KINDS if part in name), None))}
'''

NEEDS: tuple[Name, ...] = (
    ("dispatch", "kernels_seen"),
    ("load", "quantizable_parameters"),
    ("load", "quantized_modules"),
    ("inputs", "CLASSIFYING"),
    ("inputs", "Rows"),
    ("inputs", "sample_shape"),
    ("inputs", "unpadded"),
)


def loading(check: Check, axes: Mapping[str, str]) -> Body | None:
    """The body for a `load` check with findings; None where nothing of them can be looked at."""
    expected = dict(_expected(check, axes))
    if not expected:
        return None
    wanted = sorted(ATTENTION[axes["attention"]].kinds)
    return Body(_MAIN, {"EXPECTED": expected, "KINDS": [list(k) for k in KERNEL_KINDS], "WANTED": wanted}, NEEDS)


def _expected(check: Check, axes: Mapping[str, str]) -> list[tuple[str, Any]]:
    facts = check.evidence.facts
    found: list[tuple[str, Any]] = []
    asked = ATTENTION[axes["attention"]]
    if str(facts.get("switch", "")).startswith(("ignored", "said")):
        found.append(("switch", asked.implementation))
    if not asked.convert and facts.get("attention", asked.implementation) != asked.implementation:
        found.append(("attention", asked.implementation))
    kinds = {kind for name in check.evidence.kernels if (kind := kernel_kind(name))}
    if kinds and not kinds <= asked.kinds:
        found.append(("kernels", sorted(asked.kinds)))
    dtype, shares = DTYPES[axes["dtype"]].torch_name, facts.get("dtype_shares", {})
    if shares and dtype not in shares:
        found.append(("dtype", dtype))
    if facts.get("training"):
        found.append(("eval mode", True))
    broken = check.evidence.minimal.get("bounds", {})
    bounds = {
        "quantized_share": ("quantized share", 0.85),
        "weights_differing": ("weights differing", 0),
        "offload_difference": ("offload difference", broken.get("offload_difference", 0)),
    }
    return found + [named for measurement, named in bounds.items() if measurement in check.reason]
