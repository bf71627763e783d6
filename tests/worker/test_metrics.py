"""Laws of the figures of the agreement criterion."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compat.worker.metrics import Agreement, compare, floor, rms
from compat.worker.report import Report

DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
SEEDS = st.integers(0, 10_000)


def _three(seed: int, dtype: torch.dtype, noise: float = 8.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """r, and two different noisy versions of it, `noise` eps away."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(9, 17, generator=generator, dtype=torch.float64) for _ in range(3)]
    eps = torch.finfo(dtype).eps * noise
    return draws[0], draws[0] + eps * draws[1], draws[0] + eps * draws[2]


@given(SEEDS, DTYPES)
def test_a_candidate_that_is_the_yardstick_has_ratios_of_one(seed: int, dtype: torch.dtype) -> None:
    r, e, _ = _three(seed, dtype)
    figures = compare(r, e, e, dtype, logits=True)
    assert figures.ratio_rms == 1.0
    assert figures.ratio_max == 1.0
    assert figures.ratio_token == pytest.approx(1.0)
    assert figures.kl == figures.kl_yardstick
    assert figures.candidate_eps == figures.yardstick_eps
    assert (figures.nonfinite, figures.elements, figures.tokens) == (0, 9 * 17, 9)


@given(SEEDS, DTYPES, st.floats(1.5, 100))
def test_twice_the_error_is_twice_the_ratio(seed: int, dtype: torch.dtype, factor: float) -> None:
    r, e, o = _three(seed, dtype)
    one, more = compare(r, e, o, dtype, logits=False), compare(r, e, r + factor * (o - r), dtype, logits=False)
    assert one.ratio_rms is not None
    assert one.ratio_token is not None
    assert one.ratio_max is not None
    assert more.ratio_rms == pytest.approx(factor * one.ratio_rms, rel=1e-6)
    assert more.ratio_token == pytest.approx(factor * one.ratio_token, rel=1e-6)
    assert more.ratio_max == pytest.approx(factor * one.ratio_max, rel=1e-6)


@given(SEEDS, DTYPES, st.integers(-6, 6))
def test_a_power_of_two_times_everything_changes_no_ratio(seed: int, dtype: torch.dtype, power: int) -> None:
    """The floor's (r + 0.3) - 0.3 is no scale-free figure; with errors well above it, the ratios are."""
    r, e, o = _three(seed, dtype, noise=1000.0)
    scale = 2.0**power
    one, scaled = compare(r, e, o, dtype, logits=False), compare(scale * r, scale * e, scale * o, dtype, logits=False)
    assert scaled.ratio_rms == pytest.approx(one.ratio_rms, rel=1e-9)
    assert scaled.yardstick_eps == pytest.approx(one.yardstick_eps, rel=1e-9)


@given(SEEDS, DTYPES)
def test_the_floor_keeps_an_exact_yardstick_from_dividing_by_nothing(seed: int, dtype: torch.dtype) -> None:
    r, _, _ = _three(seed, dtype)
    figures = compare(r, r, r, dtype, logits=False)
    assert (figures.ratio_rms, figures.ratio_token, figures.ratio_max, figures.yardstick_eps) == (0.0, 0.0, 0.0, 0.0)
    assert floor(r, dtype) >= torch.finfo(dtype).eps * rms(r) > 0


def test_one_bad_token_is_seen_by_the_token_ratio_and_not_by_the_mean() -> None:
    r, e, _ = _three(3, torch.bfloat16)
    o = e.clone()
    o[4] = r[4] + 4 * (e[4] - r[4])
    figures = compare(r.repeat(40, 1), e.repeat(40, 1), torch.cat([e.repeat(39, 1), o]), torch.bfloat16, logits=False)
    assert figures.ratio_rms is not None
    assert figures.ratio_token is not None
    assert figures.ratio_rms < 1.1
    assert figures.ratio_token > 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_counted_and_gives_no_ratio(bad: float) -> None:
    r, e, o = _three(1, torch.bfloat16)
    o[2, 3] = o[5, 6] = bad
    figures = compare(r, e, o, torch.bfloat16, logits=True)
    assert figures.nonfinite == 2
    assert (figures.ratio_rms, figures.ratio_token, figures.ratio_max, figures.kl) == (None,) * 4
    assert math.isfinite(figures.yardstick_eps), "the yardstick is told all the same"


def test_a_yardstick_that_is_not_finite_gives_no_number_that_passes() -> None:
    r, e, o = _three(1, torch.bfloat16)
    e[0, 0] = math.nan
    figures = compare(r, e, o, torch.bfloat16, logits=False)
    report = Report()
    report.measure("yardstick_error", [figures.yardstick_eps])
    assert report.measurements[0]["value"] is None


def test_tokens_where_the_reference_is_not_finite_are_left_out() -> None:
    r, e, o = _three(1, torch.bfloat16)
    r[0] = math.nan
    o[0] = math.nan
    figures = compare(r, e, o, torch.bfloat16, logits=False)
    assert (figures.nonfinite, figures.tokens) == (0, 8)
    r[:] = math.nan
    assert compare(r, e, o, torch.bfloat16, logits=True).elements == 0, "a comparison over nothing must say so"


def test_kl_is_the_divergence_from_the_reference() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]).double().log(), torch.tensor([[0.25, 0.25, 0.5]]).double().log()
    figures = compare(p, p + 3.0, q, torch.float32, logits=True)
    assert figures.kl == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2))
    assert figures.kl_yardstick == pytest.approx(0.0, abs=1e-15), "adding a constant to logits is nothing"
    assert compare(p, p, q, torch.float32, logits=False).kl is None


def test_a_report_derives_no_value_from_an_incomplete_measurement() -> None:
    report = Report(seed=3)
    report.measure("whole", [1.0, 3.0, 2.0])
    report.measure("holed", [1.0, None, 2.0])
    report.measure("wild", [1.0, math.inf])
    report.measure("single", 0.123456789)
    report.measure("none", None)
    report.measure("median", [4.0, 1.0, 2.0], method="median")
    values = {m["name"]: m["value"] for m in report.measurements}
    assert values == {"whole": 3.0, "holed": None, "wild": None, "single": 0.123457, "none": None, "median": 2.0}
    assert report.measurements[1]["values"] == [1.0, None, 2.0]


def test_figures_are_plain_numbers() -> None:
    figures: Agreement = compare(*_three(1, torch.float32), torch.float32, logits=True)
    assert all(isinstance(v, (int, float)) for v in vars(figures).values()), figures
