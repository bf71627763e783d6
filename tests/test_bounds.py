"""Law: the rows and findings that are told of a check are those that decided it."""

from __future__ import annotations

from pathlib import Path

import pytest

from compat import bounds
from compat.judge import broken, rejudge
from compat.records import Cell, Outcome, worst
from compat.store import read_run

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["cpu", "h200"])
def test_rows_and_findings_come_to_the_outcome_of_the_judge(name: str) -> None:
    run = read_run(ROOT / "reports" / name)
    seen = set()
    for cell in [c for c in run.cells if c.outcome not in (Outcome.PASS, Outcome.NOT_RUN)] + list(run.cells[::40]):
        context = bounds.context(run, cell)
        assert context is not None
        for check in cell.checks:
            if not check.measurements:
                assert not bounds.judged(check, context)
                assert not bounds.findings(check, context)
                continue
            again = rejudge(check, context)  # with the known answer, which a row speaks of too
            rows, found = bounds.judged(again, context), bounds.findings(again, context)
            outcomes = [r.outcome for r in rows] + [f.outcome for f in found]
            assert worst(outcomes) == again.outcome, (cell.id, check.name)
            told = {r.rule.measurement: r.bound for r in rows if r.outcome in (Outcome.FAIL, Outcome.DEGRADED)}
            firsts = broken(again, context)
            assert set(firsts) <= set(told)
            assert all(told[n] == bound for n, bound in firsts.items())
            assert all(f.source and f.reason in again.reason for f in found if f.outcome == again.outcome)
            seen |= {again.outcome}
    assert {Outcome.PASS, Outcome.FAIL, Outcome.DEGRADED} <= seen


@pytest.mark.parametrize(
    "axes",
    [
        {"model": "llama", "dtype": "bf16", "attention": "sdpa"},
        {"model": "llama", "dtype": "bf16", "attention": "paged", "quantization": "none"},
        {"model": "llama", "dtype": "int3", "attention": "sdpa", "quantization": "none"},
    ],
)
def test_a_cell_of_another_compat_has_no_bounds(axes: dict[str, str]) -> None:
    run = read_run(ROOT / "reports" / "cpu")
    assert bounds.context(run, Cell(id="x", axes=axes, outcome=Outcome.FAIL)) is None
