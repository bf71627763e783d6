"""Unexpected failures asked again: what becomes of two answers, and real workers that fail once or every time."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compat.compare.diff import flaky, outcomes_seen
from compat.execute.again import BELIEVED, DISTURBED_ATTEMPTS, LONG_SECONDS, Disturbed, Reruns, combined
from compat.matrix import CellSpec
from compat.plan import make_plan
from compat.records import Check, Evidence, ExceptionInfo, Measurement, Outcome, worst

from ..matrix_files import TINY, write
from ..stored_runs import checks
from .running import environment, run

CELL = CellSpec("opt", "fp32", "sdpa", "none", ("agreement",))


@settings(max_examples=30)
@given(checks("agreement"), checks("agreement"))
def test_the_worse_outcome_stays_and_both_are_seen(first: Check, second: Check) -> None:
    both = combined(first, second)
    assert both.outcome is worst((first.outcome, second.outcome))
    assert outcomes_seen(both) == {first.outcome, second.outcome}
    assert flaky(both) == (first.outcome is not second.outcome)
    assert both.attempts == 2
    (other,) = both.evidence.facts["attempts"]
    kept_first = first.outcome is not second.outcome and both.outcome is first.outcome
    assert other["attempt"] == (2 if kept_first else 1)
    assert other["reason"] == (second if kept_first else first).reason


def test_a_device_fault_is_never_asked_again() -> None:
    reruns = Reruns(lambda cell, check: True)
    lost = ExceptionInfo(type="RuntimeError", message="CUDA error", refusal="device-fault")
    assert not reruns.asks(CELL, Check(name="agreement", outcome=Outcome.CRASH, evidence=Evidence(exception=lost)))
    assert reruns.asks(CELL, Check(name="agreement", outcome=Outcome.CRASH))


def test_a_cause_that_came_twice_in_some_cells_is_believed() -> None:
    reruns = Reruns(lambda cell, check: True)
    failed = Check(name="agreement", outcome=Outcome.FAIL, evidence=Evidence(signature="x"))
    for _ in range(BELIEVED):
        assert reruns.asks(CELL, failed)
        reruns.saw(CELL, failed, failed)
    assert not reruns.asks(CELL, failed)
    other = Check(name="agreement", outcome=Outcome.FAIL, evidence=Evidence(signature="y"))
    assert reruns.asks(CELL, other), "another cause is news"
    assert reruns.asks(CellSpec("llama", "fp32", "sdpa", "none", ("agreement",)), failed), "so is another model"


@pytest.mark.parametrize(("once", "seen"), [(True, {"fail", "pass"}), (False, {"fail"})])
def test_a_worker_that_fails_is_asked_again(
    once: bool, seen: set[str], tmp_path: Path, probe_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment("raise", "sdpa:65", tmp_path / "marker").items():
        monkeypatch.setenv(name, value)
    if once:
        monkeypatch.setenv("COMPAT_TEST_FAULT_ONCE", "1")
    matrix = write(tmp_path, TINY.replace('"opt", "llama"', '"opt"'))
    stored = run(matrix, tmp_path / "out", probe_cache, rerun=True, workers=1)
    found = {(c.id, k.name): k for c in stored.cells for k in c.checks if k.attempts > 1}
    assert set(found) == {("opt/fp32/sdpa/none", "agreement")}
    (again,) = found.values()
    assert again.outcome is Outcome.FAIL, "the worse outcome stays"
    assert {o.value for o in outcomes_seen(again)} == seen
    assert ("flaky: pass in another attempt" in again.reason) == once


def test_what_is_expected_is_not_asked_again(
    tmp_path: Path, probe_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment("raise", "sdpa:65").items():
        monkeypatch.setenv(name, value)
    matrix = write(tmp_path, TINY.replace('"opt", "llama"', '"opt"'))
    known = '[[expect]]\ncells = "opt/*/sdpa/*"\nchecks = ["agreement"]\noutcome = "fail"\nreason = "raises"\n'
    stored = run(matrix, tmp_path / "out", probe_cache, expectations=write(tmp_path, known, "e.toml"), workers=1)
    found = {(c.id, k.name): k for c in stored.cells for k in c.checks}
    assert found["opt/fp32/sdpa/none", "agreement"].outcome is Outcome.FAIL, stored.cells
    assert {k.attempts for k in found.values()} == {1}


TIMED = [CellSpec("opt", "fp32", attention, "none", ("load", "speed")) for attention in ("eager", "sdpa")]
(TIMED_GROUP,) = make_plan(TIMED).groups
RATE = Measurement(name="prefill_rate", unit="tokens/s", better="higher", values=(9.0,), value=9.0, method="median")
DISTURBED = Check(
    name="speed", outcome=Outcome.INCONCLUSIVE, reason="prefill_speedup_low 0.1", seconds=2.0, measurements=(RATE,)
)
SLOWED = Measurement(name="prefill_device_rate", unit="of the best", better="higher", value=0.1)
DOUBTED = Check(name="speed", outcome=Outcome.PASS, seconds=2.0, measurements=(RATE, SLOWED))
SAID = {DISTURBED.outcome: "prefill_speedup_low 0.1",
        DOUBTED.outcome: "prefill_device_rate 0.1 of the best, pass >= 0.7"}  # fmt: skip


@given(st.sampled_from((DISTURBED, DOUBTED)), checks("speed"))
def test_a_disturbed_timing_is_kept_and_a_later_answer_stands(first: Check, second: Check) -> None:
    disturbed = Disturbed()
    for cell in TIMED:
        assert disturbed.keeps(TIMED_GROUP, cell, first)
    (group,) = disturbed.groups
    assert [(c.id, c.checks) for c in group.cells] == [(c.id, ("speed",)) for c in TIMED], "one load serves both"
    told = disturbed.settled(TIMED[0], second)
    assert (told.outcome, told.measurements) == (second.outcome, second.measurements)
    assert told.evidence.facts["disturbed"] == {"times": 1, "reason": SAID[first.outcome]}
    assert told.attempts == 1 + second.attempts
    assert not flaky(told) or flaky(second), "what says nothing is no other answer"
    assert disturbed.left() == [(TIMED[1], first)], "what was not asked again keeps its first answer"
    assert disturbed.left() == []


@given(st.integers(1, 9))
def test_a_machine_that_is_never_calm_is_asked_a_few_times(times: int) -> None:
    disturbed = Disturbed()
    kept = [disturbed.keeps(TIMED_GROUP, TIMED[0], DISTURBED) for _ in range(times)]
    most = DISTURBED_ATTEMPTS - 1
    assert kept == [i < most for i in range(times)]
    asked = min(times, most)
    told = disturbed.settled(TIMED[0], DISTURBED) if times > most else disturbed.left()[0][1]
    assert told.outcome is Outcome.INCONCLUSIVE
    assert told.attempts == min(times, DISTURBED_ATTEMPTS)
    assert told.seconds == told.attempts * DISTURBED.seconds
    assert told.evidence.facts.get("disturbed", {"times": 0})["times"] == told.attempts - 1 <= asked
    assert disturbed.left() == []


@pytest.mark.parametrize(
    "check",
    [
        msgspec.structs.replace(DOUBTED, outcome=Outcome.DEGRADED),
        msgspec.structs.replace(DOUBTED, measurements=(RATE, msgspec.structs.replace(SLOWED, value=0.9))),
        msgspec.structs.replace(DISTURBED, seconds=LONG_SECONDS + 1),
        msgspec.structs.replace(DISTURBED, measurements=()),
        msgspec.structs.replace(DISTURBED, name="agreement"),
    ],
)
def test_other_answers_are_told_at_once(check: Check) -> None:
    disturbed = Disturbed()
    assert not disturbed.keeps(TIMED_GROUP, TIMED[0], check)
    assert disturbed.settled(TIMED[0], check) == check
    assert not disturbed.groups
    assert not disturbed.left()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_timing_on_a_throttled_device_is_asked_again_at_the_end(
    workers: int, tmp_path: Path, probe_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment("throttle", "", tmp_path / "marker").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COMPAT_TEST_FAULT_ONCE", "1")
    text = TINY.replace('"opt", "llama"', '"opt"').replace('"agreement", "memory"', '"speed"')
    stored = run(write(tmp_path, text), tmp_path / "out", probe_cache, workers=workers)
    found = {c.id: k for c in stored.cells for k in c.checks if k.name == "speed"}
    assert len(found) == 2
    assert sum(line.count('"name":"speed"') for line in (tmp_path / "out/cells.jsonl").read_text().splitlines()) == 2
    asked_again = found["opt/fp32/eager/none"]
    assert "device_rate at 2x128@0 0.1 of the best" in asked_again.evidence.facts["disturbed"]["reason"]
    assert asked_again.attempts > 1
    assert asked_again.outcome is Outcome.PASS
    rates = [m.value for m in asked_again.measured("prefill_device_rate")]
    assert 0.1 not in rates, "a later answer stands"
