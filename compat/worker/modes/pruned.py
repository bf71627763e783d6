"""Pruned weights: half of each linear by magnitude, or two of every four in torch's semi-structured form.

What torch left is looked at by our own arithmetic: how many weights are zero, whether they are the smallest, whether
the others are what they were. The reference gets the weights that are really there, so that its answer says whether
they are multiplied rightly, and the check `mode` whether they are the right ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils import prune
from torch.profiler import ProfilerActivity, profile

from compat.worker import dequantize
from compat.worker.calls import under_test
from compat.worker.inputs import unpadded

if TYPE_CHECKING:
    from compat.worker.group import Group, Loaded
    from compat.worker.report import Report

SHARE = 0.5
"""Of the weights that are pruned, in both modes."""

SPARSE_KERNELS = ("sparse_semi_structured", "cslt_sparse_mm", "cutlass_sparse")
"""Parts of the names of operators that multiply by a weight in semi-structured form."""


@dataclass
class Pruned:
    """Module path -> W (out, in) or as Conv1D stores it, fp64 on the CPU, before and after."""

    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]
    left: dict[str, str]
    """Linear layers that were left alone -> why."""

    def to_reference(self, reference: Any) -> None:
        """Give the reference the weights that the model has."""
        for path, weight in self.after.items():
            reference.set_weight(path, weight)

    @property
    def zero_share(self) -> float:
        """Of all the weights that were to be pruned."""
        total = sum(w.numel() for w in self.after.values())
        return sum(int((w == 0).sum()) for w in self.after.values()) / max(total, 1)


def change(group: Group, model: Any, note: Callable[[Any], None]) -> dict[str, Any]:
    """See compat.worker.modes."""
    from compat.worker.adapters import linears
    from compat.worker.modes.adapted import weight_of

    paths, left = linears(group.master), {}
    before = {path: weight_of(group, model, path) for path in paths}
    if group.mode.name == "sparse-2:4":
        left = {p: why for p in paths if (why := _left_alone(model.get_submodule(p)))}
        paths = [p for p in paths if p not in left]
        for path in paths:
            module = model.get_submodule(path)
            kept = two_of_four(before[path]).to(module.weight.device)
            with torch.no_grad():
                module.weight.mul_(kept.to(module.weight.dtype))
        after = {path: weight_of(group, model, path) for path in paths}
        with under_test("prune"):
            for path in paths:
                module = model.get_submodule(path)
                sparse = torch.sparse.to_sparse_semi_structured(module.weight.detach())
                module.weight = torch.nn.Parameter(sparse, requires_grad=False)
        note(model)
    else:
        with under_test("prune"):
            for path in paths:
                module = model.get_submodule(path)
                prune.l1_unstructured(module, "weight", amount=SHARE)
                prune.remove(module, "weight")
        note(model)
        after = {path: weight_of(group, model, path) for path in paths}
    if group.changes is None:
        group.changes = Pruned({p: before[p] for p in paths}, after, left)
    return {"pruned": len(paths)}


def _left_alone(module: Any) -> str:
    """Why a linear layer has no semi-structured form, or ""."""
    if dequantize.is_quantized(module):
        return "its weight is quantized"
    return "" if isinstance(module, torch.nn.Linear) else "Conv1D keeps its weight the other way round"


def two_of_four(weight: torch.Tensor) -> torch.Tensor:
    """Mask (out, in) of bools: of every four neighbours in a row the two of largest magnitude, the first of equals."""
    fours = weight.abs().unflatten(-1, (-1, 4))
    order = fours.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(fours, dtype=torch.bool).scatter(-1, order[..., :2], True)
    return mask.flatten(-2)


def seen(group: Group, loaded: Loaded) -> dict[str, Any]:
    """See compat.worker.modes."""
    own: Pruned = group.changes
    share = own.zero_share
    if not own.after:
        return {"held": "nothing to do", "words": f"no layer can take it: {', '.join(sorted(set(own.left.values())))}"}
    facts: dict[str, Any] = {"zero_share": round(share, 6), "left_alone": dict(list(own.left.items())[:3])}
    # a weight may have been zero before; a pruned one that is not zero was not pruned
    held = share > SHARE - 0.01
    if group.mode.name == "sparse-2:4":
        kinds = {type(loaded.model.get_submodule(p).weight).__name__ for p in own.after}
        facts["weights"] = sorted(kinds)
        held = held and all("SparseSemiStructured" in kind for kind in kinds)
    return facts | {"held": "yes" if held else "no", "words": f"{share:.1%} of the linear layers' weights are zero"}


def measure(group: Group, attention: dict[str, Any], report: Report) -> None:
    """The share of zeros, whether they are the smallest weights and the others as they were; saved and loaded again; in
    semi-structured form, the operators that multiply by it."""
    loaded = group.loaded(attention)
    own: Pruned = group.changes
    sparse = group.mode.name == "sparse-2:4"
    shares, kept, wrong = [], 0, 0
    for path, after in own.after.items():
        before, zero = own.before[path], after == 0
        shares.append(abs(int(zero.sum()) / zero.numel() - SHARE))
        kept += int(((after != before) & ~zero).sum())
        wrong += not_the_smallest(before, zero, fours=sparse)
    report.measure("zero_share", own.zero_share, unit="of the weights", better="higher")
    report.measure("zero_share_error", shares, unit="of the weights")
    report.measure("kept_differing", kept, unit="elements")
    report.measure("pruned_wrongly", wrong, unit="elements")
    report.measure("pruned_layers", len(own.after), unit="layers", better="higher")
    if own.left:
        report.facts["left_alone"] = own.left
    if not own.after:
        return
    if sparse:
        _kernels(group, loaded, report)
    elif not group.spec.quantization["library"]:
        from compat.worker.reload import saved_and_loaded

        report.measure("pruned_reload_differing", len(saved_and_loaded(group, loaded)), unit="tensors")


def not_the_smallest(before: torch.Tensor, zero: torch.Tensor, fours: bool) -> int:
    """Pruned elements with a larger magnitude than one that was kept: in the whole weight, or among their four."""
    size = before.abs()
    if fours:
        size, zero = size.unflatten(-1, (-1, 4)), zero.unflatten(-1, (-1, 4))
    else:
        size, zero = size.flatten()[None], zero.flatten()[None]
    least = size.masked_fill(zero, torch.inf).amin(-1, keepdim=True)
    return int((zero & (size > least)).sum())


def _kernels(group: Group, loaded: Loaded, report: Report) -> None:
    """How often a forward multiplied by the sparse form. A dispatch mode does not see into a tensor subclass, so the
    profiler looks."""
    rows = group.source.rows(733 + 1000 * group.spec.seed, [64] * 2)
    inputs = unpadded(rows, group.device, group.dtype)
    loaded(**inputs)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        loaded(**inputs)
    names = [e.name for e in profiler.events() if any(part in e.name for part in SPARSE_KERNELS)]
    report.measure("sparse_products", len(names), unit="calls", better="higher")
    report.facts["sparse_operators"] = sorted(set(names))
