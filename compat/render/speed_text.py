"""Figures of the speed check in words: values with their intervals, what is missing, and what the machine did.

In: figures and sheets of compat.render.points. Out: short texts, inert.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from compat.records import Cell
from compat.render.figures import bare_ratio, figure, plural, ratio, size
from compat.render.inert import clip, label, one_line
from compat.render.points import Figure, Point, Sheet, speed_check
from compat.speed.stats import MIN_EFFECT, stated

DOUBT = "?"
"""Behind a figure that is inconclusive."""

LEGEND = (
    f"Speedups with their 95% interval; ~1.00x where no difference beyond {100 * MIN_EFFECT:g}% can be stated. "
    "Rates are of real tokens, pads are not counted. ? marks what is inconclusive."
)
"""How to read the tables, in every format."""

_ENGINE: tuple[tuple[str, str], ...] = (
    ("noise", "difference of neighbouring samples"),
    ("contention", "time in which the timed thread did not run"),
    ("device_rate", "rate of a fixed piece of work against the best"),
    ("host_share", "share of a sample in which the host was still launching"),
    ("overhead", "wall time outside timed and warm-up calls"),
)
"""What the engine says of itself: end of the measurement's name, and what it is."""

_STATE_LIMIT = 3
_UNITS = {"mhz": "MHz", "celsius": "degrees Celsius", "watts": "W"}
"""How the unit at the end of a name is written."""


def value_text(found: Figure, kind: str, *, plain: bool = False) -> str:
    """A figure with its 95% interval where that is what a reader decides by; `plain` leaves it out.

    A speedup that may as well be none is written as `~1.00x`, whatever its median.
    """
    doubt = "" if found.firm else f" {DOUBT}"
    low, high = found.low, found.high
    if kind == "ratio":
        if not found.interval or low is None or high is None:
            return f"{ratio(found.value)} [no interval]{doubt}"
        sure = low > 0 and stated(low, high)
        middle = ratio(found.value) if sure else "~1.00x"
        return middle + ("" if plain else f" [{bare_ratio(low)}, {bare_ratio(high)}]") + doubt
    text = bare_value(found.value, kind)
    if kind == "rate" and not plain and found.interval and low is not None and high is not None:
        text += f" [{bare_value(low, kind)}, {bare_value(high, kind)}]"
    return text + doubt


def bare_value(value: float, kind: str) -> str:
    """A value as short as its kind allows; rates without their unit."""
    if kind == "ratio":
        return ratio(value)
    if kind == "bytes":
        return size(value)
    if kind == "share":
        return f"{100 * value:.3g}%"
    if kind == "seconds":
        return f"{value:.3g} s" if abs(value) >= 1 else f"{1e3 * value:.3g} ms"
    if kind in ("flops", "bytes_rate"):
        return scaled(value, "FLOP/s" if kind == "flops" else "B/s")
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:#.3g}".rstrip(".")


def scaled(value: float, unit: str) -> str:
    """`312 TFLOP/s`."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} P{unit}"


def brief(why: str, unmeasured: str = "-") -> str:
    """Why a figure is missing, in a word or two for a table or a plot; `unmeasured` where nothing is known of it."""
    lower = why.lower()
    if why.startswith("the baseline"):
        return "no baseline"
    if "does not fit" in lower or "out of memory" in lower:
        return "oom"
    if why == "not measured":
        return unmeasured
    return clip(label(why).split(":")[0], 14)


def missing(sheet: Sheet) -> list[str]:
    """What a sheet has no figure of and why, one sentence a reason, and which of its figures are inconclusive."""
    found: dict[tuple[str, str], list[Point]] = {}
    for (attention, point), why in sheet.gaps.items():
        found.setdefault((attention, why), []).append(point)
    told = [f"{label(a, 60)} at {_listed(points)}: {why}." for (a, why), points in found.items()]
    text = [f"Missing: {' '.join(told)}"] if told else []
    doubted: dict[str, list[Point]] = {}
    for (attention, point), value in sheet.figures.items():
        if not value.firm:
            doubted.setdefault(attention, []).append(point)
    if doubted:
        every = {a: sum(1 for key in sheet.figures if key[0] == a) for a in doubted}
        which = "; ".join(
            f"{label(a, 60)} at {'every point' if 1 < every[a] == len(points) else _listed(points)}"
            for a, points in doubted.items()
        )
        text.append(f"Inconclusive ({DOUBT}, hollow): {which}.")
    return text


def nowhere(sheets: Sequence[Sheet]) -> list[str]:
    """The points that were asked for and that no backend was measured at, one sentence a reason."""
    found: dict[str, dict[Point, None]] = {}
    for sheet in sheets:
        for point, why in sheet.nowhere:
            found.setdefault(why, {})[point] = None
    return [f"No backend at {_listed(list(points))}: {why}." for why, points in found.items()]


def _listed(points: Sequence[Point]) -> str:
    shown = "; ".join(p.text for p in points[:4])
    return shown + (f" and {plural(len(points) - 4, 'other point')}" if len(points) > 4 else "")


# -- the machine -------------------------------------------------------------------------------------------------


def state(cells: Sequence[Cell]) -> tuple[tuple[str, str], ...]:
    """What the machine could do and did while `cells` were timed, as (label, text); nothing for what was not seen."""
    pairs = [
        ("ceilings", "; ".join(_ceilings(cells))),
        ("device", "; ".join(_device(cells))),
        ("engine", "; ".join(_engine(cells))),
    ]
    return tuple((name, text) for name, text in pairs if text)


def _facts(cells: Iterable[Cell], name: str) -> Iterator[dict[str, Any]]:
    for cell in cells:
        check = speed_check(cell)
        found = check.evidence.facts.get(name) if check else None
        if isinstance(found, dict):
            yield found


def _ceilings(cells: Sequence[Cell]) -> Iterator[str]:
    for key, name, unit in (
        ("matmul_flops_per_second", "matrix product", "FLOP/s"),
        ("copy_bytes_per_second", "copy", "B/s"),
    ):
        values = [v for f in _facts(cells, "ceilings") if (v := _number(f.get(key))) is not None]
        if values:
            yield f"{name} {_span(values, lambda v, unit=unit: scaled(v, unit))}"


def _device(cells: Sequence[Cell]) -> Iterator[str]:
    """Each thing that was recorded of the device before or after, over all cells."""
    seen: dict[str, list[Any]] = {}
    for when in ("device_before", "device_after"):
        for facts in _facts(cells, when):
            for key, value in facts.items():
                seen.setdefault(label(key, 40).replace("_", " "), []).append(value)
    for name, values in seen.items():
        numbers = [v for value in values if (v := _number(value)) is not None]
        if len(numbers) == len(values):
            words = name.split()
            unit = _UNITS.get(words[-1], "") if words else ""
            yield f"{' '.join(words[:-1]) if unit else name} {_span(numbers, lambda v: figure(v))} {unit}".rstrip()
        else:
            texts = list(dict.fromkeys(_words(v) for v in values))
            more = f" and {len(texts) - _STATE_LIMIT} more" if len(texts) > _STATE_LIMIT else ""
            yield f"{name} {' / '.join(texts[:_STATE_LIMIT])}{more}"


def _words(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(one_line(str(v), 60) for v in value[:6]) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unknown"}[value]
    return label(str(value), 80)


def _engine(cells: Sequence[Cell]) -> Iterator[str]:
    for ending, meaning in _ENGINE:
        values = [
            m.value
            for c in cells
            if (check := speed_check(c))
            for m in check.measurements
            if m.name in (f"prefill_{ending}", f"decode_{ending}") and m.value is not None and math.isfinite(m.value)
        ]
        if values:
            yield f"{meaning} {_span(values, lambda v: bare_value(v, 'share'))}"


def _span(values: Sequence[float], text: Any) -> str:
    low, high = text(min(values)), text(max(values))
    return str(low) if low == high else f"{low} to {high}"


def _number(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300
    return float(value) if good else None
