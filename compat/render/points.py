"""Lay the figures of the speed check out by the point of the grid at which each was measured.

In: the cells of a run. Out: families (cells that differ in attention alone) with one sheet a metric: points down,
backends across, and for every place without a figure the reason. A family is laid out when a phase of it was measured
at two points at least; one point a phase is the summary of compat.render.speed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compat.judge import doubts
from compat.records import BAD, Cell, Check, Measurement, Outcome
from compat.render.grids import AXES, REPEAT, axis_value, in_order, shared_extras
from compat.render.inert import label, one_line
from compat.render.symbols import symbol

CHECK = "speed"
LONGEST, MOST_ROWS = 10**9, 10**6
"""Largest length and batch of a point; what lies beyond was not measured on any machine."""


@dataclass(frozen=True, order=True)
class Point:
    """A point of a grid: rows, tokens of the longest row (for decode: of the cache), share of pads among positions."""

    batch: int
    length: int
    padding: float

    @property
    def text(self) -> str:
        """`4 x 2048`, or `4 x 2048, 30% pads`."""
        return f"{self.batch} x {self.length}" + (f", {self.pads} pads" if self.padding else "")

    @property
    def pads(self) -> str:
        """The share of pads, such as `30%`."""
        return f"{100 * self.padding:.3g}%"


@dataclass(frozen=True)
class Metric:
    """A measurement of the speed check that has a point. `kind` says how its values are written and drawn."""

    name: str
    title: str
    phase: str
    kind: str
    """`ratio`, `rate`, `bytes`, `seconds`, `share`, `flops`, `bytes_rate` or `energy`."""
    core: bool = False
    """Shown at once and drawn; of the others only the shares are, all in one."""
    timed: bool = True
    """Whether noise of the clock makes it uncertain."""


METRICS: tuple[Metric, ...] = (
    Metric("prefill_speedup", "Prefill speedup over {baseline}", "prefill", "ratio", core=True),
    Metric("prefill_rate", "Prefill rate, real tokens/s", "prefill", "rate", core=True),
    Metric("prefill_peak_bytes", "Peak activation memory of a prefill", "prefill", "bytes", core=True, timed=False),
    Metric("decode_speedup", "Decode speedup over {baseline}", "decode", "ratio", core=True),
    Metric("decode_rate", "Decode rate, tokens/s", "decode", "rate", core=True),
    Metric("time_to_first_token", "Time to first token", "prefill", "seconds"),
    Metric("time_per_output_token", "Time per output token", "decode", "seconds"),
    Metric("attention_flops", "FLOP/s of one attention call", "attention", "flops"),
    Metric("attention_flops_share", "attention FLOP/s", "attention", "share"),
    Metric("attention_bytes_rate", "Bytes/s of one attention call", "attention", "bytes_rate"),
    Metric("attention_bytes_share", "attention bytes/s", "attention", "share"),
    Metric("prefill_flops_share", "prefill FLOP/s", "prefill", "share"),
    Metric("decode_bytes_share", "decode bytes/s", "decode", "share"),
    Metric("prefill_energy", "Energy of a prefill, J/token", "prefill", "energy"),
    Metric("decode_energy", "Energy of decoding, J/token", "decode", "energy"),
)

_NAMED = re.compile(r"(?P<batch>\d{1,9})x(?P<length>\d{1,9})@(?P<padding>[\d.]{1,9})(?: (?P<phase>\w+))?")
"""How the check names a point that it left out: `4x2048@0.3`, or with the phase that alone was left out behind it."""


@dataclass(frozen=True)
class Figure:
    """A measured value, with its 95% interval where there is one, or else the range of its samples."""

    value: float
    low: float | None = None
    high: float | None = None
    interval: bool = False
    """Whether `low` and `high` are a 95% interval; otherwise they are the least and greatest sample."""
    firm: bool = True
    """False where the measurement is inconclusive: too wide an interval, or a disturbed machine."""


@dataclass(frozen=True)
class Sheet:
    """One metric of a family. Every attention at every point has either a figure or the reason why there is none."""

    metric: Metric
    title: str
    points: tuple[Point, ...]
    attentions: tuple[str, ...]
    figures: dict[tuple[str, Point], Figure]
    gaps: dict[tuple[str, Point], str]
    nowhere: tuple[tuple[Point, str], ...] = ()
    """Points that were asked for and that no backend was measured at, and why."""


@dataclass(frozen=True)
class Family:
    """The cells that share all axes but attention."""

    model: str
    dtype: str
    quantization: str
    extras: tuple[tuple[str, str], ...]
    cells: tuple[Cell, ...] = field(repr=False)
    sheets: tuple[Sheet, ...] = ()
    absent: tuple[tuple[str, str], ...] = ()
    """Backends without a single figure, and why."""
    baseline: str = "eager"

    @property
    def title(self) -> str:
        """`llama-7b, bf16, quantization none`."""
        words = [label(self.model, 80), label(self.dtype, 40), f"quantization {label(self.quantization, 60)}"]
        return ", ".join([*words, *(f"{label(n, 40)} {label(v, 60)}" for n, v in self.extras)])


def point_of(measurement: Measurement) -> Point | None:
    """The point of a measurement, or None where it has none that can be meant."""
    return point_from(measurement.at)


def point_from(at: Mapping[str, Any]) -> Point | None:
    """The point that a mapping with `length`, `batch` and `padding` names; None where it names none."""
    length, batch, padding = (_number(at.get(k, d)) for k, d in (("length", None), ("batch", 1), ("padding", 0.0)))
    if length is None or batch is None or padding is None:
        return None
    if not (1 <= length <= LONGEST and 1 <= batch <= MOST_ROWS and 0 <= padding < 1):
        return None
    return Point(int(batch), int(length), round(padding, 4))


def _number(value: Any) -> float | None:
    """`value` where it is a finite number."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300
    return float(value) if good else None


def speed_check(cell: Cell) -> Check | None:
    """The speed check of a cell."""
    return cell.check(CHECK)


def wrong(cell: Cell) -> Check | None:
    """Another check that the cell fails: the speed of a wrong answer is no speed."""
    return next((k for k in cell.checks if k.name != CHECK and k.outcome in BAD), None)


def grid_points(cells: Iterable[Cell], phase: str) -> set[Point]:
    """The points at which any of `cells` measured `phase` (`prefill` or `decode`)."""
    names = {m.name for m in METRICS if m.phase == phase}
    checks = [check for cell in cells if (check := speed_check(cell))]
    return {p for check in checks for m in check.measurements if m.name in names and (p := point_of(m))}


def has_grid(cells: Sequence[Cell]) -> bool:
    """Whether a phase of these cells was measured at two points at least."""
    return any(len(grid_points(cells, phase)) > 1 for phase in ("prefill", "decode", "attention"))


def grouped(cells: Sequence[Cell]) -> tuple[tuple[Cell, ...], ...]:
    """`cells` with a speed check, those that share all axes but attention together, in the order of the run."""
    found: dict[tuple[object, ...], list[Cell]] = {}
    seen: Counter[tuple[tuple[str, str], ...]] = Counter()
    for cell in cells:
        if speed_check(cell) is None:
            continue
        everything = tuple(sorted(cell.axes.items()))
        seen[everything] += 1
        rest = tuple(pair for pair in everything if pair[0] != "attention")
        found.setdefault((rest, seen[everything]), []).append(cell)
    return tuple(tuple(group) for group in found.values())


def families(cells: Sequence[Cell]) -> tuple[Family, ...]:
    """Every family of `cells` that was measured on a grid."""
    said = set(shared_extras(cells))
    groups = [group for group in grouped(cells) if has_grid(group)]
    seen: Counter[tuple[object, ...]] = Counter()
    made = []
    for group in groups:
        axes = group[0].axes
        extras = tuple(sorted((n, v) for n, v in axes.items() if n not in AXES and (n, v) not in said))
        key = tuple(sorted((n, v) for n, v in axes.items() if n != "attention"))
        seen[key] += 1
        if seen[key] > 1:
            extras = (*extras, (REPEAT, str(seen[key])))
        made.append(_family(group, extras))
    return tuple(made)


def _family(cells: tuple[Cell, ...], extras: tuple[tuple[str, str], ...]) -> Family:
    axes = cells[0].axes
    order = in_order("attention", (axis_value(c, "attention") for c in cells))
    by_attention = {axis_value(c, "attention"): c for c in cells}
    trusted = {a: by_attention[a] for a in order if wrong(by_attention[a]) is None}
    baseline = baseline_of(cells)
    sheets = tuple(s for m in METRICS if (s := _sheet(m, trusted, baseline)) is not None)
    shown = {a for sheet in sheets for a in sheet.attentions}
    absent = tuple((a, _nothing(by_attention[a])) for a in order if a not in shown)
    return Family(
        model=axes.get("model", ""),
        dtype=axes.get("dtype", ""),
        quantization=axes.get("quantization", ""),
        extras=extras,
        cells=cells,
        sheets=sheets,
        absent=absent,
        baseline=baseline,
    )


def baseline_of(cells: Sequence[Cell]) -> str:
    """What the speedups of `cells` are over: a backend of theirs, or the id of another cell."""
    said = {b for c in cells if (k := speed_check(c)) and isinstance(b := k.evidence.facts.get("baseline"), str) and b}
    if len(said) != 1:
        return "their baseline" if said else "eager"
    (one,) = said
    own = next((axis_value(c, "attention") for c in cells if c.id == one), "")
    return label(own or one, 80)


def _nothing(cell: Cell) -> str:
    """Why a cell has no figure at all."""
    if bad := wrong(cell):
        return f"its check {label(bad.name, 40)} is {symbol(bad.outcome).word}: the speed of a wrong answer is left out"
    check = speed_check(cell)
    return _of_outcome(check) if check else "not asked"


def _of_outcome(check: Check) -> str:
    if check.outcome in (Outcome.PASS, Outcome.DEGRADED):
        return "not measured"
    word = symbol(check.outcome).word
    reason = one_line(check.reason, 160)
    return f"{word}: {reason}" if reason else word


def _sheet(metric: Metric, cells: dict[str, Cell], baseline: str) -> Sheet | None:
    measured: dict[str, dict[Point, Measurement]] = {}
    for attention, cell in cells.items():
        check = speed_check(cell)
        for measurement in check.measured(metric.name) if check else ():
            if point := point_of(measurement):
                measured.setdefault(attention, {}).setdefault(point, measurement)
    figures = {
        (attention, point): figure
        for attention, places in measured.items()
        for point, measurement in places.items()
        if (figure := figure_at(measurement, metric, cells[attention], point)) is not None
    }
    if not figures:
        return None
    attentions = tuple(
        a for a in cells if any(key[0] == a for key in figures) or _was_tried(metric, cells[a], baseline, a)
    )
    everywhere = sorted({p for _, p in figures}, key=lambda p: (p.padding, p.batch, p.length))
    gaps = {
        (a, p): _gap(metric, cells[a], p, p in measured.get(a, {}))
        for a in attentions
        for p in everywhere
        if (a, p) not in figures
    }
    asked = {p: a for a in reversed(attentions) for p in _tried(metric, cells[a])}
    nowhere = tuple((p, _gap(metric, cells[asked[p]], p, False)) for p in sorted(set(asked) - set(everywhere)))
    title = metric.title.format(baseline=baseline)
    return Sheet(metric, title, tuple(everywhere), attentions, figures, gaps, nowhere if metric.core else ())


def _was_tried(metric: Metric, cell: Cell, baseline: str, attention: str) -> bool:
    """Whether a core metric that this cell has no figure of was nevertheless asked for, at some point."""
    if not metric.core or (metric.kind == "ratio" and attention == baseline):
        return False
    return bool(_tried(metric, cell))


def _tried(metric: Metric, cell: Cell) -> set[Point]:
    """The points of the phase that the check reports of, measured or left out."""
    found = {p for entry in _entries(cell) if entry.get("phase") == metric.phase and (p := point_from(entry))}
    return found | {p for p, phase in _left_out(cell) if phase in ("", metric.phase)}


def _entries(cell: Cell) -> list[dict[str, Any]]:
    check = speed_check(cell)
    points = check.evidence.facts.get("points") if check else None
    return [entry for entry in points if isinstance(entry, dict)] if isinstance(points, list) else []


def _left_out(cell: Cell) -> dict[tuple[Point, str], str]:
    """Point and phase (empty for all of them) -> why the check did not measure there."""
    check = speed_check(cell)
    told = check.evidence.facts.get("left_out") if check else None
    found: dict[tuple[Point, str], str] = {}
    for name, why in told.items() if isinstance(told, dict) else ():
        match = _NAMED.fullmatch(str(name))
        if match and (point := _point_named(match)) is not None:
            found[point, match["phase"] or ""] = one_line(str(why), 160) or "no reason was recorded"
    return found


def _point_named(match: re.Match[str]) -> Point | None:
    try:
        return point_from({k: float(match[k]) for k in ("batch", "length", "padding")})
    except ValueError:
        return None


def figure_at(measurement: Measurement, metric: Metric, cell: Cell, point: Point) -> Figure | None:
    """The figure of `measurement`, or None where it has no finite value."""
    value = measurement.value
    if value is None or not math.isfinite(value):
        return None
    firm = not metric.timed or _firm(cell, metric.phase, point)
    if measurement.ci95 is not None and all(map(math.isfinite, measurement.ci95)):
        low, high = measurement.ci95
        return Figure(value, min(low, value), max(high, value), True, firm)
    samples = [v for v in measurement.values if v is not None and math.isfinite(v)]
    if len(samples) > 1 and metric.kind != "ratio":
        return Figure(value, min(*samples, value), max(*samples, value), False, firm)
    return Figure(value, firm=firm)


def _firm(cell: Cell, phase: str, point: Point) -> bool:
    """False where something speaks against this point, or where all of an inconclusive check has to be doubted."""
    check = speed_check(cell)
    if check is None:
        return False
    doubted = {(d.phase, point_from(d.at)) for d in doubts(check)}
    if (phase, point) in doubted:
        return False
    return check.outcome is not Outcome.INCONCLUSIVE or bool(doubted)


def _gap(metric: Metric, cell: Cell, point: Point, not_finite: bool) -> str:
    """Why the cell has no figure of `metric` at `point`."""
    check = speed_check(cell)
    facts = check.evidence.facts if check else {}
    left_out = _left_out(cell)
    phase = "prefill" if metric.phase == "attention" else metric.phase
    why = left_out.get((point, phase)) or left_out.get((point, ""))
    entry = next((e for e in _entries(cell) if e.get("phase") == phase and point_from(e) == point), None)
    if entry is not None and metric.kind == "ratio" and not entry.get("baseline_seconds"):
        return "the baseline does not fit" if why else "the baseline has no time here"
    if not_finite:
        return "not finite"
    if why and entry is None:
        return why
    if metric.phase == "attention" and isinstance(facts.get("attention_alone"), str):
        return one_line(facts["attention_alone"], 160)
    return _of_outcome(check) if check and check.outcome in BAD else "not measured"
