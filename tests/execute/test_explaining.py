"""When a worker is asked why, and what becomes of its answer."""

from __future__ import annotations

from compat.execute.explaining import FULL_A_CAUSE, FULL_SECONDS, Explainer, explain_request, explained
from compat.records import Check, Evidence, Measurement, Outcome

BROKEN = Check(
    name="padding",
    outcome=Outcome.FAIL,
    reason="ratio_rms 9",
    measurements=(Measurement(name="ratio_rms", unit="ratio", value=9.0),),
    evidence=Evidence(signature="padding: ratio_rms", facts={"sides": ["left"]}),
)


def _replaced(**values: object) -> Check:
    import msgspec

    return msgspec.structs.replace(BROKEN, **values)


def test_only_figures_that_failed_are_asked_about() -> None:
    explainer = Explainer()
    assert explainer.effort("llama", BROKEN, True) == "full"
    assert explainer.effort("llama", _replaced(outcome=Outcome.DEGRADED), True) == "full"
    for outcome in set(Outcome) - {Outcome.FAIL, Outcome.DEGRADED}:
        assert explainer.effort("llama", _replaced(outcome=outcome), True) == ""
    assert explainer.effort("llama", _replaced(measurements=()), True) == "", "it raised: the exception says why"
    assert explainer.effort("llama", _replaced(name="speed"), True) == ""


def test_the_bisection_is_for_the_first_check_of_a_cell_and_the_first_cells_of_a_cause() -> None:
    explainer = Explainer()
    assert explainer.effort("llama", BROKEN, False) == "case"
    efforts = [explainer.effort("llama", BROKEN, True) for _ in range(FULL_A_CAUSE + 1)]
    assert efforts == ["full"] * FULL_A_CAUSE + ["case"]
    assert explainer.effort("gpt2", BROKEN, True) == "full", "another model may fail for another cause"


def test_a_run_spends_so_long_on_bisecting_and_no_longer() -> None:
    explainer = Explainer()
    explainer.took(FULL_SECONDS + 1)
    assert explainer.effort("llama", BROKEN, True) == "case"


def test_the_request_is_the_checks_own_with_its_bounds() -> None:
    own = {"op": "check", "check": "padding", "group": {"key": "g"}}
    asked = explain_request(own, {"ratio_rms": 1.5}, "full")
    assert asked.pop("seconds") > 0
    assert asked == {**own, "op": "explain", "limits": {"ratio_rms": 1.5}, "effort": "full"}


def test_an_answer_adds_evidence_and_changes_nothing_else() -> None:
    answer = {"status": "ok", "diverges_at": "model.norm", "minimal": {"case": {"kind": "forward"}}}
    found = explained(BROKEN, {"ratio_rms": 1.5}, answer)
    assert found.evidence.diverges_at == "model.norm"
    assert found.evidence.minimal == {"bounds": {"ratio_rms": 1.5}, "case": {"kind": "forward"}}
    assert (found.outcome, found.reason, found.measurements) == (BROKEN.outcome, BROKEN.reason, BROKEN.measurements)
    assert (found.evidence.signature, found.evidence.facts) == (BROKEN.evidence.signature, BROKEN.evidence.facts)


def test_no_answer_is_said() -> None:
    late = explained(BROKEN, {}, {"status": "timeout", "reason": "no answer within 15 s"})
    assert late.evidence.minimal["note"] == "no explanation: no answer within 15 s"
    ours = explained(BROKEN, {}, {"status": "error", "exception": {"type": "KeyError", "message": "'x'"}})
    assert ours.evidence.minimal["note"] == "no explanation: KeyError: 'x'"
    assert explained(BROKEN, {"ratio_rms": 1.5}, None).evidence.minimal == {"bounds": {"ratio_rms": 1.5}}
