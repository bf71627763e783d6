"""Which module leaves first: every module's inputs and outputs, recorded by hooks and compared with fp64 and eager.

In: three recordings of the same rows: candidate o, yardstick e (eager, the row alone) and reference r (fp64, the row
alone). Out: the modules in the order in which the candidate ran them, from the first whose figures leave the
yardstick's own error there. A wrong *output* behind right inputs is the module's own; a wrong *input* behind right
outputs was computed by the module that was running, which is named instead: an attention function that no module wraps
is found as the attention module that called it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from compat.worker.metrics import floor, rms

Key = tuple[str, str, str, int]
"""Module path, `in` or `out`, which argument or output, and the how many-th call in one forward."""

MASKING = 1e30
"""A value beyond this is a mask's, not an activation's."""

FEW = 8
"""The mean over fewer positions than this is judged as a single one is."""

COUNTED = frozenset({"input_ids", "position_ids", "cache_position", "decoder_input_ids", "token_type_ids"})
"""Integer arguments that must be equal; others (the experts that a router chose) may fall either way at a tie."""


@dataclass(frozen=True)
class Window:
    """Where a row stands in one forward of the candidate, and which of its positions that are."""

    slot: int
    """Of the batch."""
    columns: int
    """Positions of the forward, pads included."""
    offset: int
    """The first column of the row's own."""
    first: int
    """The position of the row alone that it holds."""
    count: int


@dataclass
class Recording:
    """Tensors of one or several forwards, in the order in which they appeared."""

    root: str
    """What the model as a whole is called."""
    tensors: list[dict[Key, torch.Tensor]] = field(default_factory=list)
    """One a forward."""
    callers: dict[Key, str] = field(default_factory=dict)

    def add(self, key: Key, caller: str, tensor: torch.Tensor) -> None:
        self.tensors[-1].setdefault(key, tensor.detach().clone())
        self.callers.setdefault(key, caller)


@contextmanager
def recording(model: torch.nn.Module) -> Iterator[Recording]:
    """Record every forward of `model` inside the block; several forwards (decode steps) are kept side by side."""
    found = Recording(type(model).__name__)
    running: list[str] = []
    calls: Counter[tuple[str, str]] = Counter()

    def before(path: str) -> Callable[..., None]:
        def hook(module: Any, arguments: Any, keywords: Any) -> None:
            if not running:
                calls.clear()
                found.tensors.append({})
            number = calls[path, "in"]
            calls[path, "in"] += 1
            for name, tensor in tensors({str(i): a for i, a in enumerate(arguments)} | keywords):
                found.add((path, "in", name, number), running[-1] if running else "", tensor)
            running.append(path)

        return hook

    def after(path: str) -> Callable[..., None]:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            while running and running.pop() != path:  # a call that raised left its own entries behind
                pass
            number = calls[path, "out"]
            calls[path, "out"] += 1
            for name, tensor in tensors({"": output}):
                found.add((path, "out", name, number), path, tensor)

        return hook

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
        handles.append(module.register_forward_hook(after(path)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def tensors(values: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of arguments or outputs, without masks and nested tensors, whose rows have no common shape;
    tuples, lists and output objects are looked into."""
    for name, value in values.items():
        if "mask" in name:
            continue
        if isinstance(value, torch.Tensor):
            if value.dtype != torch.bool and value.device.type != "meta" and not value.is_nested:
                yield name, value
        elif depth < 2 and isinstance(value, (tuple, list)):
            yield from tensors({f"{name}.{i}": v for i, v in enumerate(value)}, depth + 1)
        elif depth < 2 and isinstance(value, dict):  # output objects of transformers are dicts
            yield from tensors({f"{name}.{k}": v for k, v in value.items()}, depth + 1)


@dataclass(frozen=True)
class Divergence:
    """A module that leaves, with its figures: E(o) over max(E(e), floor), over the tensor and in the worst token."""

    module: str
    ratio_rms: float | None
    """None: not finite where the reference is, or integers that differ."""
    ratio_token: float | None
    at: str = ""
    """The tensor: `output`, or the input of a module inside it."""

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        shown = [None if v is None else float(f"{v:.4g}") for v in (self.ratio_rms, self.ratio_token)]
        return {"module": self.module, "at": self.at, "ratio_rms": shown[0], "ratio_token": shown[1]}


@dataclass(frozen=True)
class Bounds:
    """Beyond either, a module has left."""

    rms: float
    token: float


def divergences(
    o: Recording,
    e: Recording | None,
    r: Recording,
    dtype: torch.dtype,
    bounds: Bounds,
    windows: Sequence[Window],
    rows: int,
    count: int = 3,
) -> list[Divergence]:
    """The first `count` modules that leave, in the candidate's order: forward by forward, module by module.

    `r` and `e` are single forwards of one row alone; `windows` say what of that row each forward of `o`, a batch of
    `rows`, holds. Without `e` (the candidate is the yardstick itself) errors are in units of the floor alone.
    """
    found: dict[str, Divergence] = {}
    yards = r if e is None else e
    for window, seen in zip(windows, o.tensors, strict=False):
        for key, tensor in seen.items():
            if len(found) == count:
                return list(found.values())
            right, yard = r.tensors[0].get(key), yards.tensors[0].get(key)
            if right is None or yard is None:
                continue
            if not tensor.dtype.is_floating_point and key[2] not in COUNTED:
                continue
            three = _same_part(tensor, yard, right, window, rows)
            figures = _figures(*three, dtype, _normal(yard, right)) if three is not None else None
            if figures is None:
                continue
            mean = bounds.rms if window.count >= FEW else bounds.token
            if _beyond(figures[0], mean) or _beyond(figures[1], bounds.token):
                name = (key[0] if key[1] == "out" else o.callers[key]) or o.root
                at = "output" if key[1] == "out" else f"input {key[2]} of {key[0]}"
                found.setdefault(name, Divergence(name, *figures, at))
    return list(found.values())


def _normal(e: torch.Tensor, r: torch.Tensor) -> float:
    """rms of the yardstick's error over the whole row: that of a single token may be small by chance."""
    if e.shape != r.shape or not r.dtype.is_floating_point:
        return 0.0
    error = rms(e.double() - r.double())
    return error if error < MASKING else 0.0


def _beyond(value: float | None, bound: float) -> bool:
    return value is None or value > bound


def _same_part(
    o: torch.Tensor, e: torch.Tensor, r: torch.Tensor, window: Window, rows: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """The positions of the window in all three, batch axis kept; None where their shapes have nothing in common."""
    if rows > 1 and o.dim() and o.shape[0] == rows * window.columns:
        o = o.reshape(rows, window.columns, *o.shape[1:])  # experts see a batch flattened
    if o.dim() and o.shape[0] == rows:
        o = o[window.slot : window.slot + 1]
    elif not (o.dim() and o.shape[0] == 1):
        return None
    axis = next((a for a in range(1, o.dim()) if o.shape[a] == window.columns), None)
    if axis is not None and r.dim() == o.dim() and r.shape[axis] >= window.first + window.count:
        o = o.narrow(axis, window.offset, window.count)
        e, r = (x.narrow(axis, window.first, window.count) for x in (e, r))
    return (o, e, r) if o.shape == e.shape == r.shape else None


def _figures(
    o: torch.Tensor, e: torch.Tensor, r: torch.Tensor, dtype: torch.dtype, normal: float = 0.0
) -> tuple[float | None, float | None] | None:
    """(ratio over the tensor, ratio in the worst token); None where there is nothing to compare."""
    if not o.numel():
        return None
    if not o.dtype.is_floating_point:
        return (0.0, 0.0) if torch.equal(o.to(r.dtype), r) else (None, None)
    wide_o, wide_e, wide_r = o.double(), e.double(), r.double()
    masked = float(wide_r.abs().max()) > MASKING
    if masked or not bool(wide_r.isfinite().all()) or not bool(wide_e.isfinite().all()):
        return None
    if not bool(wide_o.isfinite().all()):
        return None, None
    difference, yard = wide_o - wide_r, wide_e - wide_r
    base = max(rms(yard), normal, floor(wide_r, dtype), torch.finfo(dtype).tiny)
    if wide_r.dim() < 2:
        return rms(difference) / base, rms(difference) / base
    token, own = difference.square().mean(-1).sqrt(), yard.square().mean(-1).sqrt()
    return rms(difference) / base, float((token / own.clamp_min(base)).max())
