"""Lay the cells of a run out as tables that hold every cell exactly once.

In: the cells of a run. Out: panels (one for each quantization and each set of further axis values), each with one
grid of models by attention for each dtype. All orders are fixed, so that two runs can be read side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from compat.axes import QUANTIZATIONS
from compat.records import Cell

AXES: tuple[str, ...] = ("model", "dtype", "attention", "quantization")
"""The axes every cell has, in the order of a cell's id."""

REPEAT = "repeat"
"""A pseudo-axis for cells whose axes all equal those of an earlier cell: they must not hide each other."""

ORDER: dict[str, tuple[str, ...]] = {
    "dtype": ("fp32", "fp16", "bf16"),
    "quantization": QUANTIZATIONS.names,
    "attention": (
        "eager",
        "sdpa",
        "sdpa-math",
        "sdpa-flash",
        "sdpa-efficient",
        "sdpa-cudnn",
        "flash_attention_2",
        "flash_attention_2-legacy",
        "flash_attention_3",
        "flash_attention_4",
        "flex_attention",
    ),
    "mode": (
        "compile",
        "compile-fullgraph",
        "compile-static",
        "export",
        "device-map-auto",
        "max-memory",
        "cpu-offload",
        "disk-offload",
        "two-gpus",
        "lora",
        "lora-merged",
        "pruned-50",
        "sparse-2:4",
    ),
}
"""Well-known values come first, in this order; others, and all models, keep the order of the run."""

Extras = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Grid:
    """Models by attention for one dtype of a panel."""

    dtype: str
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)

    def at(self, model: str, attention: str) -> Cell | None:
        """The cell there, or None when the matrix does not hold it."""
        return self.cells.get((model, attention))

    def among(self, values: Iterable[str], place: int) -> tuple[str, ...]:
        """Those of `values` (models, `place` 0, or attention backends, 1) that have a cell in this dtype."""
        here = {key[place] for key in self.cells}
        return tuple(v for v in values if v in here)


@dataclass(frozen=True)
class Panel:
    """The grids that share a quantization and further axes; they share rows and columns too."""

    quantization: str
    extras: Extras
    models: tuple[str, ...]
    attentions: tuple[str, ...]
    grids: tuple[Grid, ...]
    missing_models: tuple[str, ...]
    """Models of the run without a cell here, so that leaving their rows out is said."""

    @property
    def title(self) -> str:
        """What the cells of this panel have in common, in words."""
        words = [f"quantization {self.quantization or '(empty)'}", *(f"{name} {value}" for name, value in self.extras)]
        return ", ".join(words)


def axis_value(cell: Cell, axis: str) -> str:
    """The cell's value on `axis`, or empty."""
    return cell.axes.get(axis, "")


def in_order(axis: str, values: Iterable[str]) -> tuple[str, ...]:
    """Distinct `values` of `axis`: the well-known first, others in the order they came in."""
    known = ORDER.get(axis, ())
    distinct = list(dict.fromkeys(values))
    return tuple(sorted(distinct, key=lambda v: known.index(v) if v in known else len(known)))


def shared_extras(cells: Sequence[Cell]) -> Extras:
    """Further axis values that all cells have in common: said once for the run, not in each title."""
    if not cells:
        return ()
    common = set(cells[0].axes.items()).intersection(*(c.axes.items() for c in cells[1:]))
    return tuple(sorted((name, value) for name, value in common if name not in AXES))


def panels(cells: Sequence[Cell]) -> tuple[Panel, ...]:
    """All panels of `cells`: plain ones before those with further axis values, quantizations in their order."""
    said = set(shared_extras(cells))
    places: dict[tuple[Extras, str], list[Cell]] = {}
    seen: Counter[tuple[tuple[str, str], ...]] = Counter()
    for cell in cells:
        coordinates = tuple(sorted(cell.axes.items()))
        seen[coordinates] += 1
        extras = tuple((n, v) for n, v in coordinates if n not in AXES and (n, v) not in said)
        if seen[coordinates] > 1:
            extras += ((REPEAT, str(seen[coordinates])),)
        places.setdefault((extras, axis_value(cell, "quantization")), []).append(cell)
    everyone = tuple(dict.fromkeys(axis_value(c, "model") for c in cells))
    modes = in_order("mode", (axis_value(c, "mode") for c in cells))
    all_extras = sorted({extras for extras, _ in places}, key=lambda e: (len(e), _rank(e, modes), e))
    quantizations = in_order("quantization", (q for _, q in places))
    keys = [(e, q) for e in all_extras for q in quantizations if (e, q) in places]
    return tuple(_panel(extras, q, places[extras, q], everyone) for extras, q in keys)


def _rank(extras: Extras, modes: Sequence[str]) -> int:
    """Where the mode among `extras` stands in its order."""
    return next((modes.index(value) for name, value in extras if name == "mode"), -1)


def _panel(extras: Extras, quantization: str, cells: Sequence[Cell], everyone: tuple[str, ...]) -> Panel:
    here = {axis_value(c, "model") for c in cells}
    grids = {dtype: Grid(dtype) for dtype in in_order("dtype", (axis_value(c, "dtype") for c in cells))}
    for cell in cells:
        place = (axis_value(cell, "model"), axis_value(cell, "attention"))
        grids[axis_value(cell, "dtype")].cells[place] = cell
    return Panel(
        quantization=quantization,
        extras=extras,
        models=tuple(m for m in everyone if m in here),
        attentions=in_order("attention", (axis_value(c, "attention") for c in cells)),
        grids=tuple(grids.values()),
        missing_models=tuple(m for m in everyone if m not in here),
    )
