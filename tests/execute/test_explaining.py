"""When a worker is asked why, and what becomes of its answer."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from compat.execute.explaining import (
    FULL_A_CAUSE,
    FULL_SECONDS,
    Explainer,
    asks,
    explain_request,
    explained,
    lost_device,
    pattern,
    raised_by,
    unasked,
)
from compat.records import Check, Evidence, ExceptionInfo, Measurement, Outcome

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


def _raised(kind: str, message: str, outcome: Outcome = Outcome.FAIL, refusal: str = "") -> Check:
    exception = ExceptionInfo(type=kind, message=message, refusal=refusal)
    evidence = Evidence(exception=exception, facts={"phase": "generate"}, signature="generate raised")
    return Check(name="speed", outcome=outcome, evidence=evidence)


def test_what_was_raised_is_asked_about_in_every_check() -> None:
    check = _raised("AssertionError", "\n N is 12, not 64\nmore")
    assert Explainer().effort("llama", check, True) == "full"
    assert Explainer().effort("llama", _raised("ValueError", "x", Outcome.UNSUPPORTED), True) == "", "it was a refusal"
    raised = raised_by(check, {})
    assert raised is not None
    assert (raised["phase"], raised["type"]) == ("generate", "AssertionError")
    assert re.search(raised["message"], "N is 5, not 128")
    assert not re.search(raised["message"], "M is 5, not 128")
    assert explain_request({"op": "check"}, {}, "full", raised)["raised"] == raised


def test_a_path_that_a_check_went_round_is_asked_about_where_nothing_else_failed() -> None:
    facts = {"raised": {"static generate": "generate: ValueError: too many values to unpack (expected 2)"}}
    check = _replaced(name="cache", evidence=Evidence(facts=facts))
    raised = raised_by(check, {"paths_raised": 0.0})
    assert raised is not None
    assert (raised["phase"], raised["type"]) == ("generate", "ValueError")
    assert re.search(raised["message"], "too many values to unpack (expected 3)")
    assert raised_by(check, {"paths_raised": 0.0, "ratio_rms": 2.0}) is None, "the figures are the worse news"
    assert raised_by(_replaced(), {"ratio_rms": 1.5}) is None


def test_what_broke_the_device_is_never_asked_again() -> None:
    check = _raised("torch.AcceleratorError", "CUDA error: device-side assert", Outcome.CRASH, "device-fault")
    assert lost_device(check)
    assert asks(check)
    assert Explainer().effort("llama", check, True) == ""
    found = explained(check, {}, unasked(check, 3)).evidence.minimal
    assert found["case"]["kind"] == "generate"
    assert found["case"]["drawn"]["seed"] == 3000
    assert found["raises"]["type"] == "torch.AcceleratorError"
    assert "breaks the device" in found["note"]
    assert not asks(Check(name="load", outcome=Outcome.CRASH)), "a worker that died left no exception to wait for"


@given(message=st.text(max_size=300))
def test_a_pattern_fits_its_own_message(message: str) -> None:
    line = next((x.strip() for x in message.splitlines() if x.strip()), "")
    assert re.search(pattern(message), line)


@given(
    words=st.lists(st.sampled_from(["size", "(", "[a]", "of", "*?", "is"]), min_size=1),
    old=st.integers(0),
    new=st.integers(0),
)
def test_a_pattern_lets_numbers_be_others(words: list[str], old: int, new: int) -> None:
    template = " ".join([*words, "{}", "end"])
    assert re.search(pattern(template.format(old)), template.format(new))
    assert not re.search(pattern(template.format(old)), " ".join(words))


def test_no_answer_is_said() -> None:
    late = explained(BROKEN, {}, {"status": "timeout", "reason": "no answer within 15 s"})
    assert late.evidence.minimal["note"] == "no explanation: no answer within 15 s"
    ours = explained(BROKEN, {}, {"status": "error", "exception": {"type": "KeyError", "message": "'x'"}})
    assert ours.evidence.minimal["note"] == "no explanation: KeyError: 'x'"
    assert explained(BROKEN, {"ratio_rms": 1.5}, None).evidence.minimal == {"bounds": {"ratio_rms": 1.5}}
