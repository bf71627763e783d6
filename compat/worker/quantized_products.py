"""Products of quantized linears on the inputs that they really get, in units of what their arithmetic explains.

In: a loaded model and what its linears hold. Out: `Kernels`, errors in units of what the arithmetic explains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from compat.worker import dequantize, quantizers
from compat.worker.affine import Affine, dynamic_product
from compat.worker.calls import under_test
from compat.worker.dequantize import Stored
from compat.worker.group import Group, Loaded
from compat.worker.inputs import CLASSIFYING, padded, unpadded
from compat.worker.load import quantized_modules
from compat.worker.report import Report
from compat.worker.schemes import THRESHOLD

LENGTHS = (13, 9, 5)
"""Rows of the batch, padded, whose activations the linears are judged on."""

OUTLIER_ROWS = 8

OUTLIER_SIZES = (9.0, -40.0, 20.0)
"""Magnitudes beyond the threshold, put into a column each, in every other row."""

FEW = 16
"""With fewer channels a row is judged by the error of all rows, and one row alone not at all: too few numbers."""

PRODUCTS = ("gemm_4bit", "gemv_4bit", "int8_mixed_scaled_mm")
"""Operators of bitsandbytes whose first argument is the activation in the compute dtype."""


@dataclass(frozen=True)
class Error:
    """How far one product is from the exact one, in units of what its arithmetic explains."""

    overall: float
    channel: float
    row: float
    nonfinite: int


@dataclass
class Kernels:
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


def batch(group: Group, model: Any) -> dict[str, torch.Tensor]:
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


def kernels_of(group: Group, loaded: Loaded, held: dict[str, Stored | Affine], paths: list[str]) -> Kernels:
    """Errors of the linears at `paths` in one padded batch: as it is, with outlier columns, and of one row alone.

    Raises StackError.
    """
    modules = quantized_modules(loaded.model)
    found = Kernels()
    products = _Products()
    with _recorded({path: modules[path] for path in paths if path in modules}) as seen, products:
        loaded.forward(**batch(group, loaded.model))
    wanted = quantizers.compute_dtype(group.spec.quantization, group.dtype)
    found.dtypes = [f"{name} in {dtype}" for name, dtype in products.seen if dtype != wanted]
    for path, (x, y) in seen.items():
        flat = x.reshape(-1, x.shape[-1])
        more = _with_outliers(flat)
        one = flat[-1:]
        with under_test("forward"), torch.no_grad():
            outputs = [y, modules[path](more[None]), modules[path](one[None]), modules[path](more[None, :1])]
        own = [flat, more, one, more[:1]]
        exact = Exact(group, path, held[path])
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


def _name_worst(found: Kernels, paths: list[str]) -> None:
    if paths:
        overall = [max(e.overall, e.channel / 2, e.row / 2) for e in found.plain]
        found.facts["worst_kernel"] = paths[max(range(len(paths)), key=overall.__getitem__)]


class Exact:
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
