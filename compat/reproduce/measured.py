"""Scripts for checks that look at one thing alone: quantized linears, a training step, kernels by path, bytes held.

In: a check, and the bounds that it breaks (`evidence.minimal["bounds"]`). Out: a `Body` that measures the same figures;
None where it broke a bound on a figure that no script here measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compat.axes import ATTENTION
from compat.axes.attention import KERNEL_KINDS
from compat.records import Check
from compat.reproduce.body import Body, Name

PLAIN: tuple[Name, ...] = (
    ("inputs", "CLASSIFYING"),
    ("inputs", "Rows"),
    ("inputs", "sample_shape"),
    ("inputs", "unpadded"),
)
"""What `plain_inputs` needs of our files."""

BOUNDED = '''
def beyond(values: dict[str, float]) -> bool:
    """Print the figures; whether one breaks its bound. NaN does."""
    broken = False
    for name, value in values.items():
        bound = BOUNDS.get(name)
        higher = name.endswith("_db")  # a higher one is better
        wrong = bound is not None and not (value >= bound if higher else value <= bound)
        told = "" if bound is None else f", pass {'>=' if higher else '<='} {bound:g}"
        print(f"  {name} {value:.4g}{told}{' <- the defect' if wrong else ''}")
        broken = broken or wrong
    return broken


def tokens(length: int, seed: int) -> list[int]:
    """Token ids without the special ones."""
    vocabulary = ROW.get("config", {}).get("vocab_size", 1000)
    return torch.randint(5, vocabulary, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def plain_inputs(model: Any) -> dict[str, Any]:
    """Two rows without a mask, or two images or sounds."""
    if TASK in CLASSIFYING:
        drawn = torch.randn((2, *sample_shape(model.config)), generator=torch.Generator().manual_seed(0))
        return unpadded(Rows(images=drawn), DEVICE, DTYPE)
    ids = torch.tensor([tokens(41, 0), tokens(41, 1)], device=DEVICE)
    return {"input_ids": ids, **({"decoder_input_ids": ids[:, :17]} if TASK == "seq2seq-lm" else {})}
'''

_QUALITY = '''
def dequantize_error(module: Any, weight: torch.Tensor) -> float:
    """What the library makes of the codes, in eps of its dtype times the largest weight; where it raises or has another
    shape, as if it were off by the largest weight."""
    try:
        theirs = dequantized_by_library(module).cpu()
    except Exception as error:
        print(f"  dequantizing raised {type(error).__name__}: {error}")
        return 1 / torch.finfo(torch.float32).eps
    if theirs.shape != weight.shape:
        return 1 / torch.finfo(theirs.dtype).eps
    return float((theirs.double() - weight).abs().max()) / (torch.finfo(theirs.dtype).eps * float(weight.abs().max()))


def main() -> bool:
    """Every quantized linear: its codes against the checkpoint's weight, and its product against fp64."""
    where = checkpoint()
    model = candidate(where)
    master = master_of(where)
    held = {path: stored(module) for path, module in quantized_modules(model).items()}
    weights = {path: dequantize(own).cpu() for path, own in held.items()}  # before a first forward repacks the codes
    seen: dict[str, Any] = {}

    def note(path: str) -> Any:
        def hook(_: Any, inputs: Any, output: Any) -> None:
            seen.setdefault(path, (inputs[0].detach().clone(), output.detach().clone()))

        return hook

    for path, module in quantized_modules(model).items():
        module.register_forward_hook(note(path))
    marks, errors = [], []
    threshold = float(QUANTIZATION["arguments"].get("llm_int8_threshold", THRESHOLD))
    for path, own in held.items():
        linear = master.get_submodule(path)
        weight = linear.weight.detach()
        weight = weight.t().contiguous() if type(linear).__name__ == "Conv1D" else weight
        marks.append(figures(own, weights[path], weight.to(DTYPE).float(), weight))
    run(model, **plain_inputs(model))
    for path, (x, y) in seen.items():
        bias = getattr(master.get_submodule(path), "bias", None)
        flat = x.reshape(-1, x.shape[-1]).cpu()
        more = 0.0 if bias is None else bias.detach().to(DTYPE).double()
        exact = flat.double() @ weights[path].double().t() + more
        lossy = lossy_product(flat, held[path], threshold)
        int8 = None if lossy is None else lossy + more
        errors.append(error_of(y.reshape(exact.shape).cpu(), exact, DTYPE, int8))
    training, gradients, dequantized = [], [], []
    for path, module in quantized_modules(load(where, "eager")).items():  # no forward has repacked these
        if path not in seen:
            continue
        weight = weights[path].double()
        dequantized.append(dequantize_error(module, weight))
        bias = getattr(master.get_submodule(path), "bias", None)
        more = 0.0 if bias is None else bias.detach().to(DTYPE).double()
        x = seen[path][0].reshape(-1, weight.shape[1]).clone().requires_grad_()
        y = module(x)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, DTYPE)
        (dx,) = torch.autograd.grad(y, x, dy)
        flat = x.detach().cpu()
        lossy = lossy_product(flat, held[path], threshold)
        int8 = None if lossy is None else lossy + more
        training.append(error_of(y.detach().cpu(), flat.double() @ weight.t() + more, DTYPE, int8))
        gradients.append(error_of(dx.cpu(), dy.cpu().double() @ weight, DTYPE))
    return beyond({
        "codes_differing": sum(f.codes_differing for f in marks),
        "statistics_error": max(f.statistics_error for f in marks),
        "table_error": max(f.table_error for f in marks),
        "weight_sqnr_db": min(f.sqnr_db for f in marks),
        "weight_mean_error": max(f.mean_error for f in marks),
        "weight_worst_block": max(f.worst_block for f in marks),
        "kernel_nonfinite": sum(e.nonfinite for e in errors),
        "kernel_error": max(e.overall for e in errors),
        "kernel_error_channel": max(e.channel for e in errors),
        "kernel_error_row": max(e.row for e in errors),
        "dequantize_error": max(dequantized),
        "kernel_error_training": max(e.overall for e in training),
        "kernel_error_training_channel": max(e.channel for e in training),
        "gradient_error": max(e.overall for e in gradients),
        "gradient_error_channel": max(e.channel for e in gradients),
    })
'''
_QUALITY_FIGURES = (
    "codes_differing", "statistics_error", "table_error", "weight_sqnr_db", "weight_mean_error", "weight_worst_block",
    "kernel_nonfinite", "kernel_error", "kernel_error_channel", "kernel_error_row", "dequantize_error",
    "kernel_error_training", "kernel_error_training_channel", "gradient_error", "gradient_error_channel",
)  # fmt: skip

_DISPATCH = '''
def main() -> bool:
    """The kinds of attention kernel on each path, against those of the backend that was asked for."""
    where = checkpoint()
    model = candidate(where)
    plain = plain_inputs(model)
    paths = {"prefill": plain}
    if "input_ids" in plain:
        mask = torch.ones_like(plain["input_ids"])
        mask[1, (slice(0, 7) if TASK == "causal-lm" else slice(-7, None))] = 0
        paths["padded"] = plain | {"attention_mask": mask}
    shows = False

    def look(name: str, call: Any) -> Any:
        nonlocal shows
        with kernels_seen(IMPLEMENTATION) as names, forced_sdpa_kernel(SDPA_KERNEL), torch.no_grad():
            output = call()
        kinds = {kind for n in names if (kind := next((k for part, k in KINDS if part in n), None))}
        wrong = not kinds <= set(WANTED)
        shows = shows or wrong
        print(f"  {name}: {sorted(kinds)}, asked for {WANTED}{' <- the defect' if wrong else ''}")
        return output

    for name, inputs in paths.items():
        output = look(name, lambda inputs=inputs: model(**inputs))
    if TASK == "causal-lm":
        named = cache_argument(model)
        output = model(**plain, use_cache=True)
        step = {"input_ids": plain["input_ids"][:, :1], named: getattr(output, named)}
        look("decode", lambda: model(**step))
    return shows
'''


_SWITCHED = '''
def main() -> bool:
    """Ask for attention weights: the kernels that run, against those without, and what the library says about it."""
    model = candidate(checkpoint())
    plain, kinds = plain_inputs(model), []
    for more in ({}, {"output_attentions": True}):
        with announcements() as said, kernels_seen(IMPLEMENTATION) as names, forced_sdpa_kernel(SDPA_KERNEL):
            with torch.no_grad():
                model(**plain, **more)
        kinds.append({kind for n in names if (kind := next((k for part, k in KINDS if part in n), None))})
    other, about = sorted(kinds[1] - set(ALLOWED) - kinds[0]), [s for s in said if "attention" in s.lower()]
    print(f"  a forward runs {sorted(kinds[0])}; with output_attentions=True {sorted(kinds[1])}; said: {about[:1]}")
    return bool(other) and not about
'''


def quality(check: Check, axes: Mapping[str, str]) -> Body | None:
    """Quantized weights and products."""
    needs: tuple[Name, ...] = (("load", "quantized_modules"), ("dequantize", "stored"), ("dequantize", "dequantize"),
                               ("dequantize", "figures"), ("quantized_products", "error_of"),
                               ("quantized_products", "lossy_product"), ("schemes", "THRESHOLD"),
                               ("stack_api", "dequantized_by_library"))  # fmt: skip
    return bounded(check, _QUALITY, _QUALITY_FIGURES, needs)


def dispatch(check: Check, axes: Mapping[str, str]) -> Body | None:
    """Kernels by path, or those that run where attention weights are asked for, where that is what was found."""
    asked = ATTENTION[axes["attention"]]
    constants = {"KINDS": [list(k) for k in KERNEL_KINDS], "BOUNDS": {}}
    if any(f"dispatch: {name}" in check.evidence.signature for name in ("path-fell-back", "path-other")):
        needs: tuple[Name, ...] = (("dispatch", "kernels_seen"), ("stack_api", "cache_argument"))
        return Body(_DISPATCH + BOUNDED, constants | {"WANTED": sorted(asked.kinds)}, (*PLAIN, *needs))
    if "dispatch: attentions-switched" in check.evidence.signature:
        needs = (("dispatch", "kernels_seen"), ("announcements", "announcements"))
        return Body(
            _SWITCHED + BOUNDED, constants | {"ALLOWED": sorted(asked.kinds | asked.slower_kinds)}, (*PLAIN, *needs)
        )
    return None


def bounded(check: Check, main: str, figures: tuple[str, ...], needs: tuple[Name, ...]) -> Body | None:
    """The body that measures `figures` and compares those of them whose bound the check broke; None without any."""
    bounds: dict[str, Any] = check.evidence.minimal.get("bounds", {})
    own = {name: bound for name, bound in bounds.items() if name in figures}
    return Body(main + BOUNDED, {"BOUNDS": own}, (*PLAIN, *needs)) if own else None
