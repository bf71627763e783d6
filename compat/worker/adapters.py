"""A LoRA adapter on a model, and its gradients by our own arithmetic.

An adapter adds s B A to the weight W of a linear layer (LoRA, https://arxiv.org/abs/2106.09685, eq. 3), with
s = alpha / rank. With G the gradient of the loss with respect to W + s B A, those of the adapter are dL/dA = s B^T G
and dL/dB = s G A^T. G comes from the fp64 reference, whose weights are W + s B A meanwhile. Nothing of the base may get
a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from compat.worker import stack_api
from compat.worker.calls import under_test
from compat.worker.group import Group, Loaded
from compat.worker.metrics import rms
from compat.worker.report import Report
from compat.worker.training import Batch, Lesson, Step, reference_step, step, trainable

RANK = 4
ALPHA = 12
SIZE = 0.2
"""rms of s B A in units of W's: large enough to change the output, small enough to leave the model what it was."""


@dataclass(frozen=True)
class Adapter:
    """One adapted linear: its path in the model, A (rank, in) and B (out, rank) in fp64, and how W is stored."""

    path: str
    a: torch.Tensor
    b: torch.Tensor
    transposed: bool
    """Whether W is stored (in, out), as Conv1D does."""

    def added(self) -> torch.Tensor:
        """s B A in W's layout."""
        value = ALPHA / RANK * self.b @ self.a
        return value.t() if self.transposed else value

    def gradients(self, weight_gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(dL/dA, dL/dB) from the gradient of the effective weight, in W's layout."""
        g = weight_gradient.t() if self.transposed else weight_gradient
        return ALPHA / RANK * self.b.t() @ g, ALPHA / RANK * g @ self.a.t()


def measure(group: Group, loaded: Loaded, taught: Lesson, batch: Batch, report: Report) -> None:
    """Train an adapter on every linear layer for one step and compare. Raises StackError(phase="adapter")."""
    try:
        import peft
    except ImportError:
        report.facts["adapter"] = "peft is not installed"
        return
    paths = linears(group.reference.model)
    if not paths:
        report.facts["adapter"] = "no linear layer"
        return
    with trainable(loaded.model), _adapted(peft, group, loaded.model, paths) as (model, found):
        own = Loaded(group, loaded.attention, model, "reloaded")
        o = step(own, [batch], taught.count, [n for n, _ in model.named_parameters()])
        key = f"adapter {taught.rows.key()}"
        if key not in group.kept:
            group.kept[key] = _reference(group, taught, found)
        compare(group, found, o, group.kept[key], report)


def compare(group: Group, found: list[Adapter], o: Step, r: Step, report: Report) -> None:
    """Put the figures of one training step of the adapters `found` into `report`: `o` with all its gradients, `r` of a
    reference whose weights are W + s B A, with those of these weights."""
    eps = torch.finfo(group.dtype).eps
    expected: dict[str, torch.Tensor] = {}
    for adapter in found:
        gradient = r.parameters.get(f"{adapter.path}.weight")
        if gradient is None:  # the output does not depend on it (a pooler)
            continue
        for part, value in zip("AB", adapter.gradients(gradient), strict=True):
            expected[f"{adapter.path}.lora_{part}.default.weight"] = value
    prefix = "base_model.model."
    given = {n.removeprefix(prefix): g for n, g in o.parameters.items()}
    both = [n for n in expected if n in given]
    errors = {n: rms(given[n] - expected[n]) / (eps * rms(expected[n])) for n in both}
    report.measure("adapter_error", max(errors.values(), default=None), unit="eps rms(r)")
    report.measure("adapter_loss_error", abs(o.loss - r.loss) / (eps * abs(r.loss)), unit="eps |loss|")
    report.measure("adapter_missing", len(expected) - len(both), unit="tensors")
    report.measure("base_gradients", sum("lora_" not in n for n in given), unit="tensors")
    report.measure("compared_adapters", len(both), unit="tensors", better="higher")
    report.facts["adapter"] = f"{len(found)} linear layers, rank {RANK}, alpha {ALPHA}"
    if errors:
        report.facts["adapter_worst"] = max(errors, key=lambda n: errors[n])


def linears(model: Any) -> list[str]:
    """Paths of the linear layers but the output head, and but the output of a state-space mixer, whose fused kernel
    reads the weight itself: peft refuses it."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    mixers = {f"{p}.out_proj" for p, m in model.named_modules() if hasattr(m, "A_log")}
    return [p for p, m in model.named_modules() if m is not head and p not in mixers and is_linear(m)]


def is_linear(module: Any) -> bool:
    """Whether `module` multiplies by one weight matrix."""
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"


@contextmanager
def _adapted(peft: Any, group: Group, model: Any, paths: list[str]) -> Iterator[tuple[Any, list[Adapter]]]:
    """`model` with an adapter of drawn weights on every linear layer; as it was, afterwards."""
    trainables = {n: p.requires_grad for n, p in model.named_parameters()}
    with under_test("adapter"):
        wrapped = peft.get_peft_model(model, configured(peft, paths))
    try:
        yield wrapped.train(), draw(model, group.reference.model, set(paths))
    finally:
        with under_test("adapter"):
            wrapped.unload()
            stack_api.forget_input_gradients(model)  # which peft asks for, on most versions, whenever it wraps a model
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainables[name])


def configured(peft: Any, paths: list[str]) -> Any:
    """The configuration of an adapter on the linear layers at `paths`."""
    return peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=paths, bias="none")


def draw(model: Any, plain: Any, paths: set[str]) -> list[Adapter]:
    """Give every adapter in `model` weights drawn from its place, of a size that goes by the weights of `plain`; B is
    zero otherwise, and A had no gradient."""
    found: list[Adapter] = []
    for path, module in model.named_modules():
        if not (hasattr(module, "lora_A") and "default" in module.lora_A and path in paths):
            continue  # experts, which peft adapts by itself beside linear layers of the same name: B stays zero there
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        generator = torch.Generator().manual_seed(len(found) + 31)
        stored = plain.get_submodule(path)
        size = SIZE * rms(stored.weight.detach()) / (ALPHA / RANK * RANK**0.5)
        with torch.no_grad():
            a.copy_(torch.randn(a.shape, generator=generator))
            b.copy_(torch.randn(b.shape, generator=generator) * size)
        transposed = type(stored).__name__ == "Conv1D"
        found.append(Adapter(path, a.detach().double().clone(), b.detach().double().clone(), transposed))
    return found


def _reference(group: Group, taught: Lesson, adapters: list[Adapter]) -> Any:
    """The reference's step with W + s B A for W."""
    model = group.reference.model
    weights = {a.path: model.get_submodule(a.path).weight for a in adapters}
    before = {path: w.detach().clone() for path, w in weights.items()}
    try:
        with torch.no_grad():
            for adapter in adapters:
                weights[adapter.path].add_(adapter.added())
        return reference_step(group, taught, [f"{a.path}.weight" for a in adapters])
    finally:
        with torch.no_grad():
            for path, weight in weights.items():
                weight.copy_(before[path])
