"""The stored form: outcomes of cells, counts, and run.json as it is written and read."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.checks import CHECKS
from compat.records import (
    SCHEMA,
    SEVERITY,
    WITHHELD,
    Cell,
    Check,
    Environment,
    Measurement,
    Outcome,
    Run,
    RunInfo,
    cell_outcome,
    decode_run,
    encode_run,
    summarize,
    worst,
)

from .stored_runs import OUTCOME, runs

CHECKS_OF_A_CELL = st.lists(st.sampled_from(CHECKS.names), unique=True).flatmap(
    lambda names: st.tuples(*(st.builds(Check, name=st.just(n), outcome=OUTCOME) for n in names))
)


@given(CHECKS_OF_A_CELL)
def test_a_cell_has_the_worst_outcome_unless_its_load_was_withheld(checks: tuple[Check, ...]) -> None:
    load = next((c for c in checks if c.name == "load"), None)
    if load is not None and load.outcome in WITHHELD:
        assert cell_outcome(checks) == load.outcome
    else:
        expected = min((SEVERITY.index(c.outcome) for c in checks), default=SEVERITY.index(Outcome.NOT_RUN))
        assert cell_outcome(checks) == SEVERITY[expected]


@given(CHECKS_OF_A_CELL, st.randoms(use_true_random=False))
def test_the_order_of_checks_does_not_change_the_cells_outcome(checks: tuple[Check, ...], random: object) -> None:
    shuffled = list(checks)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert cell_outcome(shuffled) == cell_outcome(checks)


@given(st.lists(OUTCOME, min_size=1), OUTCOME)
def test_one_more_outcome_never_makes_the_worst_better(outcomes: list[Outcome], more: Outcome) -> None:
    assert SEVERITY.index(worst([*outcomes, more])) <= SEVERITY.index(worst(outcomes))


def test_severity_is_the_order_of_the_architecture() -> None:
    expected = "fail crash error oom timeout degraded inconclusive pass unsupported unavailable not_run"
    assert " ".join(SEVERITY) == expected


@given(runs())
def test_a_run_reads_back_as_it_was_written(run: Run) -> None:
    assert decode_run(encode_run(run)) == run


def test_an_empty_list_called_cells_elsewhere_does_not_swallow_the_cells() -> None:
    """`compat run M --checks load` stores settings.selected.cells = [] before the cells themselves."""
    cell = Cell(id="a/b/c/d", axes={}, outcome=Outcome.PASS)
    run = Run(
        run=RunInfo(id="r", started="", settings={"selected": {"cells": [], "checks": ["load"]}}),
        environment=Environment(),
        cells=(cell,),
        summary=summarize([cell], 1.0),
    )
    assert decode_run(encode_run(run)) == run, "the cells were written into the settings"


@given(runs())
def test_writing_is_deterministic_and_one_cell_a_line(run: Run) -> None:
    data = encode_run(run)
    assert data == encode_run(decode_run(data))
    lines = data.decode().split("\n")
    ids = [json.loads(line.rstrip(","))["id"] for line in lines if line.startswith('{"id"')]
    if run.cells:
        assert ids == [c.id for c in run.cells], "a diff of stored runs must show cells one by one"


@given(runs())
def test_the_summary_counts_every_cell_and_check_once(run: Run) -> None:
    summary = summarize(run.cells, 1.5)
    assert sum(summary.outcomes.values()) == len(run.cells)
    assert sum(sum(c.values()) for c in summary.checks.values()) == sum(len(c.checks) for c in run.cells)
    assert summary.seconds == 1.5


def test_keys_of_a_newer_writer_are_ignored() -> None:
    run = Run(run=RunInfo(id="r", started=""), environment=Environment(), cells=(), summary=summarize([], 0.0))
    data = json.loads(encode_run(run))
    data["run"]["colour"] = "blue"
    data["new_section"] = [1]
    assert decode_run(json.dumps(data).encode()) == run


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a stored run"),
        (b"\xff\xfe", "not a stored run"),
        (b"[]", "Expected `object`"),
        (b"{}", "missing required field `run`"),
        (b'{"run": {"id": 3, "started": ""}}', r"\$\.run\.id"),
    ],
)
def test_what_is_no_run_is_refused_by_key(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        decode_run(data)


def test_another_schema_is_refused() -> None:
    run = Run(run=RunInfo(id="r", started=""), environment=Environment(), cells=(), summary=summarize([], 0.0))
    other = msgspec.structs.replace(run, schema="compat-run/99")
    with pytest.raises(ValueError, match=f"schema: 'compat-run/99' is not one this version reads .{SCHEMA}"):
        decode_run(encode_run(other))


def test_an_unknown_outcome_is_refused() -> None:
    cell = Cell(id="c", axes={}, outcome=Outcome.PASS)
    run = Run(run=RunInfo(id="r", started=""), environment=Environment(), cells=(cell,), summary=summarize([], 0.0))
    with pytest.raises(ValueError, match=r"\$\.cells\[0\]\.outcome|Invalid enum value 'splendid'"):
        decode_run(encode_run(run).replace(b'"outcome":"pass"', b'"outcome":"splendid"'))


def test_records_cannot_be_changed_and_find_their_parts() -> None:
    error = Measurement(name="ratio_rms", unit="ratio", value=1.0)
    check = Check(name="agreement", outcome=Outcome.PASS, measurements=(error,))
    cell = Cell(id="c", axes={}, outcome=Outcome.PASS, checks=(check,))
    assert cell.check("agreement") is check
    assert cell.check("speed") is None
    assert check.measurement("ratio_rms") is error
    assert check.measurement("ratio_max") is None
    with pytest.raises(AttributeError, match="immutable"):
        check.outcome = Outcome.FAIL  # type: ignore[misc]
