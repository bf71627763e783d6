"""Write numbers, sizes and times the way people read them.

In: a number and its unit. Out: short text with four significant digits at most; what is missing is said, never blank.
"""

from __future__ import annotations

import json
import math
from typing import Any

from compat.records import Measurement, point_name
from compat.render.inert import clip, label, visible

NOT_FINITE = "not finite"


def figure(value: float | None, unit: str = "") -> str:
    """`value` with its unit. None is a figure that was not finite (see `Measurement`)."""
    if value is None or not math.isfinite(value):
        return NOT_FINITE
    if unit in ("bytes", "B"):
        return size(value)
    text = f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    if unit in ("x", "%"):
        return text + unit
    return f"{text} {label(unit, 20)}" if unit else text


def ratio(value: float) -> str:
    """A speedup with two decimals, such as `1.25x`."""
    return f"{bare_ratio(value)}x"


def bare_ratio(value: float) -> str:
    """A speedup without its unit."""
    return f"{value:.2f}" if value < 1000 else f"{value:.2e}"


def size(value: float) -> str:
    """A number of bytes in the largest unit that keeps it above one."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"


def duration(seconds: float) -> str:
    """Seconds as `0.31 s`, `12 s`, `4 min 05 s` or `2 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def measured(measurement: Measurement) -> str:
    """The measurement on one line: name, value, interval."""
    at = f" at {point_name(measurement.at)}" if measurement.at else ""
    text = f"{label(measurement.name, 60)}{at} = {figure(measurement.value, measurement.unit)}"
    if measurement.ci95 is not None:
        low, high = measurement.ci95
        text += f" (95% interval {figure(low)} to {figure(high, measurement.unit)})"
    return text


def plural(count: int, word: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def flat(facts: dict[str, Any], limit: int = 2000) -> list[tuple[str, str]]:
    """Nested `facts` as (dotted key, text) pairs in their order."""
    pairs: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            pairs += [(f"{label(key)}.{inner}", text) for inner, text in flat(value, limit)]
        else:
            pairs.append((label(key), plain(value, limit)))
    return pairs


def plain(value: Any, limit: int = 2000) -> str:
    """A JSON value as text for people: strings bare, numbers short, the rest as JSON."""
    if isinstance(value, str):
        return clip(visible(value[: limit + 1], lines=True), limit) or '""'
    if isinstance(value, float):
        return figure(value)
    return clip(visible(json.dumps(value, ensure_ascii=False, default=str), lines=True), limit)
