"""Places of axis ticks. Pure: the least and greatest value in, ticks out that enclose both.

Every function returns at least two ticks in rising order, the first at or below the least value and the last at or
above the greatest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LEAST, GREATEST = 1e-12, 1e18
"""Bounds of what a logarithmic axis shows; what lies beyond is drawn at the edge."""

FEWEST, MOST = 3, 7
"""How many ticks an axis should have."""

_MANTISSAS = (
    (1.0,),
    (1.0, 3.0),
    (1.0, 2.0, 5.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0),
)
_STEPS = (1.0, 2.0, 2.5, 5.0)


def linear_ticks(low: float, high: float, most: int = MOST) -> tuple[float, ...]:
    """About `most` ticks at equal distances of 1, 2, 2.5 or 5 times a power of ten."""
    low, high = max(low, -GREATEST), min(high, GREATEST)
    if high - low <= 1e-9 * max(abs(low), abs(high), LEAST):
        spread = max(abs(low), abs(high)) * 0.1 or 1.0
        low, high = (0.0 if low == 0 else low - spread), high + spread
    rough = (high - low) / (most - 2)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((s * power for s in _STEPS if s * power >= rough), 10 * power)
    first = math.floor(low / step + 1e-9)
    count = 1
    while (first + count) * step < high * (1 - 1e-9 if high > 0 else 1 + 1e-9):
        count += 1
    ticks = [_round((first + i) * step) for i in range(count + 1)]
    ticks[0], ticks[-1] = min(ticks[0], low), max(ticks[-1], high)
    return tuple(ticks)


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Ticks for a logarithmic axis: the set of round numbers that fits best, at 1, 2, 5 and the like in each decade."""
    low, high = clamped(low), clamped(high)
    if high < 1.15 * low:
        low, high = clamped(low / 1.1), clamped(high * 1.1)
    if high <= low:
        return (low, 10 * low) if low < GREATEST else (low / 10, low)
    found = [_in_decades(low, high, mantissas) for mantissas in _MANTISSAS]
    if high < 3 * low and (level := linear_ticks(low, high))[0] > 0:
        found.append(level)
    fitting = [ticks for ticks in found if FEWEST <= len(ticks) <= MOST]
    if fitting:
        return min(fitting, key=lambda ticks: (ticks[-1] / ticks[0], abs(len(ticks) - 5)))
    return _powers(low, high, 10.0)


def size_ticks(low: float, high: float) -> tuple[float, ...]:
    """Ticks for bytes on a logarithmic axis: powers of two."""
    low, high = clamped(low), clamped(high)
    if high < 2 * low:
        low, high = clamped(low / 1.5), clamped(high * 1.5)
    return _powers(low, high, 2.0)


def clamped(value: float) -> float:
    """`value` within what a logarithmic axis shows."""
    return min(max(value, LEAST), GREATEST)


def _in_decades(low: float, high: float, mantissas: Sequence[float]) -> tuple[float, ...]:
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    every = [_round(m * 10.0**power) for power in range(first, last + 1) for m in mantissas]
    below = max(i for i, t in enumerate(every) if t <= low)
    above = min(i for i, t in enumerate(every) if t >= high)
    return tuple(every[below : above + 1])


def _powers(low: float, high: float, base: float) -> tuple[float, ...]:
    """Powers of `base`, some left out evenly where there would be too many."""
    first = math.floor(math.log(low, base) + 1e-9)
    last = math.ceil(math.log(high, base) - 1e-9)
    step = max(1, math.ceil((last - first) / (MOST - 1)))
    count = max(1, math.ceil((last - first) / step))
    ticks = [base ** (first + step * i) for i in range(count + 1)]
    ticks[0], ticks[-1] = min(ticks[0], low), max(ticks[-1], high)
    return tuple(ticks)


def _round(value: float) -> float:
    """`value` without the dust of binary fractions."""
    return float(f"{value:.9g}")
