"""Laws of the statistics of paired timings."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.speed.stats import (
    LEAST_PAIRS,
    median_interval,
    order_interval,
    paired_ratios,
    relative_width,
    self_noise,
    stated,
)

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


@pytest.mark.parametrize(("count", "left"), [(6, 0), (9, 1), (12, 2), (20, 5), (100, 39)])
def test_the_order_interval_is_the_one_of_the_tables(count: int, left: int) -> None:
    """Conover, Practical Nonparametric Statistics, 1999: ranks of the 95% interval of a median."""
    values = [float(i) for i in range(count)]
    assert order_interval(values) == (left, count - 1 - left)


@given(st.lists(st.floats(0.9, 1.1), min_size=LEAST_PAIRS, max_size=40), st.randoms())
def test_the_order_interval_does_not_depend_on_the_order(values: list[float], draw: random.Random) -> None:
    shuffled = list(values)
    draw.shuffle(shuffled)
    assert order_interval(shuffled) == order_interval(values)


def test_the_interval_of_the_median_holds_it_as_often_as_it_says() -> None:
    draw = random.Random(5)
    for count in (6, 12, 40):
        hits = sum(
            low <= 1.0 <= high
            for low, high in (
                median_interval([1 + draw.gauss(0, 0.02) for _ in range(count)], resamples=50) for _ in range(400)
            )
        )
        assert hits >= 0.93 * 400, f"{count} values: {hits} of 400"


def test_a_difference_is_stated_only_beyond_the_least_effect() -> None:
    assert stated(1.02, 1.05) == "faster"
    assert stated(0.90, 0.98) == "slower"
    assert stated(1.001, 1.004) == "", "a third of a percent decides nothing"
    assert stated(0.97, 1.05) == ""


@given(st.floats(0.1, 10), st.floats(1.0, 3.0))
def test_a_speedup_and_its_inverse_are_stated_alike(low: float, factor: float) -> None:
    high = low * factor
    opposite = {"faster": "slower", "slower": "faster", "": ""}
    assert stated(1 / high, 1 / low) == opposite[stated(low, high)]
    assert relative_width(low, high) == pytest.approx(relative_width(1 / high, 1 / low))


def test_the_own_noise_compares_neighbours_only() -> None:
    assert self_noise([1.0, 1.0, 2.0, 2.0]) == 0, "a drift is no noise"
    assert self_noise([1.0, 1.1, 1.0, 1.1]) == pytest.approx(0.0953, abs=1e-3)
    assert self_noise([1.0]) == 0
