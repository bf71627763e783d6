"""Say which cells of a run are meant in a few patterns such as `falcon/{fp16,bf16}/sdpa*/none`.

In: some cells, and all cells of their run. Out: patterns over the axes. A pattern read as a selector over the run picks
exactly the cells it stands for: `*` means every value that the run has there, never more than was seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from compat.render.grids import AXES, in_order
from compat.render.inert import label

Box = tuple[frozenset[str], ...]


class Placed(Protocol):
    """Anything with a place on every axis: a cell, or what became of one."""

    @property
    def axes(self) -> Mapping[str, str]:
        """Axis -> value."""
        ...


@dataclass(frozen=True)
class Patterns:
    """`texts` stand for `shown` of `total` cells; the rest is said by number."""

    texts: tuple[str, ...]
    shown: int
    total: int

    @property
    def rest(self) -> str:
        """What the texts leave out, in words, or empty."""
        left = self.total - self.shown
        return f"{left} more cell{'s' * (left > 1)}" if left else ""

    @property
    def text(self) -> str:
        """All of it on one line."""
        listed = ", ".join(self.texts)
        return f"{listed} and {self.rest}" if self.rest else listed


def patterns(cells: Sequence[Placed], universe: Sequence[Placed], limit: int = 4) -> Patterns:
    """At most `limit` patterns for `cells` among `universe`, those that stand for most cells first."""
    axes = (*AXES, *sorted({name for c in universe for name in c.axes} - set(AXES)))
    points = list(dict.fromkeys(tuple(c.axes.get(a, "") for a in axes) for c in cells))
    everything = {tuple(c.axes.get(a, "") for a in axes) for c in universe}
    chosen = set(points)
    boxes = min((_cover(points, turn, len(axes)) for turn in range(len(axes))), key=len, default=[])
    left = set(points)
    texts: list[str] = []
    for box in sorted(boxes, key=_size, reverse=True):
        if len(texts) < limit and any(_holds(box, p) for p in left):
            grown = _grow(box, chosen, everything)
            left = {p for p in left if not _holds(grown, p)}
            texts.append(_text(axes, grown, everything))
    return Patterns(tuple(texts), len(points) - len(left), len(points))


def _size(box: Box) -> int:
    return math.prod(len(values) for values in box)


def _holds(box: Box, point: tuple[str, ...]) -> bool:
    return all(value in values for value, values in zip(point, box, strict=True))


def _grow(box: Box, chosen: set[tuple[str, ...]], everything: set[tuple[str, ...]]) -> Box:
    """`box` with further values on each axis, where that lets in chosen points only (or none that the run has)."""
    for axis in (*range(len(box)), *range(len(box))):
        beside = [p for p in everything if all(p[j] in box[j] for j in range(len(box)) if j != axis)]
        good = {p[axis] for p in beside if p in chosen} - {p[axis] for p in beside if p not in chosen}
        box = (*box[:axis], box[axis] | good, *box[axis + 1 :])
    return box


def _cover(points: Sequence[tuple[str, ...]], turn: int, count: int) -> list[Box]:
    """Boxes that hold exactly `points`: join those which differ on one axis only, axis after axis, from `turn`."""
    boxes: list[Box] = [tuple(frozenset((v,)) for v in point) for point in points]
    for step in range(count):
        axis = (turn + step) % count
        joined: dict[Box, frozenset[str]] = {}
        for box in boxes:
            rest = box[:axis] + box[axis + 1 :]
            joined[rest] = joined.get(rest, frozenset()) | box[axis]
        boxes = [(*rest[:axis], values, *rest[axis:]) for rest, values in joined.items()]
    return boxes


def _text(axes: tuple[str, ...], box: Box, everything: set[tuple[str, ...]]) -> str:
    """`box` in words. Wildcards are tried one axis at a time, each against all that the earlier ones let in."""
    words: dict[int, str] = {}
    allowed: list[frozenset[str]] = list(box)
    for i in sorted(range(len(axes)), key=lambda i: axes[i] == "model"):
        others = [j for j in range(len(axes)) if j != i]
        possible = frozenset(p[i] for p in everything if all(p[j] in allowed[j] for j in others))
        words[i], allowed[i] = _values(axes[i], box[i], possible, frozenset(p[i] for p in everything))
    plain = [words[i] for i, axis in enumerate(axes) if axis in AXES]
    said = [i for i, a in enumerate(axes) if a not in AXES and box[i] != {""}]
    # a mode that is not plain is the fifth part of an id
    further = [words[i] if axes[i] == "mode" and "" not in box[i] else f"{label(axes[i], 40)}={words[i]}" for i in said]
    return "/".join(plain + further)


def _values(
    axis: str, chosen: frozenset[str], possible: frozenset[str], every: frozenset[str]
) -> tuple[str, frozenset[str]]:
    """One word for `chosen` (the value, `*`, `prefix*` or `{a,b}`), and which of `every` value that word lets in."""
    if len(chosen) == 1:
        return label(next(iter(chosen)), 60), chosen
    if chosen == possible:
        return "*", every
    prefix = _common_prefix(min(chosen), max(chosen))
    if len(prefix) > 2 and {v for v in possible if v.startswith(prefix)} == chosen:
        return label(prefix, 60) + "*", frozenset(v for v in every if v.startswith(prefix))
    others = possible - chosen
    if len(chosen) > 4 and len(others) <= 4:
        listed = ",".join(label(v, 60) for v in in_order(axis, sorted(others)))
        return "{all but " + listed + "}", every - others
    ordered = in_order(axis, sorted(chosen))
    few = ",".join(label(v, 60) for v in ordered[:6])
    return "{" + few + (f" and {len(ordered) - 6} more" if len(ordered) > 6 else "") + "}", chosen


def _common_prefix(first: str, second: str) -> str:
    """What two texts start with; of the smallest and the largest of a set, that is what all of it starts with."""
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    return first[:same]
