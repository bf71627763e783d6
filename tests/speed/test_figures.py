"""Laws of what follows from raw seconds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.speed.figures import figures

SECONDS = st.floats(1e-5, 10, allow_nan=False)
AT = {"batch": 4, "length": 2048, "padding": 0.3}


def _point(phase: str, pairs: list[tuple[float, float]], **more: Any) -> dict[str, Any]:
    own, base = [p[0] for p in pairs], [p[1] for p in pairs]
    return {"phase": phase, **AT, "tokens": 100, "unit": "tokens", "seconds": own, "baseline_seconds": base, **more}


PAIRS = st.lists(st.tuples(SECONDS, SECONDS), min_size=6, max_size=30)


@given(PAIRS, st.sampled_from(["prefill", "decode"]))
def test_every_figure_says_where_it_was_measured_and_lies_in_its_interval(
    pairs: list[tuple[float, float]], phase: str
) -> None:
    found = {m.name: m for m in figures({"points": [_point(phase, pairs)]})}
    for measurement in found.values():
        assert measurement.at == AT
        if measurement.ci95 is not None:
            low, high = measurement.ci95
            assert measurement.value is not None
            assert low <= measurement.value <= high
            assert low > 0
    assert len(found[f"{phase}_speedup"].values) == len(pairs)


@given(PAIRS)
def test_exchanging_the_sides_inverts_the_interval(pairs: list[tuple[float, float]]) -> None:
    one = {m.name: m for m in figures({"points": [_point("prefill", pairs)]})}["prefill_speedup"]
    other = {m.name: m for m in figures({"points": [_point("prefill", [(b, a) for a, b in pairs])]})}["prefill_speedup"]
    assert one.ci95 is not None
    assert other.ci95 is not None
    if len(pairs) % 2:  # the median of an even number lies between two, whose middle does not invert
        assert one.value == pytest.approx(1 / (other.value or 0), rel=1e-3)
    overlap = max(one.ci95[0], 1 / other.ci95[1]), min(one.ci95[1], 1 / other.ci95[0])
    assert overlap[0] <= overlap[1] * 1.001


def test_attained_shares_are_of_the_ceilings_of_the_same_run() -> None:
    point = _point("decode", [(0.5, 1.0)] * 6, steps=2, step_bytes=1000) | {
        "attention": {"seconds": [0.1, 0.1, 0.1], "flops": 200, "bytes": 40}
    }
    ceilings = {"matmul_flops_per_second": 8000.0, "copy_bytes_per_second": 10000.0}
    found = {m.name: m.value for m in figures({"points": [point], "ceilings": ceilings})}
    assert found["decode_bytes_share"] == pytest.approx(0.4)
    assert found["attention_flops"] == pytest.approx(2000)
    assert found["attention_flops_share"] == pytest.approx(0.25)
    assert found["attention_bytes_share"] == pytest.approx(0.04)
    assert found["time_per_output_token"] == pytest.approx(0.25)
    assert "decode_bytes_share" not in {m.name for m in figures({"points": [point]})}, "no ceiling, no share"


def test_a_pipeline_that_takes_longer_has_a_ratio_above_one() -> None:
    facts = {"pipeline": {"seconds": [1.2] * 6, "generate_seconds": [1.0] * 6}}
    found = {m.name: m for m in figures(facts)}
    assert found["pipeline_over_generate"].value == pytest.approx(1.2)
    assert found["pipeline_over_generate"].better == "lower"


def test_nothing_measured_gives_nothing() -> None:
    assert figures({}) == ()
    assert figures({"points": [], "pipeline": "none"}) == ()
