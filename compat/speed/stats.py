"""Statistics of paired timings. Pure: lists of numbers in, numbers out.

A comparison is a list of paired ratios baseline / candidate. Its figure is their median, its interval covers the median
of what they were drawn from in 95% of cases, and a difference is stated only where the whole interval lies beyond
MIN_EFFECT. benchmarks/timing_noise.py measures how often that is wrong.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from functools import cache

CONFIDENCE = 0.95

LEAST_PAIRS = 6
"""Fewest pairs for which an interval of CONFIDENCE exists: all six fall on one side in 2 of 64 cases."""

MIN_EFFECT = 0.01
"""Smallest relative difference that is stated: below it, placement of code and memory decide."""


def paired_ratios(candidate: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """baseline / candidate of each pair: above 1 the candidate is faster. Raises ValueError for unequal lengths."""
    return [b / c for c, b in zip(candidate, baseline, strict=True)]


def order_interval(values: Sequence[float]) -> tuple[float, float]:
    """Interval of the median between two order statistics, exact for any distribution (David and Nagaraja, Order
    Statistics, 2003, section 7.1). It covers CONFIDENCE or more from LEAST_PAIRS values on; fewer give their range.

    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    left = _left_out(len(ordered))
    return ordered[left], ordered[len(ordered) - 1 - left]


@cache
def _left_out(count: int) -> int:
    """How many of `count` ordered values the interval of the median leaves out on each side."""
    tail, k = 2 / 2**count, 0
    while tail <= 1 - CONFIDENCE:
        k += 1
        tail += 2 * math.comb(count, k) / 2**count
    return max(0, k - 1)


def median_interval(values: Sequence[float], seed: int = 0, resamples: int = 400) -> tuple[float, float]:
    """95% interval of the median: the percentile bootstrap (Efron and Tibshirani, 1993, chapter 13) and the order
    statistics together, since the bootstrap alone is too narrow for few values.

    The same values and seed give the same interval. Raises ValueError for no values.
    """
    low, high = order_interval(values)
    generator = random.Random(seed)
    count = len(values)
    medians = sorted(statistics.median(generator.choices(values, k=count)) for _ in range(resamples))
    tail = (1 - CONFIDENCE) / 2
    return (
        min(low, medians[math.floor(tail * (resamples - 1))]),
        max(high, medians[math.ceil((1 - tail) * (resamples - 1))]),
    )


def relative_width(low: float, high: float) -> float:
    """Width of an interval of positive ratios over its (geometric) middle."""
    return (high - low) / math.sqrt(low * high)


def stated(low: float, high: float) -> str:
    """`faster`, `slower`, or "" where the interval of a speedup allows either, or no difference beyond MIN_EFFECT."""
    if low > 1 + MIN_EFFECT:
        return "faster"
    return "slower" if high < 1 / (1 + MIN_EFFECT) else ""


def self_noise(seconds: Sequence[float]) -> float:
    """Median relative difference of two neighbouring samples of the same side: samples 1 and 2, 3 and 4, ...

    What the machine does to two calls that should take equally long; 0.0 for fewer than two samples.
    """
    pairs = zip(seconds[::2], seconds[1::2], strict=False)
    differences = [abs(math.log(a / b)) for a, b in pairs if a > 0 and b > 0]
    return statistics.median(differences) if differences else 0.0
