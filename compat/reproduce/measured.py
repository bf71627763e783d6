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

_BOUNDED = '''
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


def plain_inputs() -> dict[str, Any]:
    """Two rows without a mask, or two images."""
    if TASK == "image-classification":
        size = ROW["config"]["image_size"]
        images = torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(0))
        return {"pixel_values": images.to(DEVICE, DTYPE)}
    ids = torch.tensor([tokens(41, 0), tokens(41, 1)], device=DEVICE)
    return {"input_ids": ids, **({"decoder_input_ids": ids[:, :17]} if TASK == "seq2seq-lm" else {})}
'''

_QUALITY = '''
def main() -> bool:
    """Every quantized linear: its codes against the checkpoint's weight, and its product against fp64."""
    where = checkpoint()
    model = candidate(where)
    master = from_pretrained(where, TASK, torch.float32, "eager", torch.device("cpu"))
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
    for path, own in held.items():
        linear = master.get_submodule(path)
        weight = linear.weight.detach()
        weight = weight.t().contiguous() if type(linear).__name__ == "Conv1D" else weight
        marks.append(figures(own, weights[path], weight.to(DTYPE).float(), weight))
    run(model, **plain_inputs())
    for path, (x, y) in seen.items():
        bias = getattr(master.get_submodule(path), "bias", None)
        flat = x.reshape(-1, x.shape[-1]).cpu()
        more = 0.0 if bias is None else bias.detach().to(DTYPE).double()
        exact = flat.double() @ weights[path].double().t() + more
        int8 = int8_product(flat, held[path], THRESHOLD) + more if held[path].kind == "int8" else None
        errors.append(error_of(y.reshape(exact.shape).cpu(), exact, DTYPE, int8))
    training, gradients, dequantized = [], [], []
    for path, module in quantized_modules(load(where, "eager")).items():  # no forward has repacked these
        if path not in seen:
            continue
        weight = weights[path].double()
        theirs, own = dequantized_by_library(module).cpu().double(), weights[path]
        dequantized.append(float((theirs - weight).abs().max()) / (torch.finfo(DTYPE).eps * float(own.abs().max())))
        bias = getattr(master.get_submodule(path), "bias", None)
        more = 0.0 if bias is None else bias.detach().to(DTYPE).double()
        x = seen[path][0].reshape(-1, weight.shape[1]).clone().requires_grad_()
        y = module(x)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, DTYPE)
        (dx,) = torch.autograd.grad(y, x, dy)
        flat = x.detach().cpu()
        int8 = int8_product(flat, held[path], THRESHOLD) + more if held[path].kind == "int8" else None
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

_GRADIENT = '''
@contextlib.contextmanager
def embedded(network: Any) -> Any:
    """Collects what the token embedding gives, its gradient kept."""
    seen: list[torch.Tensor] = []

    def note(_: Any, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
            seen.append(output)

    handle = network.get_input_embeddings().register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def main() -> bool:
    """A training step of padded and packed rows: the loss, and the gradient at the embedding's output, against fp64."""
    where = checkpoint()
    eager = load(where, "eager")
    reference = fp64(where, eager)
    model = candidate(where)
    rows = [tokens(41, 0), tokens(34, 1)]
    scale = 1024.0 if DTYPE == torch.float16 else 1.0
    labels = [[-100 if i % 3 == 0 else t for i, t in enumerate(row)] for row in rows]
    shift = 1 if TASK == "causal-lm" else 0
    count = sum(t != -100 for row in labels for t in row[shift:])

    def alone(network: Any, inside: Any, row: list[int], own: list[int], lift: bool) -> tuple[float, torch.Tensor]:
        network.zero_grad(set_to_none=True)
        with embedded(network) as hidden, inside, torch.enable_grad():
            output = output_of(network(input_ids=torch.tensor([row], device=DEVICE)), TASK)[0]
            loss = loss_sum(output if lift else output.float(), tuple(own), TASK) / count
            (found,) = torch.autograd.grad(loss * scale, hidden)
        return float(loss.detach()), found[0].double() / scale

    def batch(side: str) -> tuple[dict[str, Any], list[tuple[int, slice]]]:
        if side == "packed":
            packed = [t for own in labels for t in ([-100, *own[1:]] if shift else own)]
            positions = [i for r in rows for i in range(len(r))]
            given = {"input_ids": sum(rows, []), "labels": packed, "position_ids": positions}
            ends = [len(rows[0]), len(rows[0]) + len(rows[1])]
            arguments = {k: torch.tensor([v], device=DEVICE) for k, v in given.items()} | {"use_cache": False}
            return arguments, [(0, slice(0, ends[0])), (0, slice(ends[0], ends[1]))]
        width = max(len(r) for r in rows)
        fill = [width - len(r) for r in rows]
        put = lambda row, n, x: [x] * n + row if side == "left" else row + [x] * n  # noqa: E731
        given = {"input_ids": [put(r, n, 0) for r, n in zip(rows, fill)],
                 "labels": [put(r, n, -100) for r, n in zip(labels, fill)],
                 "attention_mask": [put([1] * len(r), n, 0) for r, n in zip(rows, fill)]}
        arguments = {k: torch.tensor(v, device=DEVICE) for k, v in given.items()}
        if side == "left" and accepts(model, "position_ids"):
            arguments["position_ids"] = (arguments["attention_mask"].cumsum(-1) - 1).clamp_min(0)
        start = [n if side == "left" else 0 for n in fill]
        return arguments, [(i, slice(s, s + len(r))) for i, (s, r) in enumerate(zip(start, rows))]

    truth = [alone(reference.model, reference.computing(), r, t, True) for r, t in zip(rows, labels)]
    with trainable(eager, True):
        normal = [alone(eager, contextlib.nullcontext(), r, t, False) for r, t in zip(rows, labels)]
    r, loss = torch.cat([g for _, g in truth]), sum(x for x, _ in truth)
    size = rms(r)
    yardstick = Yardstick(r / size, torch.cat([g for _, g in normal]) / size, DTYPE, False)
    sides = ["right", *(["left"] if shift else []), *(["packed"] if "packed" in ROW.get("features", ()) else [])]
    broken = False
    for side in sides:
        arguments, places = batch(side)
        with trainable(model, side != "left"), embedded(model) as hidden, forced_sdpa_kernel(SDPA_KERNEL):
            with torch.enable_grad():
                output = model(**arguments)
                (output.loss * scale).backward()
            gradient = hidden[0].grad
            found = None if gradient is None else torch.cat([gradient[i, w] for i, w in places]).double() / scale
        print(side)
        off = abs(float(output.loss) - loss) / (torch.finfo(DTYPE).eps * abs(loss))
        if found is None:
            print("  no gradient reaches the embedding <- the defect")
            broken = True
            continue
        own = yardstick.compare(found / size)
        nothing = float("nan")
        values = {"loss_error": off, "ratio_rms": own.ratio_rms, "ratio_token": own.ratio_token,
                  "ratio_max": own.ratio_max, "nonfinite_elements": own.nonfinite}
        broken = beyond({k: nothing if v is None else v for k, v in values.items()}) or broken
    return broken
'''
_GRADIENT_FIGURES = ("loss_error", "ratio_rms", "ratio_token", "ratio_max", "nonfinite_elements", "missing_gradients")

_MEMORY = '''
def main() -> bool:
    """Bytes that the model's weights, buffers and attributes hold, before and after forwards."""
    where = checkpoint()
    model = candidate(where)
    allowed = held_bytes_growth({p: stored(m) for p, m in quantized_modules(model).items()}) if QUANTIZATION else 0
    before = weights_bytes(model)
    for _ in range(2):
        run(model, **plain_inputs())
    kept = weights_bytes(model) - before - allowed
    print(f"  {before:,} bytes when loaded")
    return beyond({"left_behind_bytes": max(0, kept)})
'''

_DISPATCH = '''
def main() -> bool:
    """The kinds of attention kernel on each path, against those of the backend that was asked for."""
    where = checkpoint()
    model = candidate(where)
    plain = plain_inputs()
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
        output = model(**plain, use_cache=True)
        step = {"input_ids": plain["input_ids"][:, :1], "past_key_values": output.past_key_values}
        look("decode", lambda: model(**step))
    return shows
'''


def quality(check: Check, axes: Mapping[str, str]) -> Body | None:
    """Quantized weights and products."""
    needs: tuple[Name, ...] = (("load", "quantized_modules"), ("dequantize", "stored"), ("dequantize", "dequantize"),
                               ("dequantize", "figures"), ("checks.quality", "error_of"),
                               ("checks.quality", "int8_product"), ("checks.quality", "THRESHOLD"),
                               ("stack_api", "dequantized_by_library"))  # fmt: skip
    return _bounded(check, _QUALITY, _QUALITY_FIGURES, needs)


def gradient(check: Check, axes: Mapping[str, str], task: str, judge: str, needs: tuple[Name, ...]) -> Body | None:
    """A training step; `judge` and `needs` are those of the fp64 reference."""
    if task not in ("causal-lm", "masked-lm"):
        return None
    own: tuple[Name, ...] = (("training", "trainable"), ("training", "loss_sum"),
                             ("metrics", "rms"), ("stack_api", "accepts"))  # fmt: skip
    return _bounded(check, _GRADIENT + judge, _GRADIENT_FIGURES, (*needs, *own))


def memory(check: Check, axes: Mapping[str, str]) -> Body | None:
    """Bytes that forwards leave behind."""
    needs: tuple[Name, ...] = (("load", "weights_bytes"), ("load", "held_bytes_growth"), ("load", "quantized_modules"),
                               ("dequantize", "stored"))  # fmt: skip
    return _bounded(check, _MEMORY, ("left_behind_bytes",), needs)


def dispatch(check: Check, axes: Mapping[str, str]) -> Body | None:
    """Kernels by path, where that is what was found."""
    if not any(f"dispatch: {name}" in check.evidence.signature for name in ("path-fell-back", "path-other")):
        return None
    constants = {"KINDS": [list(k) for k in KERNEL_KINDS], "WANTED": sorted(ATTENTION[axes["attention"]].kinds)}
    return Body(_DISPATCH + _BOUNDED, constants | {"BOUNDS": {}}, (("dispatch", "kernels_seen"),))


def _bounded(check: Check, main: str, figures: tuple[str, ...], needs: tuple[Name, ...]) -> Body | None:
    bounds: dict[str, Any] = check.evidence.minimal.get("bounds", {})
    own = {name: bound for name, bound in bounds.items() if name in figures}
    return Body(main + _BOUNDED, {"BOUNDS": own}, needs) if own else None
