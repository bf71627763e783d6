"""The order in which sides are timed, and when it is enough. Pure but for the clock: a function in, seconds out.

Both comparisons use it: of two sides in one process (compat.worker.timing) and in two (compat.execute.paired).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from compat.speed.stats import order_interval, paired_ratios, relative_width

LEAST_ROUNDS = 3
"""Rounds of four calls: two pairs each, and six pairs have an interval (compat.speed.stats.LEAST_PAIRS)."""

TIGHT = 0.01
"""Relative width of the interval at which more samples are not worth their time."""

WIDE = 0.4
"""Relative width of an interval that states next to nothing (criteria/speed.toml refuses 0.5)."""

PATIENCE = 4.0
"""How many times its budget a comparison may take while its interval is that wide: a few interrupted samples of a busy
machine need more beside them."""

ORDER = {1: (0, 0), 2: (0, 1, 1, 0)}
"""Number of sides -> the sides of one round: A B B A, so that drift cancels."""


def alternate(
    sample: Callable[[int], float], sides: int, budget_seconds: float, most_rounds: int
) -> tuple[tuple[list[float], ...], str]:
    """Take samples of `sides` sides in rounds; the seconds of each, and why it stopped: `tight`, `budget`, `rounds`.

    The budget ends it, unless the interval is WIDE; then PATIENCE budgets do. Width alone decides, never the effect.
    """
    seconds: tuple[list[float], ...] = tuple([] for _ in range(sides))
    started = time.perf_counter()
    for done in range(1, most_rounds + 1):
        for side in ORDER[sides]:
            seconds[side].append(sample(side))
        if done >= LEAST_ROUNDS:
            width, spent = _width(seconds), time.perf_counter() - started
            if width <= TIGHT:
                return seconds, "tight"
            if spent >= budget_seconds * (1.0 if width <= WIDE else PATIENCE):
                return seconds, "budget"
    return seconds, "rounds"


def _width(seconds: Sequence[list[float]]) -> float:
    values = paired_ratios(seconds[0], seconds[1]) if len(seconds) == 2 else seconds[0]
    return relative_width(*order_interval(values))


def short(seconds: float) -> float:
    """Five significant digits: what is stored of a sample."""
    return float(f"{seconds:.5g}")
