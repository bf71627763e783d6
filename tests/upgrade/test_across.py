"""Two stacks that were asked the same: laws of the judgement, on answers as workers give them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.execute.across import differences
from compat.records import Measurement
from compat.upgrade import across
from compat.upgrade.across import CAUSES, FOLLOW, PATHS, compared, rules
from compat.upgrade.result import Kind

CELL, AXES = (
    "llama/bf16/sdpa/bnb-nf4",
    {"model": "llama", "dtype": "bf16", "attention": "sdpa", "quantization": "bnb-nf4"},
)
SETTINGS = st.fixed_dictionaries(
    {
        "do_sample": st.booleans(),
        "max_new_tokens": st.sampled_from([None, 20, 256]),
        "padding_side": st.sampled_from(["left", "right"]),
    }
)
PARTS = st.fixed_dictionaries(
    {
        "held": st.fixed_dictionaries(
            {
                "attention": st.sampled_from(["eager", "sdpa"]),
                "dtypes": st.sampled_from([{"bfloat16": 1.0}, {"bfloat16": 0.9, "float32": 0.1}]),
                "training": st.booleans(),
                "weights_bytes": st.sampled_from([1000, 1020, 3000]),
                "says_quantized": st.booleans(),
                "quantized_share": st.sampled_from([0.0, 0.5, 0.995, 1.0]),
                "quantized_kinds": st.sampled_from([[], ["Linear4bit"]]),
            }
        ),
        "forward": st.sampled_from(
            [{"kernels": ["aten::_softmax"]}, {"kernels": ["aten::_scaled_dot_product_flash_attention_for_cpu"]}]
        ),
        "load_defaults": st.fixed_dictionaries({"attention": st.sampled_from(["eager", "sdpa"])}),
        "dtype_default": st.fixed_dictionaries({"dtype": st.sampled_from(["float32", "bfloat16"])}),
        "generate_defaults": SETTINGS,
        "pipeline_defaults": st.one_of(
            SETTINGS, st.just({"raised": {"phase": "pipeline", "type": "KeyError", "message": "no such task"}})
        ),
    }
)
NUMBER = st.floats(0, 100, allow_nan=False)


@st.composite
def path(draw: st.DrawFn, errors: bool = True) -> dict[str, Any]:
    """Figures of one path."""
    found: dict[str, Any] = {
        "elements": 9,
        "nonfinite": [0, draw(st.sampled_from([0, 0, 3]))],
        "difference": draw(NUMBER),
        "difference_token": draw(NUMBER),
    }
    return found | ({"errors": [draw(NUMBER), draw(NUMBER)]} if errors else {})


FIGURES = st.fixed_dictionaries(
    {
        "status": st.just("ok"),
        "facts": st.just({}),
        "paths": st.fixed_dictionaries({"reference": path(errors=False), **{p: path() for p in PATHS}}),
        "tokens": st.fixed_dictionaries(
            {"compared": st.just(24), "differing": st.just(2), "first_at": st.just([3]), "gaps": st.tuples(NUMBER)}
        ),
    }
)
SAME: dict[str, Any] = {
    "status": "ok",
    "facts": {},
    "paths": {
        p: {"elements": 9, "nonfinite": [0, 0], "difference": 0.0, "difference_token": 0.0, "errors": [1.0, 1.0]}
        for p in ("reference", *PATHS)
    },
    "tokens": {"compared": 24, "differing": 0, "first_at": [], "gaps": []},
}


def _judged(before: Any, after: Any, figures: Any) -> Any:
    ok = {"status": "ok"}
    return compared(CELL, AXES, {**ok, "parts": copy.deepcopy(before)}, {**ok, "parts": copy.deepcopy(after)}, figures)


@given(PARTS)
def test_a_stack_against_itself_has_no_finding(parts: dict[str, Any]) -> None:
    made = _judged(parts, parts, SAME)
    assert made.status == "compared"
    assert made.findings == ()
    assert {m.name for m in made.measurements} >= {"unpadded_difference", "token_gap", "quantized_share_lost"}


@given(PARTS, PARTS, FIGURES)
def test_every_figure_beyond_its_bound_and_every_other_fact_is_found_once(
    before: dict[str, Any], after: dict[str, Any], figures: dict[str, Any]
) -> None:
    made = _judged(before, after, figures)
    found = [f.name for f in made.findings]
    assert len(found) == len(set(found))
    bounds = {r.name: r.bound for r in rules().figures}
    beyond = {m.name for m in made.measurements if m.value is not None and m.value > bounds[m.name]}
    assert beyond == {f.name for f in made.findings if f.bound is not None}
    assert ("default_dtype" in found) == (before["dtype_default"] != after["dtype_default"])
    raised = ["raised" in side["pipeline_defaults"] for side in (before, after)]
    assert ("raised.pipeline_defaults" in found) == (raised[0] != raised[1])
    if not any(raised):
        differing = {
            f"pipeline.{k}" for k, v in before["pipeline_defaults"].items() if after["pipeline_defaults"][k] != v
        }
        assert {n for n in found if n.startswith("pipeline.")} == differing
    assert all(across.known(name) for name in found), "bisect can be asked for every finding"


@given(PARTS, PARTS)
def test_swapping_the_stacks_swaps_what_facts_say(before: dict[str, Any], after: dict[str, Any]) -> None:
    one, other = _judged(before, after, SAME), _judged(after, before, SAME)
    facts = [{f.name: (f.before, f.after) for f in m.findings if f.bound is None and f.kind is Kind.CHANGED}
             for m in (one, other)]  # fmt: skip
    assert facts[0] == {name: (b, a) for name, (a, b) in facts[1].items()}


@given(PARTS, PARTS, FIGURES)
def test_what_follows_from_another_names_one_that_is_there_and_no_circle(
    before: dict[str, Any], after: dict[str, Any], figures: dict[str, Any]
) -> None:
    found = {f.name: f for f in _judged(before, after, figures).findings}
    for finding in found.values():
        seen = {finding.name}
        while finding.because:
            assert finding.name in FOLLOW
            finding = found[finding.because]
            assert finding.name not in seen
            seen.add(finding.name)
    if "quantized_share_lost" in found:
        assert all(found[name].because for name in found if name.endswith("_difference"))


@given(NUMBER, NUMBER)
def test_errors_against_fp64_decide_the_direction(before: float, after: float) -> None:
    figures = copy.deepcopy(SAME)
    figures["paths"]["left_padded"] |= {"difference": 50.0, "errors": [before, after]}
    (finding,) = _judged({}, {}, figures).findings
    if after > 3 and after > before:
        assert finding.kind is Kind.REGRESSED
    elif before > 3 >= after:
        assert finding.kind is Kind.FIXED
    else:
        assert finding.kind is Kind.CHANGED


def test_where_the_reference_itself_changed_neither_side_is_called_wrong() -> None:
    figures = copy.deepcopy(SAME)
    figures["paths"]["reference"]["difference"] = 40.0
    figures["paths"]["unpadded"] |= {"difference": 40.0, "errors": [1.0, 40.0]}
    found = {f.name: f for f in _judged({}, {}, figures).findings}
    assert found["unpadded_difference"].kind is Kind.CHANGED
    assert found["unpadded_difference"].because == "reference_difference"


RAISED = {"status": "raised", "phase": "load", "exception": {"type": "KeyError", "message": "surprise"}}
REFUSED = {
    "status": "raised",
    "phase": "load",
    "exception": {
        "type": "ValueError",
        "message": "X does not support an attention implementation through "
        "torch.nn.functional.scaled_dot_product_attention yet. Please request",
    },
}
OK = {"status": "ok", "parts": {}}


@pytest.mark.parametrize(
    ("before", "after", "status", "kinds"),
    [
        (OK, RAISED, "not_comparable", [Kind.REGRESSED]),
        (OK, REFUSED, "not_comparable", [Kind.COVERAGE]),
        (OK, {"status": "unavailable", "reason": "no gguf"}, "not_comparable", [Kind.COVERAGE]),
        (OK, {"status": "crash", "reason": "killed"}, "not_comparable", [Kind.REGRESSED]),
        (REFUSED, OK, "not_comparable", [Kind.GAINED]),
        (REFUSED, RAISED, "not_comparable", []),
        ({"status": "error", "exception": {"type": "TypeError", "message": "ours"}}, OK, "error", []),
        (OK, {"status": "error", "exception": {"type": "TypeError", "message": "ours"}}, "error", []),
    ],
)
def test_a_side_that_does_not_answer(before: Any, after: Any, status: str, kinds: list[Kind]) -> None:
    made = compared(CELL, AXES, before, after, None)
    assert made.status == status
    assert made.reason
    assert [f.kind for f in made.findings] == kinds


def test_a_comparison_that_fails_is_the_harnesss_fault() -> None:
    made = compared(CELL, AXES, OK, OK, {"status": "error", "exception": {"type": "OSError", "message": "disk full"}})
    assert made.status == "error"
    assert "disk full" in made.reason


def test_the_table_names_each_thing_once_with_its_source() -> None:
    figures, facts = rules().figures, rules().facts
    assert len({r.name for r in figures}) == len(figures)
    assert len({r.called for r in facts}) == len(facts)
    assert all(r.source and r.words for r in figures)
    assert all(r.source and r.words for r in facts)
    assert set(CAUSES) <= {r.name for r in figures} | {r.called for r in facts}
    assert not across.known("unpadded_differenc")


def _speedup(low: float, high: float) -> tuple[Measurement, ...]:
    at = {"batch": 2.0, "length": 128.0, "padding": 0.0}
    return (Measurement(name="decode_speedup", unit="x", value=(low + high) / 2, ci95=(low, high), at=at),)


@given(st.lists(st.tuples(st.floats(0.5, 1.5), st.floats(0, 0.2)), min_size=1, max_size=3))
def test_a_difference_of_speed_needs_every_interval_beyond_the_bound_on_one_side(
    drawn: list[tuple[float, float]],
) -> None:
    bound = rules().timing.slower
    found = differences(CELL, [_speedup(low, low + width) for low, width in drawn])
    slower = all(low + width < 1 - bound for low, width in drawn)
    faster = all(low > 1 + bound for low, _ in drawn)
    assert [f.kind for f in found] == ([Kind.SLOWER] if slower else [Kind.FASTER] if faster else [])


def test_nothing_timed_states_nothing() -> None:
    assert differences(CELL, []) == ()
