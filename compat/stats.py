"""Statistics of paired timings. Pure: lists of numbers in, numbers out."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence


def paired_ratios(candidate: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """baseline / candidate of each pair: above 1 the candidate is faster. Raises ValueError for unequal lengths."""
    return [b / c for c, b in zip(candidate, baseline, strict=True)]


def median_interval(values: Sequence[float], seed: int = 0, resamples: int = 400) -> tuple[float, float]:
    """95% interval of the median by the percentile bootstrap (Efron and Tibshirani, 1993, chapter 13).

    The same values and seed give the same interval. Raises ValueError for no values.
    """
    if not values:
        raise ValueError("no values")
    generator = random.Random(seed)
    count = len(values)
    medians = sorted(statistics.median(generator.choices(values, k=count)) for _ in range(resamples))
    return medians[math.floor(0.025 * (resamples - 1))], medians[math.ceil(0.975 * (resamples - 1))]
