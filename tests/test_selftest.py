"""The self-test: how a trial is decided, what is stored, what is shown, exit codes. One trial with a real worker."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compat import selftest, selftest_result
from compat.cli import main
from compat.exit_codes import FINDINGS, INTERRUPTED, OK, USAGE
from compat.faults import Fault, catalogue
from compat.records import Check, Environment, Outcome
from compat.render import render
from compat.render.selftest import WORDS, render_markdown, render_terminal
from compat.render.sight import in_one_line
from compat.selftest import SelfTest, chosen
from compat.selftest_result import Change, SelfTestResult, Status, Trial, encode, keep, last_figure, read
from compat.session import Options, SessionError, prepare
from compat.store import StoreError

from .matrix_files import TINY, write

TOUCHED, SPARED = "llama/fp32/sdpa/none", "llama/fp32/eager/none"

Answer = Callable[[str, str, str], dict[str, Any]]
"""From (fault, cell, check) to a worker's answer; "" stands for no fault."""


class _Worker:
    """Stands in for a worker process: answers from a function, and counts how often it was ended. Of several faults
    those come in that have no place in common with those before them (their names' first letter), and can be put in;
    the answer is that of the first of them that changes something."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.ended = 0
        self.requests: list[tuple[str, ...]] = []
        self.questions: list[tuple[tuple[str, ...], str, str]] = []
        self.threads: set[int] = set()
        self.environment: dict[str, Any] | None = {"packages": {"torch": "2.13.0"}, "gpus": []}

    def ask(self, request: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
        group = request["group"]
        cell = f"{group['row']['type']}/{group['dtype']}/{request['attention']['name']}/{group['quantization']['name']}"
        names = tuple(request["faults"])
        self.requests.append(names)
        self.questions.append((names, cell, request["check"]))
        self.threads.add(threading.get_ident())
        answers = {name: self.answer(name, cell, request["check"]) for name in names or ("",)}
        able = [name for name in names if len(names) == 1 or "injection" not in answers[name]]
        inside = [n for i, n in enumerate(able) if n[0] not in {m[0] for m in able[:i]}]
        told = next((a for n, a in answers.items() if (n in inside or not names) and a), {})
        aside = [n for n in able if n not in inside]
        reached = {n: answers[n].get("reached", 1) for n in inside}
        return {"outcome": "pass", "faults_reached": reached, "set_aside": aside} | told

    def close(self) -> None:
        self.ended += 1


def _judge(name: str, answer: dict[str, Any], context: object, attempts: int = 1) -> Check:
    return Check(name=name, outcome=Outcome(answer["outcome"]), reason=answer.get("reason", ""), attempts=attempts)


def _fault(name: str = "one", seen_by: tuple[str, ...] = ("agreement",), **more: Any) -> Fault:
    given = {"cells": (TOUCHED,), "spared": (SPARED,), "group": "masks"} | more
    return Fault(name, "a title", "class: masks", "", lambda patches: None, seen_by, **given)


def _run(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, faults: list[Fault], depth: str = "standard", **more: Any
) -> SelfTestResult:
    monkeypatch.setattr(selftest, "WorkerProcess", lambda *_, **__: _Worker(answer))
    monkeypatch.setattr(selftest, "judge", _judge)
    return SelfTest("cpu", depth, Path("nowhere"), Path("nowhere"), **more).run(faults)


def _turn(check: str, cell: str, outcome: str) -> Answer:
    """Every check passes, but `check` of `cell` under a fault."""

    def answer(fault: str, where: str, what: str) -> dict[str, Any]:
        return {"outcome": outcome} if fault and (where, what) == (cell, check) else {}

    return answer


# -- how a trial is decided --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "cell", "outcome", "status"),
    [
        ("agreement", TOUCHED, "fail", Status.KILLED),
        ("agreement", TOUCHED, "degraded", Status.KILLED),
        ("agreement", TOUCHED, "inconclusive", Status.UNSEEN),
        ("padding", SPARED, "fail", Status.DISTURBED),
        ("padding", SPARED, "inconclusive", Status.DISTURBED),
        ("agreement", TOUCHED, "crash", Status.CRASHED),
        ("agreement", TOUCHED, "timeout", Status.CRASHED),
        ("agreement", TOUCHED, "pass", Status.UNSEEN),
    ],
)
def test_a_trial_is_decided_by_what_changed(
    monkeypatch: pytest.MonkeyPatch, check: str, cell: str, outcome: str, status: Status
) -> None:
    (trial,) = _run(monkeypatch, _turn(check, cell, outcome), [_fault()]).trials
    assert trial.status == status


def test_a_fault_that_other_checks_see_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    (trial,) = _run(monkeypatch, _turn("padding", TOUCHED, "fail"), [_fault()], "deep").trials
    assert trial.status == Status.OTHER_CHECK
    assert trial.seen_by == ("padding",)


def test_a_fault_that_also_disturbs_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(fault: str, cell: str, check: str) -> dict[str, Any]:
        return {"outcome": "fail"} if fault and check == "agreement" else {}

    (trial,) = _run(monkeypatch, answer, [_fault()]).trials
    assert trial.status == Status.DISTURBED
    assert [c.cell for c in trial.seen] == [TOUCHED]
    assert [(c.cell, c.before, c.after) for c in trial.disturbed] == [(SPARED, Outcome.PASS, Outcome.FAIL)]


def test_what_failed_before_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(fault: str, cell: str, check: str) -> dict[str, Any]:
        return {"outcome": "fail"} if check == "agreement" and cell == TOUCHED else {}

    result = _run(monkeypatch, answer, [_fault()])
    assert result.trials[0].status == Status.UNSEEN
    assert [(c.cell, c.check, c.before) for c in result.before] == [(TOUCHED, "agreement", Outcome.FAIL)]


def test_a_cell_that_crashed_without_a_fault_is_compared_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(fault: str, cell: str, check: str) -> dict[str, Any]:
        return {} if fault or cell != SPARED else {"outcome": "crash"}

    (trial,) = _run(monkeypatch, answer, [_fault()]).trials
    assert not trial.disturbed
    assert {c.before for c in trial.other} == {Outcome.CRASH}


def test_a_crash_counts_only_when_it_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    crashes = iter(["crash"])

    def answer(fault: str, cell: str, check: str) -> dict[str, Any]:
        return {"outcome": next(crashes, "pass")} if fault and check == "agreement" else {}

    (trial,) = _run(monkeypatch, answer, [_fault()]).trials
    assert trial.status == Status.UNSEEN
    assert not trial.other


def test_a_fault_that_was_not_reached_or_not_put_in_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(fault: str, cell: str, check: str) -> dict[str, Any]:
        if fault == "absent":
            return {"outcome": "error", "injection": "AttributeError: no such place"}
        return {"reached": 0}

    faults = [_fault("idle"), _fault("absent"), _fault("idle-benign", ())]
    idle, absent, benign = _run(monkeypatch, answer, faults).trials
    assert (idle.status, absent.status, benign.status) == (
        Status.NOT_REACHED,
        Status.NOT_APPLIED,
        Status.NOT_REACHED,
    )
    assert len(absent.asked) == 1, "what could not be put in is not asked about any more"
    assert "no such place" in absent.note


@pytest.mark.parametrize("outcome", ["fail", "degraded", "inconclusive", "crash"])
def test_a_benign_change_may_change_nothing_anywhere(monkeypatch: pytest.MonkeyPatch, outcome: str) -> None:
    fault = _fault("calm", ())
    assert _run(monkeypatch, _turn("memory", TOUCHED, outcome), [fault]).trials[0].status == Status.FLAGGED
    assert _run(monkeypatch, _turn("memory", TOUCHED, "pass"), [fault]).trials[0].status == Status.QUIET


def test_each_depth_asks_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    both = _fault(seen_by=("agreement", "padding"), cells=(TOUCHED, "llama/bf16/sdpa/none"))
    every = {"load", "agreement", "padding", "cache", "generation", "memory"}

    def asked(depth: str, outcome: str) -> tuple[set[tuple[str, str]], set[str]]:
        (trial,) = _run(monkeypatch, _turn("agreement", TOUCHED, outcome), [both], depth).trials
        return {p for p in trial.asked if p[0] != SPARED}, {c for cell, c in trial.asked if cell == SPARED}

    named = {(cell, check) for cell in both.cells for check in both.seen_by}
    touched, spared = asked("quick", "fail")
    assert (TOUCHED, "agreement") in touched
    assert (TOUCHED, "padding") not in touched, "one check that sees it is enough"
    assert spared == {"agreement", "padding"}
    assert asked("quick", "pass")[0] == named
    touched, spared = asked("standard", "fail")
    assert touched == named
    assert spared >= every
    touched, spared = asked("deep", "fail")
    assert {check for _, check in touched} >= every
    assert spared >= every
    (calm,) = _run(monkeypatch, _turn("agreement", TOUCHED, "pass"), [_fault("calm", ())], "quick").trials
    assert {check for _, check in calm.asked} >= every


PLACES = "abcd"


@st.composite
def sparing(draw: st.DrawFn) -> tuple[list[Fault], set[str], set[str]]:
    """Faults that spare one cell or two, in few places; those that disturb it all the same, and those that cannot be
    put in."""
    names = draw(st.lists(st.from_regex(f"[{PLACES}][0-9]", fullmatch=True), min_size=1, max_size=6, unique=True))
    cells = st.sampled_from([(SPARED,), (SPARED, "llama/bf16/eager/none")])
    faults = [_fault(name, spared=draw(cells)) for name in names]
    return faults, draw(st.sets(st.sampled_from(names))), draw(st.sets(st.sampled_from(names)))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sparing(), st.sampled_from(("quick", "standard", "deep")), st.sampled_from(("fail", "inconclusive", "crash")))
def test_in_company_faults_are_decided_as_alone(
    monkeypatch: pytest.MonkeyPatch, drawn: tuple[list[Fault], set[str], set[str]], depth: str, outcome: str
) -> None:
    faults, disturbing, absent = drawn

    def answer(fault: str, cell: str, check: str) -> dict[str, Any]:
        if fault in absent:
            return {"outcome": "error", "injection": "no such place"}
        if cell == TOUCHED:
            return {"outcome": "fail"} if fault and check == "agreement" else {}
        return {"outcome": outcome} if fault in disturbing and check == "agreement" else {}

    result = _run(monkeypatch, answer, faults, depth)
    assert [t.fault for t in result.trials] == [f.name for f in faults]
    for trial, fault in zip(result.trials, faults, strict=True):
        alone = _run(monkeypatch, answer, [fault], depth).trials[0]
        assert msgspec.structs.replace(trial, seconds=0, together=()) == msgspec.structs.replace(alone, seconds=0)
        assert not alone.together, "one fault has no company"
        if trial.status is Status.DISTURBED:
            assert not trial.together
    assert {t.fault for t in result.trials if t.status is Status.DISTURBED} == disturbing - absent


def test_company_saves_what_would_be_asked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = _Worker(lambda fault, cell, check: {})
    monkeypatch.setattr(selftest, "WorkerProcess", lambda *_, **__: worker)
    monkeypatch.setattr(selftest, "judge", _judge)
    faults = [_fault(name) for name in ("a1", "b1", "a2", "c1", "b2", "d1")]
    trials = SelfTest("cpu", "standard", Path("nowhere"), Path("nowhere")).run(faults).trials
    assert all(t.together == (SPARED,) for t in trials)
    asked = dict.fromkeys(r for r in worker.requests if len(r) > 1)
    assert list(asked) == [tuple(f.name for f in faults), ("a1", "b1", "c1", "d1"), ("a2", "b2")]
    assert {r for r in worker.requests if len(r) == 1} == {(f.name,) for f in faults}
    alone = [r for r in worker.requests if len(r) == 1]
    assert len(alone) == len(faults), "alone only where each touches: one check of one cell"


def test_quick_asks_a_company_only_what_one_of_those_inside_is_seen_by(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = _Worker(lambda fault, cell, check: {})
    monkeypatch.setattr(selftest, "WorkerProcess", lambda *_, **__: worker)
    monkeypatch.setattr(selftest, "judge", _judge)
    faults = [_fault("a1"), _fault("b1"), _fault("a2", ("padding",)), _fault("c1"), _fault("a3", ("padding",))]
    SelfTest("cpu", "quick", Path("nowhere"), Path("nowhere")).run(faults)
    together = [(names, check) for names, _, check in worker.questions if len(names) > 1]
    assert together == [(("a1", "b1", "a2", "c1", "a3"), "agreement"), (("a2", "a3"), "padding")]


def test_quick_asks_the_next_cell_only_of_what_the_first_did_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    second = "qwen2/fp32/sdpa/none"
    for shown in (TOUCHED, second):
        worker = _Worker(_turn("agreement", shown, "fail"))
        monkeypatch.setattr(selftest, "WorkerProcess", lambda *_, worker=worker, **__: worker)
        monkeypatch.setattr(selftest, "judge", _judge)
        fault = _fault("two", ("agreement", "padding"), cells=(TOUCHED, second))
        (trial,) = SelfTest("cpu", "quick", Path("nowhere"), Path("nowhere")).run([fault]).trials
        assert trial.status is Status.KILLED
        assert ((), second, "agreement") not in worker.questions or shown == second, "nor is it asked without the fault"
        assert len(worker.questions) == len(set(worker.questions)), "nothing is asked twice"
        assert {(c, k) for names, c, k in worker.questions if names} == set(trial.asked)


def test_quick_asks_no_other_cell_of_what_never_ran_in_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    second = "qwen2/fp32/sdpa/none"

    def answer(fault: str, cell: str, check: str) -> dict[str, Any]:
        return {"outcome": "fail" if fault and cell == second else "pass", "reached": int(cell == second)}

    fault = _fault(cells=(TOUCHED, second))
    for depth, status in (("quick", Status.NOT_REACHED), ("standard", Status.KILLED)):
        (trial,) = _run(monkeypatch, answer, [fault], depth).trials
        assert trial.status is status
        assert ((second, "agreement") in trial.asked) == (depth == "standard")


def test_quick_leaves_compiled_cells_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = _fault("graph", cells=(f"{TOUCHED}/compile",))
    for depth, status in (("quick", Status.NOT_REACHED), ("standard", Status.KILLED)):
        answer: Answer = lambda fault, cell, check: {"outcome": "fail"} if fault and cell == TOUCHED else {}  # noqa: E731
        (trial,) = _run(monkeypatch, answer, [fault], depth).trials
        assert trial.status is status


def test_a_worker_is_asked_by_one_thread_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It dies with the thread that started it, and starting it again costs more than most trials."""
    workers: list[_Worker] = []

    def another(*_: Any, **__: Any) -> _Worker:
        def answer(fault: str, cell: str, check: str) -> dict[str, Any]:
            time.sleep(0.002)  # so that the other one gets something to do
            return {}

        workers.append(_Worker(answer))
        return workers[-1]

    monkeypatch.setattr(selftest, "WorkerProcess", another)
    monkeypatch.setattr(selftest, "judge", _judge)
    faults = [_fault(f"{letter}{n}") for letter in "abcdef" for n in range(4)]
    result = SelfTest("cpu", "standard", Path("nowhere"), Path("nowhere"), lanes=2).run(faults)
    assert result.complete
    assert [len(w.threads) for w in workers] == [1, 1]
    sizes = [{min(len(names), 2) for names in w.requests} for w in workers]
    assert sizes[0] | sizes[1] == {0, 1, 2}, "as it is, in company, alone"


def test_a_clock_takes_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _run(monkeypatch, _turn("agreement", TOUCHED, "fail"), [_fault()])
    assert "speed" not in {check for _, check in result.trials[0].asked}
    assert result.left_out == ("paged", "positions", "distillation", "speed")


def test_an_interruption_keeps_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    second = threading.Event()

    def answer(fault: str, cell: str, check: str) -> dict[str, Any]:
        if fault == "two" and cell == TOUCHED:
            second.set()
            time.sleep(0.05)
        return {"outcome": "fail"} if fault and check == "agreement" and cell == TOUCHED else {}

    waited = threading.Event.wait

    def interrupting(event: threading.Event, timeout: float | None = None) -> bool:
        if second.is_set() and timeout == 0.1:
            raise KeyboardInterrupt
        return waited(event, timeout)

    monkeypatch.setattr(threading.Event, "wait", interrupting)
    test = SelfTest("cpu", "standard", Path("nowhere"), Path("nowhere"))
    monkeypatch.setattr(selftest, "WorkerProcess", lambda *_, **__: _Worker(answer))
    monkeypatch.setattr(selftest, "judge", _judge)
    result = test.run([_fault("one"), _fault("two"), _fault("three")])
    assert test.interrupted
    assert not result.complete
    assert result.planned == 3
    assert "one" in {t.fault for t in result.trials}
    assert "three" not in {t.fault for t in result.trials}
    assert "PARTIAL" in render_terminal(result)


def test_an_error_of_ours_ends_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(fault: str, cell: str, check: str) -> dict[str, Any]:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        _run(monkeypatch, answer, [_fault()])


# -- choosing ----------------------------------------------------------------------------------------------------


def test_names_are_patterns_and_devices_count() -> None:
    cuda = next(f for f in catalogue().values() if f.device == "cuda")
    assert cuda not in chosen("cpu")
    assert cuda in chosen("cuda")
    assert {f.name for f in chosen("cpu", ["benign-*"])} == {
        f.name for f in catalogue().values() if f.benign and f.device in ("", "cpu")
    }
    with pytest.raises(SessionError, match=f"{cuda.name}.*exists on cuda only"):
        chosen("cpu", [cuda.name])


# -- stored ------------------------------------------------------------------------------------------------------

texts = st.text(max_size=12)
changes = st.builds(
    Change,
    cell=st.just(TOUCHED),
    check=st.sampled_from(("agreement", "padding")),
    before=st.just(Outcome.PASS),
    after=st.sampled_from(tuple(Outcome)),
    reason=texts,
)
trials = st.builds(
    Trial,
    fault=texts,
    group=st.sampled_from(("masks", "heads")),
    title=texts,
    origin=texts,
    status=st.sampled_from([s for s in Status if s not in (Status.QUIET, Status.FLAGGED)]),
    expected=st.just(("agreement",)),
    cells=st.just((TOUCHED,)),
    spared=st.just((SPARED,)),
    asked=st.just(((TOUCHED, "agreement"),)),
    seen=st.tuples(changes),
    disturbed=st.lists(changes, max_size=1).map(tuple),
    note=texts,
)
calm = st.builds(
    Trial,
    fault=texts,
    group=st.just("benign"),
    title=texts,
    origin=texts,
    status=st.sampled_from((Status.QUIET, Status.FLAGGED)),
)
results = st.builds(
    SelfTestResult,
    device=st.just("cpu"),
    depth=st.just("standard"),
    started=st.just("2026-01-02T03:04:05Z"),
    seconds=st.floats(0, 1e6),
    compat=st.just("0"),
    sources=st.just("0"),
    trials=st.lists(st.one_of(trials, calm), max_size=4).map(tuple),
    complete=st.booleans(),
)


@given(results)
def test_what_is_stored_is_read_back(tmp_path_factory: pytest.TempPathFactory, result: SelfTestResult) -> None:
    folder = tmp_path_factory.mktemp("stored")
    selftest_result.write(result, folder, render_markdown(result))
    assert read(folder) == read(folder / "selftest.json") == result
    assert json.loads((folder / "selftest.json").read_text(encoding="utf-8"))["schema"] == "compat-selftest/1"


@given(results)
def test_rates_count_faults_only_and_every_trial_is_shown(result: SelfTestResult) -> None:
    harmful = [t for t in result.trials if not t.benign]
    killed = sum(t.status == Status.KILLED for t in harmful)
    assert (result.rate is None) == (not harmful)
    if harmful:
        assert result.rate == pytest.approx(100 * killed / len(harmful))
    assert result.figure()["killed"] == killed
    text = render_terminal(result, width=90)
    for status in {t.status for t in result.trials}:
        assert WORDS[status][0] in text
    assert all(len(line) <= 90 for line in text.splitlines() if line.isascii())
    page = render_markdown(result)
    assert len({line.count("|") for line in page.splitlines() if line.startswith("| `") and "in cells" in line}) <= 1


OF_ANOTHER_SCHEMA = {
    "schema": "compat-selftest/9",
    "device": "cpu",
    "depth": "quick",
    "started": "",
    "seconds": 0,
    "compat": "",
    "sources": "",
}


@pytest.mark.parametrize("content", [b"", b"{}", json.dumps(OF_ANOTHER_SCHEMA).encode()])
def test_what_is_no_self_test_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "selftest.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"selftest\.json"):
        read(tmp_path)


def _complete(depth: str) -> SelfTestResult:
    """A complete self-test of today's sources that killed its only fault."""
    trial = Trial(fault="a", group="masks", title="", origin="", status=Status.KILLED, expected=("load",))
    return SelfTestResult(
        device="cpu", depth=depth, started="2026-01-02T03:04:05Z", seconds=1.0, compat="0",
        sources=selftest_result.sources_hash(), trials=(trial,), complete=True, whole_catalogue=True,
        environment=Environment(fingerprint="f"),
    )  # fmt: skip


def test_a_run_and_its_reports_carry_the_figure(tmp_path: Path) -> None:
    session = prepare(Options(write(tmp_path, TINY), device="cpu", out=tmp_path / "run", cache=tmp_path))
    known = Environment(fingerprint="f")
    session.header = msgspec.structs.replace(session.header, environment=known)
    assert "selftest" not in session.run().run.settings
    result = _complete(str(session.header.run.settings["depth"]))
    keep(result, tmp_path)
    run, _ = session.finish()
    assert run.run.settings["selftest"] == result.figure()
    for form in ("terminal", "markdown", "html"):
        assert "1 of 1 fault killed (100%)" in " ".join(render(run, form).split())


def test_the_last_complete_one_of_the_very_stack_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = _complete("quick")
    for part in ({"complete": False}, {"whole_catalogue": False}, {"sources": "other"}):
        keep(msgspec.structs.replace(result, **part), tmp_path)
        assert last_figure(tmp_path, "cpu", "quick", "f") is None, f"{part} is no self-test of this stack"
    keep(result, tmp_path)
    figure = last_figure(tmp_path, "cpu", "quick", "f")
    assert figure == result.figure() == {
        "killed": 1, "faults": 1, "benign_flagged": 0, "benign": 0, "depth": "quick", "when": "2026-01-02T03:04:05Z"
    }  # fmt: skip
    for other in (("cuda", "quick", "f"), ("cpu", "deep", "f"), ("cpu", "quick", "g"), ("cpu", "quick", "")):
        assert last_figure(tmp_path, *other) is None
    monkeypatch.setattr(selftest_result, "SOURCES", ("checks.py",))
    assert last_figure(tmp_path, "cpu", "quick", "f") is None, "other checks may see less"


def test_reports_say_the_figure_or_that_there_is_none() -> None:
    figure = {"killed": 3, "faults": 4, "benign_flagged": 0, "depth": "quick", "when": "2026-01-02T03:04:05Z"}
    assert "3 of 4 faults killed (75%)" in in_one_line(figure)
    assert "depth quick" in in_one_line(figure)
    for absent in (None, {}, "3 of 4", {"faults": 0}):
        assert "none was run" in in_one_line(absent)


# -- the command -------------------------------------------------------------------------------------------------


def test_an_unknown_fault_is_a_matter_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "sdpa-scale-droped"]) == USAGE
    assert "nearest: 'sdpa-scale-dropped'" in capsys.readouterr().err


@pytest.mark.parametrize("percent", ["-1", "101", "many"])
def test_a_percentage_is_one(percent: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["selftest", "--at-least", percent])
    assert ended.value.code == USAGE
    assert "percentage" in capsys.readouterr().err


def test_the_catalogue_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--list"]) == OK
    out = capsys.readouterr().out
    assert all(name in out for name in catalogue())
    assert f"{sum(f.benign for f in catalogue().values())} benign changes" in out


@pytest.mark.parametrize(
    ("outcome", "arguments", "code"),
    [("fail", [], OK), ("pass", [], FINDINGS), ("pass", ["--at-least", "0"], OK), ("flag", [], FINDINGS)],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    outcome: str,
    arguments: list[str],
    code: int,
) -> None:
    def answer(fault: str, cell: str, check: str) -> dict[str, Any]:
        if outcome == "flag":
            return {"outcome": "fail"} if fault and check == "memory" else {}
        return {"outcome": outcome} if fault and check == "agreement" and "/sdpa" in cell else {}

    monkeypatch.setattr(selftest, "WorkerProcess", lambda *_, **__: _Worker(answer))
    monkeypatch.setattr(selftest, "judge", _judge)
    name = "benign-extra-copies" if outcome == "flag" else "sdpa-scale-dropped"
    command = ["selftest", name, "--device", "cpu", "--cache", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*command, *arguments]) == code
    out, progress = capsys.readouterr()
    assert f"1/1 {'flagged' if outcome == 'flag' else 'killed' if outcome == 'fail' else 'unseen'} {name}" in progress
    assert read(tmp_path / "out").complete
    assert main(["selftest", "--show", str(tmp_path / "out")]) == OK
    assert capsys.readouterr().out in out
    assert name in (tmp_path / "out" / "selftest.md").read_text(encoding="utf-8")


def test_ctrl_c_ends_with_what_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: SelfTest, *_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(selftest, "WorkerProcess", lambda *_, **__: _Worker(lambda *_: {}))
    monkeypatch.setattr(SelfTest, "_work_off", interrupted)
    command = ["selftest", "--device", "cpu", "--cache", str(tmp_path), "--out", str(tmp_path / "out"), "-q"]
    assert main(command) == INTERRUPTED
    assert "PARTIAL: 0 of" in capsys.readouterr().out
    assert not read(tmp_path / "out").complete


def test_a_stored_one_that_is_not_there_is_a_matter_of_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["selftest", "--show", str(tmp_path / "none.json")]) == USAGE
    assert "none.json" in capsys.readouterr().err


# -- with a real worker ------------------------------------------------------------------------------------------


def test_a_real_fault_is_seen_by_the_check_that_is_named(probe_cache: Path) -> None:
    fault = catalogue()["mask-dropped-in-last-layer"]
    result, interrupted = selftest.conduct([fault], "cpu", "quick", cache=probe_cache, lanes=1)
    (trial,) = result.trials
    assert not interrupted
    assert trial.status == Status.KILLED, render_terminal(result)
    assert trial.seen_by == ("padding",)
    assert trial.times_reached > 0
    assert result.environment.packages["torch"]
    assert encode(result) == encode(msgspec.json.decode(encode(result), type=SelfTestResult))
