"""The past of a cell over runs."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from compat.compare.history import MOST, beside, past, read
from compat.records import Cell, Check, Environment, Outcome, Run, RunInfo, summarize
from compat.store import StoreError, write_run


def a_run(name: str, started: str, outcome: Outcome | None, device: str = "cpu") -> Run:
    """A run of one cell, or of none."""
    checks = () if outcome is None else (Check(name="load", outcome=Outcome.PASS), Check(name="cache", outcome=outcome))
    cells = () if outcome is None else (Cell(id="m/a/b/none", axes={"model": "m"}, outcome=outcome, checks=checks),)
    info = RunInfo(id=name, started=started, device=device)
    return Run(run=info, environment=Environment(), cells=cells, summary=summarize(cells, 1.0))


def test_runs_stand_by_time_and_changes_by_device() -> None:
    runs = [
        ("c", a_run("third", "2026-03-01T00:00:00Z", Outcome.FAIL)),
        ("a", a_run("first", "2026-01-01T00:00:00Z", Outcome.PASS)),
        ("g", a_run("other", "2026-02-01T00:00:00Z", Outcome.DEGRADED, "cuda")),
        ("a2", a_run("first", "2026-01-01T00:00:00Z", Outcome.PASS)),
        ("n", a_run("without", "2026-02-02T00:00:00Z", None)),
    ]
    told = past("m/a/b/none", runs)
    assert [p.run.run.id for p in told] == ["first", "other", "without", "third"]
    assert [p.outcome for p in told] == [Outcome.PASS, Outcome.DEGRADED, None, Outcome.FAIL]
    assert [p.before for p in told] == [None, None, Outcome.PASS, Outcome.PASS]
    assert [p.changed for p in told] == [(), (), (), (("cache", Outcome.PASS, Outcome.FAIL),)]


def test_runs_beside_are_found_newest_first_and_counted(tmp_path: Path) -> None:
    for n in range(MOST + 3):
        folder = tmp_path / f"run-{n:02}"
        folder.mkdir()
        path = write_run(a_run(f"r{n}", "2026-01-01", Outcome.PASS), folder)
        os.utime(path, (1e9 + n, 1e9 + n))
    (tmp_path / "no-run").mkdir()
    found, left = beside(tmp_path / "run-05")
    assert [p.name for p in found[:3]] == ["run-22", "run-21", "run-20"]
    assert (len(found), left) == (MOST, 2)
    assert tmp_path / "run-05" not in found
    assert beside(tmp_path / "run-05" / "run.json") == (found, left)


def test_a_run_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(b"{")
    with pytest.raises(StoreError, match=r"run\.json"):
        read([tmp_path])


def test_records_are_kept_as_they_are() -> None:
    run = a_run("r", "2026-01-01", Outcome.FAIL)
    (told,) = past("m/a/b/none", [("x", run)])
    assert told.run == run
    assert told.cell == run.cells[0]
    assert msgspec.structs.asdict(run)["run"].id == "r"
