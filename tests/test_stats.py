"""Laws of the statistics of paired timings."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.stats import median_interval, paired_ratios

SECONDS = st.floats(1e-6, 1e3)
SAMPLES = st.lists(SECONDS, min_size=1, max_size=20)


@given(SAMPLES)
def test_the_interval_holds_the_median_and_lies_within_the_samples(values: list[float]) -> None:
    low, high = median_interval(values)
    assert low <= statistics.median(values) <= high
    assert min(values) <= low
    assert high <= max(values)


@given(SAMPLES, st.integers(0, 5))
def test_the_same_values_and_seed_give_the_same_interval(values: list[float], seed: int) -> None:
    assert median_interval(values, seed) == median_interval(list(values), seed)


@given(SAMPLES)
def test_equal_times_give_a_ratio_of_exactly_one(values: list[float]) -> None:
    ratios = paired_ratios(values, values)
    assert ratios == [1.0] * len(values)
    assert median_interval(ratios) == (1.0, 1.0)


@given(SAMPLES)
def test_twice_as_fast_is_a_ratio_of_two(values: list[float]) -> None:
    assert paired_ratios(values, [2 * v for v in values]) == [2.0] * len(values)


@given(st.floats(1e-3, 1e3), st.lists(st.floats(0.5, 2.0), min_size=3, max_size=15))
def test_the_interval_scales_with_the_values(factor: float, values: list[float]) -> None:
    low, high = median_interval(values)
    scaled = median_interval([factor * v for v in values])
    assert scaled == pytest.approx((factor * low, factor * high))


def test_one_wild_sample_does_not_move_the_median_interval_far() -> None:
    low, high = median_interval([1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.01, 0.99, 50.0])
    assert low > 0.97
    assert high < 1.03, "one sample of ten that stands out must not widen the interval to it"


def test_no_values_and_unpaired_values_raise() -> None:
    with pytest.raises(ValueError, match="no values"):
        median_interval([])
    with pytest.raises(ValueError, match="shorter"):
        paired_ratios([1.0, 2.0], [1.0])
