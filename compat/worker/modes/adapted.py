"""A LoRA adapter that is part of the model, as PEFT applies it or merged into the weights.

Its A and B are drawn (compat.worker.adapters), so that it matters. While it is apart the reference's weights are
W + s B A in fp64; once merged, the library's own merged weights, since merging rounds and quantizes again. How far
those are from W + s B A is measured, against the rounding that a weight of that kind has anyway.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from compat.worker import dequantize
from compat.worker.calls import Unavailable, under_test
from compat.worker.inputs import unpadded
from compat.worker.load import quantized_modules
from compat.worker.metrics import distance, rms

if TYPE_CHECKING:
    from compat.worker.group import Group, Loaded
    from compat.worker.report import Report

LENGTHS = (33, 57)

STEP_SEED = 930


class Adapted:
    """What the adapter of a group is, and what the weights were without it."""

    def __init__(self, found: list[Any], before: dict[str, torch.Tensor], merged: bool) -> None:
        self.found = found
        self.before = before
        """Module path -> W in fp64, (out, in) or as Conv1D stores it, by our own arithmetic where it is quantized."""
        self.merged = merged
        self.after: dict[str, torch.Tensor] = {}
        """The merged weights, likewise."""
        self.wrapped: dict[int, Any] = {}
        """id of a model -> PEFT's own wrapper of it."""

    def wanted(self, adapter: Any) -> torch.Tensor:
        """W + s B A."""
        value: torch.Tensor = self.before[adapter.path] + adapter.added().to(self.before[adapter.path].device)
        return value

    def to_reference(self, reference: Any) -> None:
        """Give the reference the weights that the model has, or ought to have."""
        for adapter in self.found:
            weight = self.after[adapter.path] if self.merged else self.wanted(adapter)
            reference.set_weight(adapter.path, weight)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise Unavailable("package peft is not installed, which applies adapters: pip install peft") from error
    return peft


def change(group: Group, model: Any, note: Callable[[Any], None]) -> dict[str, Any]:
    """See compat.worker.modes."""
    from compat.worker import adapters

    peft, merge = _peft(), group.mode.name == "lora-merged"
    paths = adapters.linears(group.master)
    before = {path: weight_of(group, model, path) for path in paths}
    if not merge:
        note(model)
    with under_test("adapter"):
        wrapped = peft.get_peft_model(model, adapters.configured(peft, paths))
    own = Adapted(adapters.draw(model, group.master, set(paths)), before, merge)
    with under_test("adapter"):
        wrapped.eval()
        if merge:
            wrapped.merge_and_unload()
    if merge:
        note(model)
        own.after = {adapter.path: weight_of(group, model, adapter.path) for adapter in own.found}
    if group.changes is None:
        group.changes = own
    group.changes.wrapped[id(model)] = wrapped
    return {"adapted": len(own.found)}


def weight_of(group: Group, model: Any, path: str) -> torch.Tensor:
    """The weight of a linear as it lies in `model`, fp64 in the checkpoint's layout, on the CPU."""
    module = model.get_submodule(path)
    if not dequantize.is_quantized(module):
        own: torch.Tensor = module.weight.detach().double().cpu()
        return own.clone()
    with under_test("quantized state"):
        held = dequantize.dequantize(dequantize.stored(module)).double().cpu()
    transposed = type(group.master.get_submodule(path)).__name__ == "Conv1D"
    return held.t().contiguous() if transposed else held


def seen(group: Group, loaded: Loaded) -> dict[str, Any]:
    """See compat.worker.modes."""
    own: Adapted = group.changes
    layers = [m for m in loaded.model.modules() if hasattr(m, "lora_A") and "default" in getattr(m, "lora_A", {})]
    if own.merged:
        return {
            "held": "no" if layers or not own.found else "yes",
            "words": f"{len(own.found)} linear layers merged, {len(layers)} adapters left",
            "quantized_modules": len(quantized_modules(loaded.model)),
        }
    active = [m for m in layers if "default" in m.active_adapters and not m.disable_adapters and not m.merged]
    held = bool(active) and len(active) == len(own.found)
    return {"held": "yes" if held else "no", "words": f"{len(active)} of {len(own.found)} adapters are active"}


def measure(group: Group, attention: dict[str, Any], report: Report) -> None:
    """What the adapter changes of the output; apart: one training step, saving and loading; merged: how far the weights
    are from W + s B A."""
    loaded = group.loaded(attention)
    own: Adapted = group.changes
    report.facts["adapter"] = f"{len(own.found)} linear layers"
    if own.merged:
        _merged(group, own, report)
        _saved_merged(group, loaded, report)
        return
    _effect(group, loaded, own, report)
    _base_kept(group, loaded, own, report)
    _saved(group, attention, report)
    _trained(group, attention, report)


def _inputs(group: Group, length: int) -> dict[str, Any]:
    rows = group.source.rows(700 + 1000 * group.spec.seed + length, [length] * 2)
    return unpadded(rows, group.device, group.dtype)


def _effect(group: Group, loaded: Loaded, own: Adapted, report: Report) -> None:
    """rms of what the adapter changes in the output, in units of the output's."""
    wrapped = own.wrapped[id(loaded.model)]
    changes = []
    for length in LENGTHS:
        with_it = loaded(**_inputs(group, length)).double()
        with under_test("adapter"), wrapped.disable_adapter():
            without = loaded(**_inputs(group, length)).double()
        changes.append(rms(with_it - without) / max(rms(without), 1e-300))
    report.measure("adapter_effect", changes, unit="rms(output)", better="higher", method="min")


def _base_kept(group: Group, loaded: Loaded, own: Adapted, report: Report) -> None:
    """Elements of the base weights that the adapter changed."""
    differing = 0
    for adapter in own.found:
        base = loaded.model.get_submodule(adapter.path).get_base_layer()
        if dequantize.is_quantized(base):  # repacked by a first forward on a CPU
            continue
        differing += int((base.weight.detach().double().cpu() != own.before[adapter.path]).sum())
    report.measure("base_differing", differing, unit="elements")


def _saved(group: Group, attention: dict[str, Any], report: Report) -> None:
    """A model with its adapter that has answered once is saved, and the adapter put on a fresh base: its tensors bit
    for bit, the output, and whether saving left the model as it was. Not the group's model, in case it does not."""
    peft, inputs = _peft(), _inputs(group, LENGTHS[0])
    loaded, own = group.fresh(attention), group.changes
    wrapped = own.wrapped[id(loaded.model)]
    before = loaded(**inputs)
    base = group.untouched(attention)
    with tempfile.TemporaryDirectory(prefix="compat-") as folder:
        with under_test("save"):
            wrapped.save_pretrained(folder)
        with under_test("reload"):
            again = peft.PeftModel.from_pretrained(base, folder).eval()
    held, theirs = ({n: p for n, p in model.named_parameters() if "lora_" in n} for model in (wrapped, again))
    lost = [n for n, p in held.items() if n not in theirs or not torch.equal(p, theirs[n])]
    report.measure("adapter_reload_differing", len(lost) + len(theirs.keys() - held.keys()), unit="tensors")
    report.measure("adapter_tensors", len(held), unit="tensors", better="higher")
    other = type(loaded)(group, attention, base, "reloaded")
    report.measure("adapter_reload_difference", distance(other(**inputs), before), unit="eps rms(output)")
    report.measure("saving_changes", distance(loaded(**inputs), before), unit="eps rms(output)")
    own.wrapped.pop(id(loaded.model))


def _trained(group: Group, attention: dict[str, Any], report: Report) -> None:
    """One training step of the adapters against the reference's."""
    from compat.worker import adapters
    from compat.worker.checks.gradient import batch_of
    from compat.worker.training import lesson, reference_step, step, trainable

    images = group.task == "image-classification"
    taught = lesson(group, STEP_SEED + 1000 * group.spec.seed, [0] * 3 if images else [41, 34])
    # bitsandbytes repacks 4-bit weights for inference on a CPU: what trains has not answered before
    loaded = group.fresh(attention) if group.spec.quantization["library"] else group.loaded(attention)
    own: Adapted = group.changes
    with trainable(loaded.model):
        o = step(loaded, [batch_of(group, loaded, taught, "right")], taught.count, _names(loaded.model))
    r = reference_step(group, taught, [f"{a.path}.weight" for a in own.found])
    adapters.compare(group, own.found, o, r, report)


def _names(model: Any) -> list[str]:
    return [n for n, _ in model.named_parameters()]


def _merged(group: Group, own: Adapted, report: Report) -> None:
    """Distance of the merged weights from W + s B A, in units of the error that storing such a weight has: an eps of
    the dtype, or that of quantizing the checkpoint's weight."""
    ratios, moved = [], []
    for adapter in own.found:
        wanted, after, before = own.wanted(adapter), own.after[adapter.path], own.before[adapter.path]
        moved.append(rms(after - before) / max(rms(adapter.added()), 1e-300))
        normal = torch.finfo(group.dtype).eps * rms(wanted)
        if f"{adapter.path}.weight" in group.quantized:
            master = group.master.get_submodule(adapter.path).weight.detach().double()
            normal = max(normal, rms(before - master) * rms(wanted) / rms(master))
        ratios.append(rms(after - wanted) / normal)
    report.measure("merge_error", ratios, unit="of storing a weight")
    report.measure("merge_effect", moved, unit="rms(s B A)", better="higher", method="min")


def _saved_merged(group: Group, loaded: Loaded, report: Report) -> None:
    """Tensors that a merged model has otherwise once it is saved and loaded again. Quantized weights are repacked by a
    first forward: not asked of them."""
    if group.spec.quantization["library"]:
        report.facts["reload"] = "not asked: a first forward repacks quantized weights"
        return
    from compat.worker.reload import saved_and_loaded

    report.measure("merged_reload_differing", len(saved_and_loaded(group, loaded)), unit="tensors")
