"""Summarise what each attention backend gains over eager, or over what else its speed was compared with.

In: the cells of a run whose `speed` check measured `prefill_speedup` or `decode_speedup` (ratio to it, higher is
better) at one point a phase; what was measured on a grid stands in tables of its own (compat.render.exhibits). Out: for
each backend and phase the median, quartiles and range over cells, and in how many cells the 95% interval lies wholly
above or below 1. Figures of different points never share a row. Cells that give wrong results are left out and
counted: the speed of a wrong answer is no speed.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from compat.judge import doubts
from compat.records import BAD, Cell, Measurement
from compat.render.figures import plural
from compat.render.grids import axis_value, in_order
from compat.render.points import Point, baseline_of, grouped, has_grid, point_of

PHASES: tuple[str, ...] = ("prefill", "decode")
CHECK = "speed"


@dataclass(frozen=True)
class Speedups:
    """One phase of one attention backend, over `cells` cells."""

    cells: int
    low: float
    quartile_low: float
    median: float
    quartile_high: float
    high: float
    faster: int
    """Cells whose interval lies wholly above 1."""
    slower: int
    """Cells whose interval lies wholly below 1."""


@dataclass(frozen=True)
class SpeedRow:
    """One attention backend; a phase that was never measured is None."""

    attention: str
    prefill: Speedups | None
    decode: Speedups | None
    at: str = ""
    """The point of these figures, where the rows of a table have different ones."""

    def phase(self, name: str) -> Speedups | None:
        """The phase called `name`, one of `PHASES`."""
        return {"prefill": self.prefill, "decode": self.decode}[name]


@dataclass(frozen=True)
class Speed:
    """All rows, in the order of backends."""

    rows: tuple[SpeedRow, ...]
    left_out: int
    """Cells with a measured speed that fail another check."""
    doubted: int = 0
    """Cells with a figure that something speaks against (a disturbed machine, too wide an interval); it is not here."""
    at: str = ""
    """The point that all rows have in common, or empty."""
    baseline: str = "eager"
    """What the speedups are over."""

    @property
    def without(self) -> str:
        """What is not in the rows, in words; "" where nothing is left out."""
        told = [f"{plural(self.left_out, 'cell')} that fail another check"] if self.left_out else []
        if self.doubted:
            cells = plural(self.doubted, "cell")
            told.append(f"doubtful figures of {cells} (a disturbed machine, or too wide an interval)")
        return f"Left out: {', and '.join(told)}." if told else ""


def speed(cells: Sequence[Cell]) -> Speed:
    """The speed table of `cells`; no rows when nothing was measured at one point alone."""
    gridded = {id(c) for group in grouped(cells) if has_grid(group) for c in group}
    timed = [c for c in cells if id(c) not in gridded and any(_measured(c, phase) for phase in PHASES)]
    trusted = [c for c in timed if not any(k.outcome in BAD for k in c.checks if k.name != CHECK)]
    found = {(id(c), phase): m for c in trusted for phase in PHASES if (m := _measured(c, phase))}
    points = sorted({point_of(m) for m in found.values()}, key=lambda p: (p is not None, p or Point(0, 0, 0.0)))
    rows = []
    for attention in in_order("attention", (axis_value(c, "attention") for c in trusted)):
        here = [c for c in trusted if axis_value(c, "attention") == attention]
        for point in points:
            phases = [[m for c in here if (m := found.get((id(c), p))) and point_of(m) == point] for p in PHASES]
            if any(phases):
                at = point.text if point is not None and len(points) > 1 else ""
                prefill, decode = (_speedups(measured) for measured in phases)
                rows.append(SpeedRow(attention, prefill, decode, at))
    common = points[0].text if len(points) == 1 and points[0] is not None else ""
    once = [c for c in cells if id(c) not in gridded]
    doubted = sum(any(_figure(c, phase) and not _measured(c, phase) for phase in PHASES) for c in once)
    return Speed(tuple(rows), len(timed) - len(trusted), doubted, common, baseline_of(trusted))


def _figure(cell: Cell, phase: str) -> Measurement | None:
    check = cell.check(CHECK)
    found = check.measurement(f"{phase}_speedup") if check else None
    return found if found is not None and found.value is not None and found.value > 0 else None


def _measured(cell: Cell, phase: str) -> Measurement | None:
    """The figure, where nothing speaks against it."""
    check = cell.check(CHECK)
    against = {d.phase for d in doubts(check)} if check else set()
    return None if phase in against else _figure(cell, phase)


def _speedups(measurements: Sequence[Measurement]) -> Speedups | None:
    values = sorted(m.value for m in measurements if m.value is not None)
    if not values:
        return None
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    intervals = [m.ci95 for m in measurements if m.ci95 is not None]
    return Speedups(
        cells=len(values),
        low=values[0],
        quartile_low=quartiles[0],
        median=quartiles[1],
        quartile_high=quartiles[2],
        high=values[-1],
        faster=sum(low > 1 for low, _ in intervals),
        slower=sum(high < 1 for _, high in intervals),
    )
