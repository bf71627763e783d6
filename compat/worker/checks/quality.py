"""quality: are the weights quantized as asked, and at what loss? Three questions, asked apart.

1. Weights: are codes and statistics what the scheme makes of the checkpoint's weights, matrix by matrix? Does
   bitsandbytes dequantize them to what the format's definition says, and does a saved model come back bit for bit?
2. Kernel: is every quantized linear's output on the inputs that it really gets its own weight times the input, in fp64?
   Also with outlier columns, with one row, with a gradient, and for the gradient itself.
3. Loss: how far are the logits from the unquantized model's? Asked in the eager cell only: an attention backend is not
   to blame for it.

The answers to 1 and 2 hold for every attention backend that shares the model; they are worked out once.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from compat.worker import dequantize, quantizers, reload, schemes, stack_api
from compat.worker.affine import Affine, dynamic_product
from compat.worker.calls import StackError, under_test
from compat.worker.checkpoints import Checkpoint
from compat.worker.checks.agreement import cases
from compat.worker.dequantize import Stored
from compat.worker.group import LARGE_PARAMETERS, Group, Loaded
from compat.worker.inputs import CLASSIFYING, output_of, padded, unpadded
from compat.worker.load import from_pretrained, held_bytes_growth, quantized_modules, weights_bytes
from compat.worker.report import Report
from compat.worker.schemes import THRESHOLD
from compat.worker.weight_figures import Figures

LENGTHS = (13, 9, 5)
"""Rows of the batch, padded, whose activations the linears are judged on."""

ROUNDING = 1.5
"""An error of a dequantized weight that rounding to its dtype explains, in eps of its largest."""

OUTLIER_ROWS = 8
OUTLIER_SIZES = (9.0, -40.0, 20.0)
"""Magnitudes beyond the threshold, put into a column each, in every other row."""

FEW = 16
"""With fewer channels a row is judged by the error of all rows, and one row alone not at all: too few numbers."""

EVERY = 7
"""Of a large checkpoint's linears one in so many is looked at, except at depth deep."""

PRODUCTS = ("gemm_4bit", "gemv_4bit", "int8_mixed_scaled_mm")
"""Operators of bitsandbytes whose first argument is the activation in the compute dtype."""


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    loaded = group.loaded(attention)
    own = _once(group, f"quality {id(loaded.model)} {loaded.alone}", lambda: _Answers(group, loaded))
    own.record(report)
    if attention["name"] == "eager" and own.held:
        _loss(group, report)
    return report


def _once(group: Group, key: str, make: Callable[[], Any]) -> Any:
    if key not in group.kept:
        group.kept[key] = make()
    return group.kept[key]


class _Answers:
    """The answers to questions 1 and 2 for one loaded model."""

    def __init__(self, group: Group, loaded: Loaded) -> None:
        self.group = group
        self.held = group.stored(loaded.model)
        self.paths = _chosen(group, list(self.held))
        self.facts: dict[str, Any] = {"linears": len(self.held), "looked_at": len(self.paths)}
        self.figures = [self._figures(path) for path in self.paths]
        self.scheme = schemes.differences(group, loaded.model, self.held)
        self.kernels = _Kernels()
        self.round_trip = _RoundTrip()
        if self.held:
            self.kernels = _kernels(group, loaded, self.held, self.paths)
            if reload.affordable(group):
                self.round_trip = _round_trip(group, self.held, self.kernels)

    def _figures(self, path: str) -> Figures:
        master = self.group.master_weight(path)
        held = self.held[path]
        with under_test("quantized state"):  # parts that do not fit together are the stack's fault
            found = dequantize.dequantize(held).cpu()
            return dequantize.figures(held, found, master.to(self.group.dtype).float(), master)

    def record(self, report: Report) -> None:
        """Everything that was measured, into `report`."""
        report.measure("weights_compared", len(self.figures), unit="matrices", better="higher")
        if self.figures:
            self._record_weights(report)
        self.kernels.record(report)
        self.round_trip.record(report)
        report.facts |= self.facts | self.kernels.facts | self.round_trip.facts
        if self.scheme:
            report.facts["scheme_differing_in"] = self.scheme[:6]

    def _record_weights(self, report: Report) -> None:
        figures = self.figures
        report.measure("codes_differing", [f.codes_differing for f in figures], unit="codes", method="sum")
        report.measure("statistics_error", [f.statistics_error for f in figures], unit="of the scale")
        report.measure("table_error", [f.table_error for f in figures], unit="of the largest code")
        sqnr = [f.sqnr_db for f in figures]
        report.measure("weight_sqnr_db", sqnr, unit="dB", better="higher", method="min")
        report.measure("weight_mean_error", [f.mean_error for f in figures], unit="of rms(w)")
        report.measure("weight_worst_block", [f.worst_block for f in figures], unit="of the block's largest")
        report.measure("scheme_differing", len(self.scheme), unit="layers")


def _chosen(group: Group, paths: list[str]) -> list[str]:
    large = sum(p.numel() for p in group.master.parameters()) > LARGE_PARAMETERS
    return paths[::EVERY] if large and not group.spec.at_least("deep") else paths


# -- kernels -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Error:
    """How far one product is from the exact one, in units of what its arithmetic explains."""

    overall: float
    channel: float
    row: float
    nonfinite: int


@dataclass
class _Kernels:
    """Errors of every linear that was looked at."""

    plain: list[Error] = field(default_factory=list)
    outliers: list[Error] = field(default_factory=list)
    single: list[Error] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    thresholds: list[str] = field(default_factory=list)
    """Linears whose product with outliers is that of another threshold."""
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def record(self, report: Report) -> None:
        report.measure("kernels_compared", len(self.plain), unit="linears", better="higher")
        if not self.plain:
            return
        every = [*self.plain, *self.outliers, *self.single]
        report.measure("kernel_nonfinite", sum(e.nonfinite for e in every), unit="elements")
        for name, errors in (("", self.plain), ("_outliers", self.outliers), ("_single", self.single)):
            report.measure(f"kernel_error{name}", [e.overall for e in errors], unit="of the arithmetic's own")
        report.measure("kernel_error_channel", [e.channel for e in self.plain], unit="of the arithmetic's own")
        report.measure("kernel_error_row", [e.row for e in self.plain], unit="of the arithmetic's own")
        report.measure("compute_dtype_differing", len(self.dtypes), unit="products")
        report.measure("threshold_differing", len(self.thresholds), unit="linears")
        if self.thresholds:
            report.facts["threshold_differing_in"] = self.thresholds[:6]
        if self.dtypes:
            report.facts["compute_dtype_differing_in"] = sorted(set(self.dtypes))[:6]


def int8_product(x: torch.Tensor, held: Stored, threshold: float) -> torch.Tensor:
    """x W^T as LLM.int8() computes it, without rounding of the result: rows of `x` in 8 bits by their largest
    magnitude below the threshold (0: there is none), columns with an outlier in full. `x` (rows, in) any float; fp64
    (rows, out)."""
    low = x.half().double()
    outlier = low.abs() >= (threshold or math.inf)  # a threshold of 0 means that there are none
    columns = outlier.any(0)
    rest = low.masked_fill(outlier, 0.0)
    scale = rest.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    codes = (rest * (127.0 / scale)).round().masked_fill(columns, 0.0)
    weight = dequantize.dequantize(held).double().to(x.device)
    product = (codes @ weight.t()) * (scale / 127.0)
    if bool(columns.any()):
        product += x.double()[:, columns] @ weight[:, columns].t()
    return product


def lossy_product(x: torch.Tensor, held: Stored | Affine, threshold: float) -> torch.Tensor | None:
    """x W^T as a scheme that rounds activations computes it, fp64 (rows, out); None for the others."""
    if isinstance(held, Affine):
        return dynamic_product(x, held) if held.dynamic else None
    return int8_product(x, held, threshold) if held.kind == "int8" else None


def error_of(y: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype, own: torch.Tensor | None = None) -> Error:
    """The error of `y` against `exact`, (rows, channels): its root mean square over the larger of eps(`dtype`)
    rms(exact) and what the arithmetic `own` (same shape, fp64) loses by itself; overall, and for the worst channel and
    row."""
    difference = y.double() - exact
    nonfinite = int((~torch.isfinite(difference)).sum())
    if nonfinite:
        return Error(math.inf, math.inf, math.inf, nonfinite)
    eps = torch.finfo(dtype).eps
    squared, signal = difference.square(), exact.square() * eps**2
    lost = (own - exact).square() if own is not None else torch.zeros_like(exact)
    few = exact.shape[-1] < FEW

    def ratio(dim: int | None) -> float:
        def mean(values: torch.Tensor) -> torch.Tensor:
            return values.mean() if dim is None else values.mean(dim)

        base = torch.maximum(mean(signal), mean(lost))
        if dim == 0 or (dim == 1 and few):
            base = torch.maximum(base, torch.maximum(signal.mean(), lost.mean()))
        return math.sqrt(float((mean(squared) / base.clamp_min(1e-60)).max()))

    return Error(ratio(None), ratio(0), ratio(1), 0)


class _Products(TorchDispatchMode):
    """Notes the dtype of the activation that each quantized product gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name if hasattr(func, "_schema") else str(func)
        if name.startswith("bitsandbytes::") and name.split("::")[1] in PRODUCTS:
            self.seen.append((name, args[0].dtype))
        return func(*args, **(kwargs or {}))


@contextmanager
def _recorded(modules: dict[str, Any]) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Path -> (input, output) of the first call of each module inside the block."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def hook(path: str) -> Callable[..., None]:
        def note(_: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if path not in seen and inputs[0].numel():
                seen[path] = (inputs[0].detach().clone(), output.detach().clone())

        return note

    handles = [module.register_forward_hook(hook(path)) for path, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _batch(group: Group, model: Any) -> dict[str, torch.Tensor]:
    """Rows of unequal length, padded; two images for vision models."""
    rows = group.source.rows(1000 * group.spec.seed + 800, list(LENGTHS))
    if group.task in CLASSIFYING:
        return unpadded(rows, group.device, group.dtype)
    side = "left" if group.task == "causal-lm" else "right"
    return padded(rows, side, model, group.device, group.source.pad).arguments


def _with_outliers(x: torch.Tensor) -> torch.Tensor:
    """The first rows of `x` (rows, in), every other one with magnitudes beyond the threshold in a few columns; the last
    one all zeros, whose largest magnitude divides nothing."""
    changed = x[:OUTLIER_ROWS].clone()
    width = changed.shape[-1]
    for column, size in zip((1, width // 2, width - 1), OUTLIER_SIZES, strict=True):
        changed[::2, column] = size
    changed[-1] = 0
    return changed


def _kernels(group: Group, loaded: Loaded, held: dict[str, Stored | Affine], paths: list[str]) -> _Kernels:
    modules = quantized_modules(loaded.model)
    found = _Kernels()
    products = _Products()
    with _recorded({path: modules[path] for path in paths if path in modules}) as seen, products:
        loaded.forward(**_batch(group, loaded.model))
    wanted = quantizers.compute_dtype(group.spec.quantization, group.dtype)
    found.dtypes = [f"{name} in {dtype}" for name, dtype in products.seen if dtype != wanted]
    for path, (x, y) in seen.items():
        flat = x.reshape(-1, x.shape[-1])
        more = _with_outliers(flat)
        one = flat[-1:]
        with under_test("forward"), torch.no_grad():
            outputs = [y, modules[path](more[None]), modules[path](one[None]), modules[path](more[None, :1])]
        own = [flat, more, one, more[:1]]
        exact = _Exact(group, path, held[path])
        errors = [exact.error(rows, output) for rows, output in zip(own, outputs, strict=True)]
        found.plain.append(errors[0])
        found.outliers.append(errors[1])
        if exact.other_threshold(more, outputs[1]):
            found.thresholds.append(path)
        found.single += errors[2:] if outputs[0].shape[-1] >= FEW else []
        found.dtypes += [f"output in {o.dtype}" for o in outputs[:1] if o.dtype != group.dtype]
        found.inputs[path] = flat
    _name_worst(found, list(seen))
    missed = [path for path in paths if path not in seen]
    if missed:
        found.facts["not_called"] = missed[:6]
    return found


def _name_worst(found: _Kernels, paths: list[str]) -> None:
    if paths:
        overall = [max(e.overall, e.channel / 2, e.row / 2) for e in found.plain]
        found.facts["worst_kernel"] = paths[max(range(len(paths)), key=overall.__getitem__)]


class _Exact:
    """The products of one quantized linear in fp64."""

    def __init__(self, group: Group, path: str, held: Stored | Affine) -> None:
        self.dtype = group.dtype
        self.held = held
        self.threshold = float(group.spec.quantization["arguments"].get("llm_int8_threshold", THRESHOLD))
        self.weight = dequantize.dequantize(held).double()
        bias = getattr(group.master.get_submodule(path), "bias", None)
        self.bias = None if bias is None else bias.detach().to(group.dtype).double().to(self.weight.device)

    def error(self, x: torch.Tensor, y: torch.Tensor) -> Error:
        """Of the output `y` for the input `x` (rows, in)."""
        exact = x.double() @ self.weight.t()
        own = lossy_product(x, self.held, self.threshold)
        if self.bias is not None:
            exact += self.bias
            own = None if own is None else own + self.bias
        return error_of(y.reshape(exact.shape), exact, self.dtype, own)

    def other_threshold(self, x: torch.Tensor, y: torch.Tensor) -> bool:
        """Whether the output `y` for `x` is nearer to what another outlier threshold would give than the one asked
        for. False for schemes without one."""
        if isinstance(self.held, Affine) or self.held.kind != "int8":
            return False
        products = [lossy_product(x, self.held, t) for t in (self.threshold, THRESHOLD if not self.threshold else 0.0)]
        bias = 0.0 if self.bias is None else self.bias
        asked, other = (float((y.reshape(p.shape).double() - p - bias).square().mean()) for p in products
                        if p is not None)  # fmt: skip
        return other < asked

    def gradient_error(self, dy: torch.Tensor, dx: torch.Tensor) -> Error:
        """Of the gradient `dx` with respect to the input, for the output's gradient `dy` (rows, out)."""
        return error_of(dx, dy.double() @ self.weight, self.dtype)


# -- a second model: skipped modules, saving, gradients ----------------------------------------------------------


@dataclass
class _RoundTrip:
    """What a second load, a save and its reload showed."""

    counts: dict[str, int] = field(default_factory=dict)
    dequantized: list[float] = field(default_factory=list)
    training: list[Error] = field(default_factory=list)
    gradients: list[Error] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def record(self, report: Report) -> None:
        for name, count in self.counts.items():
            report.measure(name, count, unit="bytes" if name.endswith("bytes") else "tensors")
        if self.dequantized:
            report.measure("dequantize_error", self.dequantized, unit="eps of the largest")
        if self.gradients:
            both = [*self.training, *self.gradients]
            report.measure("training_nonfinite", sum(e.nonfinite for e in both), unit="elements")
            for name, errors in (("kernel_error_training", self.training), ("gradient_error", self.gradients)):
                report.measure(name, [e.overall for e in errors], unit="of the arithmetic's own")
                report.measure(f"{name}_channel", [e.channel for e in errors], unit="of the arithmetic's own")


def _round_trip(group: Group, held: dict[str, Stored | Affine], kernels: _Kernels) -> _RoundTrip:
    """Load again with one more module to be left alone; look at it, save it, load what was saved, train a step.

    Nothing of it has run a forward before it is saved: on some processors the first one repacks the codes.
    """
    found = _RoundTrip()
    skipped = next(iter(held))
    left = [path for path, m in group.master.named_modules() if _could_be_quantized(m) and path not in held]
    scheme = quantizers.skipping(group.spec.quantization, [*left, skipped])
    with under_test("load"):
        model = from_pretrained(group.checkpoint, group.task, group.dtype, "eager", group.device, scheme)
    modules = quantized_modules(model)
    with under_test("quantized state"):
        again = {path: dequantize.stored(module) for path, module in modules.items()}
    found.counts["skipped_quantized"] = len({skipped, *left} & set(again))
    found.counts["unskipped_differing"] = _differing(
        {p: h for p, h in held.items() if p != skipped}, again, found, frozenset({skipped, *left})
    )
    restored = _save_and_reload(group, model, again, found)
    for path in kernels.inputs:
        if path in modules:
            found.dequantized.append(_dequantize_error(modules[path], again[path]))
    before = weights_bytes(model)
    _train(group, modules, again, kernels, found)
    grown = weights_bytes(model) - before - held_bytes_growth(again)
    found.counts["training_left_behind_bytes"] = max(0, grown)
    inputs = _batch(group, model)
    if restored is None:
        return found
    first, second = (_forward(group, m, inputs) for m in (model, restored))
    found.counts["saved_output_differing"] = int((first != second).sum())
    if group.spec.at_least("deep"):
        errors = [_dequantize_error(modules[path], own) for path, own in again.items()]
        found.counts["dequantized_after_forward_differing"] = sum(error > ROUNDING for error in errors)
        after, _ = _saved(group, model, again, found)
        found.counts["saved_after_forward_differing"] = after
    return found


def _save_and_reload(group: Group, model: Any, held: dict[str, Stored | Affine], into: _RoundTrip) -> Any:
    """The model that was saved and loaded again; None where the library says that it cannot be saved, and refuses."""
    try:
        into.counts["saved_differing"], restored = _saved(group, model, held, into)
    except StackError as refused:
        if quantizers.serializable(model) or refused.phase != "save":
            raise
        into.facts["saved"] = f"refused: {type(refused.original).__name__}: {refused.original}"[:400]
        return None
    return restored


def _could_be_quantized(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


def _forward(group: Group, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with under_test("forward"), torch.no_grad():
        return output_of(model(**inputs), group.task)


def _differing(
    wanted: dict[str, Stored | Affine],
    found: dict[str, Stored | Affine],
    into: _RoundTrip,
    left_alone: frozenset[str] = frozenset(),
) -> int:
    """Number of tensors that are not bit for bit those wanted; missing linears, other kinds, and linears that are
    quantized besides (but those `left_alone`, which are counted elsewhere) count too."""
    names = []
    for path, own in wanted.items():
        other = found.get(path)
        if other is None or (other.kind, other.shape, other.blocksize) != (own.kind, own.shape, own.blocksize):
            names.append(path)
            continue
        theirs = other.tensors()
        for name, tensor in own.tensors().items():
            if name not in theirs or not torch.equal(tensor.cpu(), theirs[name].cpu()):
                names.append(f"{path} {name}")
    names += [f"{path} is quantized" for path in found if path not in wanted and path not in left_alone]
    if names:
        into.facts.setdefault("differing_in", names[:6])
    return len(names)


def _saved(group: Group, model: Any, held: dict[str, Stored | Affine], into: _RoundTrip) -> tuple[int, Any]:
    """Save, load what was saved; how many tensors came back otherwise, and the model."""
    with tempfile.TemporaryDirectory(prefix="compat-") as folder, under_test("save"):
        model.save_pretrained(folder)
        saved = Checkpoint(folder, {"device_map": {"": str(group.device)}})
        restored = from_pretrained(saved, group.task, group.dtype, "eager", group.device)
    with under_test("quantized state"):
        found = {path: dequantize.stored(module) for path, module in quantized_modules(restored).items()}
    count = _differing(held, found, into)
    theirs = dict(restored.named_parameters())
    codes = {f"{path}.weight" for path in held}  # compared already
    for name, parameter in model.named_parameters():
        if (
            name not in codes
            and parameter.dtype.is_floating_point
            and (name not in theirs or not torch.equal(parameter, theirs[name]))
        ):
            count += 1
            into.facts.setdefault("differing_in", [name])
    return count, restored


def _dequantize_error(module: Any, held: Stored | Affine) -> float:
    """The library's own dequantization against ours, in eps of its dtype times the largest weight; where it raises or
    has another shape, as if it were off by the largest weight."""
    try:
        with under_test("dequantize"):
            theirs = stack_api.dequantized_by_library(module)
    except StackError:
        return 1 / torch.finfo(torch.float32).eps
    own = dequantize.dequantize(held)
    if theirs.shape != own.shape:
        return 1 / torch.finfo(theirs.dtype).eps
    unit = torch.finfo(theirs.dtype).eps * float(own.abs().max())
    return float((theirs.double() - own.double()).abs().max()) / max(unit, 1e-60)


def _train(
    group: Group, modules: dict[str, Any], held: dict[str, Stored | Affine], kernels: _Kernels, found: _RoundTrip
) -> None:
    """One step forward and back through each linear alone, every other one in training mode."""
    found.counts["gradient_cut"] = 0
    generator = torch.Generator().manual_seed(group.spec.seed)
    for number, (path, flat) in enumerate(kernels.inputs.items()):
        module = modules.get(path)
        if module is None:
            continue
        x = flat.detach().clone().requires_grad_()
        dy = torch.randn(flat.shape[0], held[path].shape[0], generator=generator).to(group.device, group.dtype)
        module.train(number % 2 == 1)
        with under_test("train"), torch.enable_grad():
            y = module(x)
            dx = torch.autograd.grad(y, x, dy, allow_unused=True)[0] if y.requires_grad else None
        module.eval()
        found.counts["gradient_cut"] += dx is None
        exact = _Exact(group, path, held[path])
        found.training.append(exact.error(flat, y.detach()))
        if dx is not None:
            found.gradients.append(exact.gradient_error(dy, dx))


# -- loss --------------------------------------------------------------------------------------------------------


def _loss(group: Group, report: Report) -> None:
    """Eager's output against the unquantized checkpoint's in fp32, on the first inputs of `agreement`."""
    ours, theirs = [], []
    for rows in cases(group)[:2]:
        theirs += list(group.eager_outputs(rows))
        with under_test("forward"), torch.no_grad():
            output = group.master(**unpadded(rows, torch.device("cpu"), torch.float32))
            ours += list(output_of(output, group.task))
    r, o = torch.cat(ours).double(), torch.cat(theirs).double().cpu()
    noise = float((o - r).square().mean())
    report.measure("output_sqnr_db", 10 * math.log10(float(r.square().mean()) / noise) if noise else 300.0, unit="dB",
                   better="higher")  # fmt: skip
    if group.task == "feature-extraction":
        return
    log_r, log_o = torch.log_softmax(r, -1), torch.log_softmax(o, -1)
    report.measure("output_kl", float((log_r.exp() * (log_r - log_o)).sum(-1).mean()), unit="nats")
    report.measure("top1_agreement", float((r.argmax(-1) == o.argmax(-1)).double().mean()), better="higher")
