"""Laws of a diff, and what each kind of change is called."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compat.compare.diff import diff_runs
from compat.compare.gate import GATES, findings
from compat.compare.result import Diff, Kind, Speeds, decode_diff, encode_diff, groups
from compat.compare.speed import stack_name
from compat.records import (
    Cell,
    Check,
    Environment,
    Evidence,
    Gpu,
    Measurement,
    Outcome,
    Run,
    RunInfo,
    cell_outcome,
    summarize,
)

from ..stored_runs import OUTCOME, runs

O = Outcome  # noqa: E741
SWAPPED = {Kind.REGRESSED: Kind.FIXED, Kind.FIXED: Kind.REGRESSED, Kind.NEW: Kind.GONE, Kind.GONE: Kind.NEW}


def cell(place: str, *checks: Check, **effective: Any) -> Cell:
    """A cell with these checks."""
    axes = dict(zip(("model", "dtype", "attention", "quantization"), place.split("/"), strict=True))
    return Cell(id=place, axes=axes, outcome=cell_outcome(checks), checks=checks, effective=effective)


def check(outcome: Outcome, name: str = "agreement", earlier: tuple[Outcome, ...] = (), signature: str = "") -> Check:
    """A check that was asked once more than there are `earlier` outcomes."""
    facts = {"attempts": [{"outcome": e.value} for e in earlier]} if earlier else {}
    evidence = Evidence(facts=facts, signature=signature, repro=f"again {name}")
    return Check(name=name, outcome=outcome, reason=outcome.value, attempts=1 + len(earlier), evidence=evidence)


def run_of(*cells: Cell, environment: Environment | None = None) -> Run:
    """A complete run of these cells."""
    info = RunInfo(id="r", started="2026-01-01T00:00:00Z", complete=True, device="cpu")
    env = environment or Environment(fingerprint="f", packages={"torch": "2.13.0"})
    return Run(run=info, environment=env, cells=cells, summary=summarize(cells, 1.0))


A = "llama/bf16/sdpa/none"


def kinds(base: Check, head: Check) -> tuple[Kind, Kind]:
    """What becomes of a cell and of its only check."""
    diff = diff_runs(run_of(cell(A, base)), run_of(cell(A, head)))
    (one,) = diff.cells
    return one.kind, one.checks[0].kind if one.checks else Kind.SAME


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Run, Run]:
    """A run, and one that shares some of its cells and checks with other outcomes and attempts."""
    first, other = draw(runs()), draw(runs())
    shared = []
    for known in first.cells:
        if draw(st.booleans()):
            checks = tuple(
                msgspec.structs.replace(
                    c, outcome=draw(OUTCOME), attempts=2, evidence=msgspec.structs.replace(
                        c.evidence, facts={"attempts": [{"outcome": draw(OUTCOME).value}]}
                    )
                ) for c in known.checks if draw(st.booleans())
            )  # fmt: skip
            shared.append(msgspec.structs.replace(known, checks=checks, outcome=cell_outcome(checks)))
    ids = {c.id for c in shared}
    cells = (*shared, *(c for c in other.cells if c.id not in ids))
    return first, msgspec.structs.replace(other, cells=cells)


@settings(max_examples=15)
@given(runs())
def test_a_run_against_itself_holds_nothing_but_the_same(run: Run) -> None:
    diff = diff_runs(run, run)
    assert diff.empty
    assert not findings(diff, GATES)
    assert set(diff.counts()) <= {Kind.SAME}


@settings(max_examples=15)
@given(pairs())
def test_swapping_the_runs_swaps_the_kinds(both: tuple[Run, Run]) -> None:
    there, back = diff_runs(*both), diff_runs(both[1], both[0])
    mirrored = {c.id: c for c in back.cells}
    for one in there.cells:
        other = mirrored[one.id]
        assert other.kind is SWAPPED.get(one.kind, one.kind)
        assert {c.check: c.kind for c in other.checks} == {c.check: SWAPPED.get(c.kind, c.kind) for c in one.checks}
    assert {(d.subject, d.name, d.head, d.base) for d in back.differences} == {
        (d.subject, d.name, d.base, d.head) for d in there.differences
    }


@settings(max_examples=15)
@given(pairs())
def test_every_cell_and_every_check_of_both_runs_is_in_exactly_one_class(both: tuple[Run, Run]) -> None:
    diff = diff_runs(*both)
    assert sorted(c.id for c in diff.cells) == sorted({c.id for run in both for c in run.cells})
    for one in diff.cells:
        asked = {k.name for run in both for c in run.cells if c.id == one.id for k in c.checks}
        names = [k.check for k in one.checks]
        assert len(names) == len(set(names))
        assert set(names) <= asked
        assert len(names) + one.same == len(asked)
        assert Kind.SAME not in {k.kind for k in one.checks}
    counts = diff.counts()
    assert sum(cells for cells, _ in counts.values()) == len(diff.cells)
    grouped = groups(diff.checks())
    assert sum(len({(c.id, k) for c in g.cells for k in g.checks}) for g in grouped) >= len(diff.checks())


@settings(max_examples=15)
@given(pairs(), st.integers(0, 99))
def test_the_order_of_cells_changes_nothing(both: tuple[Run, Run], seed: int) -> None:
    mixed = list(both[1].cells)
    random.Random(seed).shuffle(mixed)
    first = diff_runs(*both)
    second = diff_runs(both[0], msgspec.structs.replace(both[1], cells=tuple(mixed)))
    assert {c.id: c for c in first.cells} == {c.id: c for c in second.cells}


@settings(max_examples=15)
@given(pairs())
def test_a_diff_reads_back_as_it_was_written(both: tuple[Run, Run]) -> None:
    diff = diff_runs(*both)
    assert decode_diff(encode_diff(diff)) == diff


def test_a_stored_diff_of_another_schema_is_refused_by_name() -> None:
    diff = diff_runs(run_of(), run_of())
    with pytest.raises(ValueError, match="compat-diff/9"):
        decode_diff(encode_diff(msgspec.structs.replace(diff, schema="compat-diff/9")))
    with pytest.raises(ValueError, match="not a stored diff"):
        decode_diff(b'{"base": 1}')


@pytest.mark.parametrize(
    ("base", "head", "kind"),
    [
        (O.PASS, O.FAIL, Kind.REGRESSED),
        (O.PASS, O.DEGRADED, Kind.REGRESSED),
        (O.DEGRADED, O.CRASH, Kind.REGRESSED),
        (O.PASS, O.UNSUPPORTED, Kind.REGRESSED),
        (O.UNSUPPORTED, O.FAIL, Kind.REGRESSED),
        (O.FAIL, O.CRASH, Kind.CHANGED),
        (O.PASS, O.INCONCLUSIVE, Kind.CHANGED),
        (O.PASS, O.ERROR, Kind.CHANGED),
        (O.NOT_RUN, O.FAIL, Kind.CHANGED),
        (O.PASS, O.TIMEOUT, Kind.SPURIOUS),
        (O.PASS, O.OOM, Kind.SPURIOUS),
        (O.FAIL, O.OOM, Kind.CHANGED),
        (O.FAIL, O.FAIL, Kind.SAME),
    ],
)
def test_kinds_of_outcomes(base: Outcome, head: Outcome, kind: Kind) -> None:
    assert kinds(check(base), check(head)) == (kind, kind)
    assert kinds(check(head), check(base))[1] is SWAPPED.get(kind, kind)


def test_out_of_time_counts_once_it_repeats() -> None:
    passed = run_of(cell(A, check(O.PASS), check(O.PASS, "padding")))
    twice = run_of(cell(A, check(O.TIMEOUT), check(O.TIMEOUT, "padding")))
    assert {k.kind for _, k in diff_runs(passed, twice).checks()} == {Kind.REGRESSED}
    assert kinds(check(O.PASS), check(O.TIMEOUT, earlier=(O.TIMEOUT,)))[1] is Kind.REGRESSED


def test_attempts_that_differ_are_flaky_unless_the_runs_share_no_outcome() -> None:
    assert kinds(check(O.PASS), check(O.FAIL, earlier=(O.PASS,))) == (Kind.FLAKY, Kind.FLAKY)
    assert kinds(check(O.FAIL, earlier=(O.PASS,)), check(O.FAIL)) == (Kind.FLAKY, Kind.FLAKY)
    assert kinds(check(O.PASS), check(O.FAIL, earlier=(O.CRASH,)))[1] is Kind.REGRESSED
    assert kinds(check(O.PASS), check(O.FAIL, earlier=(O.FAIL,)))[1] is Kind.REGRESSED


def test_the_same_outcome_for_another_cause_is_a_change() -> None:
    assert kinds(check(O.FAIL, signature="a"), check(O.FAIL, signature="b"))[1] is Kind.CHANGED
    assert kinds(check(O.FAIL, signature="a"), check(O.FAIL, signature="a"))[1] is Kind.SAME


def test_one_check_worse_and_another_better_is_no_quiet_cell() -> None:
    base = run_of(cell(A, check(O.PASS), check(O.FAIL, "padding")))
    head = run_of(cell(A, check(O.FAIL), check(O.PASS, "padding")))
    diff = diff_runs(base, head)
    assert diff.cells[0].kind is Kind.MIXED
    assert findings(diff, ["regressed"]) == {"regressed": (f"{A}: agreement: pass -> fail",)}


def test_a_refusal_that_became_a_wrong_result_is_a_regression() -> None:
    base = run_of(cell(A, check(O.UNSUPPORTED, "load"), check(O.NOT_RUN)))
    head = run_of(cell(A, check(O.PASS, "load"), check(O.FAIL)))
    diff = diff_runs(base, head)
    assert diff.cells[0].kind is Kind.MIXED
    assert findings(diff, ["regressed", "new-failures"]) == {
        "regressed": (f"{A}: unsupported -> fail",),
        "new-failures": (f"{A}: agreement: not_run -> fail",),
    }


def test_coverage_is_what_base_measured_and_head_does_not() -> None:
    place = "opt/fp32/eager/none"
    base = run_of(cell(A, check(O.PASS), check(O.FAIL, "padding"), check(O.UNSUPPORTED, "cache")), cell(place))
    head = run_of(cell(A, check(O.INCONCLUSIVE), check(O.NOT_RUN, "cache")))
    found = findings(diff_runs(base, head), ["regressed", "coverage"])
    assert found == {
        "coverage": (f"{A}: agreement: pass -> inconclusive", f"{A}: padding: fail -> absent"),
    }
    assert findings(diff_runs(head, base), ["coverage"]) == {}
    assert findings(diff_runs(head, base), ["new-failures"]) == {"new-failures": (f"{A}: padding: absent -> fail",)}


def test_another_kernel_is_seen_where_outcomes_are_alike() -> None:
    base = run_of(cell(A, check(O.PASS), attention="sdpa", kernels=["sdpa flash"]))
    head = run_of(cell(A, check(O.PASS), attention="sdpa", kernels=["sdpa math"]))
    (one,) = diff_runs(base, head).cells
    assert one.kind is Kind.CHANGED
    assert [(d.name, d.base, d.head) for d in one.effective] == [("kernels", "sdpa flash", "sdpa math")]


def test_what_changed_beside_the_outcomes_is_named() -> None:
    old = Environment(fingerprint="a", packages={"torch": "2.12.0", "gguf": "1"}, gpus=(Gpu(name="X"),), driver="580")
    new = Environment(fingerprint="b", packages={"torch": "2.13.0", "peft": "2"}, gpus=(Gpu(name="X"),), driver="590")
    base, head = run_of(environment=old), run_of(environment=new)
    head = msgspec.structs.replace(head, run=msgspec.structs.replace(head.run, settings={"seed": 3}))
    assert {(d.subject, d.name, d.base, d.head) for d in diff_runs(base, head).differences} == {
        ("package", "torch", "2.12.0", "2.13.0"),
        ("package", "gguf", "1", ""),
        ("package", "peft", "", "2"),
        ("machine", "driver", "580", "590"),
        ("run", "seed", "", "3"),
    }


# -- speed -------------------------------------------------------------------------------------------------------


def timed(
    value: float, low: float, high: float, environment: Environment, over: str = "eager", contention: float = 0.0
) -> Run:
    """A run of one cell whose prefill was timed."""
    figure = Measurement(name="prefill_speedup", unit="x", value=value, ci95=(low, high), at={"length": 128.0})
    facts = {"baseline": over}
    sign = Measurement(name="prefill_contention", unit="of the time", value=contention, at={"length": 128.0})
    speed = Check(name="speed", outcome=O.PASS, measurements=(figure, sign), evidence=Evidence(facts=facts))
    return run_of(cell(A, speed), environment=environment)


HERE = Environment(fingerprint="a", python="3.11", cpu="c", packages={"torch": "2.12.0"})
OTHER = Environment(fingerprint="b", python="3.11", cpu="c", packages={"torch": "2.13.0"})


def says(diff: Diff) -> list[Speeds]:
    """The verdicts on speeds."""
    return [s.says for s in diff.speed]


def test_speeds_are_compared_by_the_far_ends_of_their_intervals() -> None:
    base = timed(1.0, 0.98, 1.02, HERE)
    slower = diff_runs(base, timed(0.85, 0.84, 0.86, HERE))
    assert says(slower) == [Speeds.SLOWER]
    assert slower.speed[0].ci95 == (0.8235, 0.8776)
    assert list(findings(slower, ["slower"])) == ["slower"]
    assert says(diff_runs(timed(0.85, 0.84, 0.86, HERE), base)) == [Speeds.FASTER]
    assert says(diff_runs(base, timed(0.95, 0.94, 0.96, HERE))) == [Speeds.ALIKE], "an interval that allows 5%"
    assert says(diff_runs(base, timed(0.95, 0.945, 0.955, HERE), 0.01)) == [Speeds.SLOWER]


def test_speeds_on_other_packages_are_not_compared() -> None:
    diff = diff_runs(timed(1.0, 0.99, 1.01, HERE), timed(0.5, 0.49, 0.51, OTHER))
    assert not diff.speed
    assert [(why.split(":")[0], n) for why, n in diff.speed_not_comparable.items()] == [
        ("other packages or another machine", 1)
    ]
    assert not findings(diff, ["slower"])


def test_a_head_that_was_timed_against_base_itself_needs_no_second_figure() -> None:
    base, head = timed(1.0, 0.99, 1.01, HERE), timed(0.8, 0.79, 0.81, OTHER, over=stack_name(HERE))
    diff = diff_runs(base, head)
    assert says(diff) == [Speeds.SLOWER]
    assert diff.speed[0].over == "Python 3.11, torch 2.12.0"


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (timed(1.0, 0.99, 1.01, HERE, over="sdpa"), "different baselines"),
        (timed(0.5, 0.49, 0.51, HERE, contention=0.5), "the machine was disturbed"),
        (run_of(cell(A, check(O.FAIL), *timed(1.0, 0.9, 1.1, HERE).cells[0].checks), environment=HERE), "fails"),
    ],
)
def test_speeds_that_mean_different_things_are_not_compared(head: Run, why: str) -> None:
    diff = diff_runs(timed(1.0, 0.99, 1.01, HERE), head)
    assert not diff.speed
    assert [w for w in diff.speed_not_comparable if why in w]
