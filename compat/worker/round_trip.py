"""A second quantized model: modules left alone, saved and loaded again, dequantized by the library, trained.

In: a load group and what the linears of its model hold. Out: a `RoundTrip`.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass, field
from typing import Any

import torch

from compat.worker import dequantize, quantizers, stack_api
from compat.worker.affine import Affine
from compat.worker.calls import StackError, under_test
from compat.worker.checkpoints import Checkpoint
from compat.worker.dequantize import Stored
from compat.worker.group import Group
from compat.worker.inputs import output_of
from compat.worker.load import from_pretrained, held_bytes_growth, quantized_modules, weights_bytes
from compat.worker.quantized_products import Error, Exact, Kernels, batch
from compat.worker.report import Report

ROUNDING = 1.5
"""An error of a dequantized weight that rounding to its dtype explains, in eps of its largest."""


@dataclass
class RoundTrip:
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


def round_trip(group: Group, held: dict[str, Stored | Affine], kernels: Kernels) -> RoundTrip:
    """Load again with one more module to be left alone; look at it, save it, load what was saved, train a step.

    Nothing of it has run a forward before it is saved: on some processors the first one repacks the codes.
    """
    found = RoundTrip()
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
            found.dequantized.append(_dequantize_error(modules[path], again[path], found))
    before = weights_bytes(model)
    _train(group, modules, again, kernels, found)
    grown = weights_bytes(model) - before - held_bytes_growth(again)
    found.counts["training_left_behind_bytes"] = max(0, grown)
    inputs = batch(group, model)
    if restored is None:
        return found
    if group.spec.quantization["library"] == "bitsandbytes":
        _dequantized_whole(group, copy.deepcopy(restored), again, found)
    first, second = (_forward(group, m, inputs) for m in (model, restored))
    found.counts["saved_output_differing"] = int((first != second).sum())
    if group.spec.at_least("deep"):
        errors = [_dequantize_error(modules[path], own, found) for path, own in again.items()]
        found.counts["dequantized_after_forward_differing"] = sum(error > ROUNDING for error in errors)
        after, _ = _saved(group, model, again, found)
        found.counts["saved_after_forward_differing"] = after
    return found


def _save_and_reload(group: Group, model: Any, held: dict[str, Stored | Affine], into: RoundTrip) -> Any:
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
    into: RoundTrip,
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


def _saved(group: Group, model: Any, held: dict[str, Stored | Affine], into: RoundTrip) -> tuple[int, Any]:
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


def _dequantize_error(module: Any, held: Stored | Affine, into: RoundTrip) -> float:
    """The library's own dequantization against ours, in eps of its dtype times the largest weight; where it raises
    (then told in the facts) or has another shape, as if it were off by the largest weight."""
    try:
        with under_test("dequantize"):
            theirs = stack_api.dequantized_by_library(module)
    except StackError as error:
        into.facts.setdefault("dequantize", f"raised {type(error.original).__name__}: {error.original}"[:160])
        return 1 / torch.finfo(torch.float32).eps
    own = dequantize.dequantize(held)
    if theirs.shape != own.shape:
        return 1 / torch.finfo(theirs.dtype).eps
    unit = torch.finfo(theirs.dtype).eps * float(own.abs().max())
    return float((theirs.double() - own.double()).abs().max()) / max(unit, 1e-60)


def _dequantized_whole(group: Group, model: Any, held: dict[str, Stored | Affine], into: RoundTrip) -> None:
    """What `model.dequantize()` leaves behind: each linear with the weight that our own arithmetic makes of what it
    held, up to the rounding of its dtype, and every other parameter, biases among them, as it was."""
    codes = {f"{path}.weight" for path in held}
    others = {n: p.detach().clone() for n, p in model.named_parameters() if n not in codes}
    with under_test("dequantize"):
        plain = model.dequantize()
    after, names = dict(plain.named_parameters()), []
    for path, own in held.items():
        weight, expected = after.get(f"{path}.weight"), dequantize.dequantize(own)
        if weight is None or weight.shape != expected.shape or weight.dtype != group.dtype:
            names.append(f"{path}.weight")
            continue
        unit = torch.finfo(weight.dtype).eps * float(expected.abs().max())
        if float((weight.double() - expected.to(weight.device).double()).abs().max()) > ROUNDING * unit:
            names.append(f"{path}.weight")
    for name, parameter in others.items():
        if name not in after or not torch.equal(parameter, after[name].to(parameter.dtype)):
            names.append(name)
    into.counts["dequantized_model_differing"] = len(names)
    if names:
        into.facts["dequantized_model_differing_in"] = names[:6]


def _train(
    group: Group, modules: dict[str, Any], held: dict[str, Stored | Affine], kernels: Kernels, found: RoundTrip
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
        exact = Exact(group, path, held[path])
        found.training.append(exact.error(flat, y.detach()))
        if dx is not None:
            found.gradients.append(exact.gradient_error(dy, dx))
