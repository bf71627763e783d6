"""Shards are a partition that cuts no load; merged they are the run that was cut."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compat.cli import main
from compat.compare.diff import diff_runs
from compat.compare.merge import MergeError, merge
from compat.exit_codes import NOTHING, OK, USAGE
from compat.matrix import CellSpec
from compat.plan import load_key, shard
from compat.records import Environment, Outcome, Run
from compat.sharper import linked
from compat.store import read_run, write_run

from ..execute.running import run
from ..matrix_files import CELLS, TINY, write
from ..stored_runs import runs
from .test_diff import A, cell, check, run_of

O = Outcome  # noqa: E741
OTHER = "opt/fp32/eager/none"


def _seconds(cell: CellSpec) -> float:
    return 0.1 * len(cell.checks) + len(cell.model)


@settings(max_examples=30)
@given(CELLS, st.integers(1, 5), st.randoms(use_true_random=False))
def test_shards_are_a_partition_that_cuts_no_load(cells: list[CellSpec], count: int, random: st.DataObject) -> None:
    parts = [shard(cells, i, count, _seconds) for i in range(1, count + 1)]
    assert sorted(c.id for part in parts for c in part) == sorted(c.id for c in cells)
    keys = [{load_key(c) for c in part} for part in parts]
    assert sum(map(len, keys)) == len(set().union(*keys))
    mixed = list(cells)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    again = [shard(mixed, i, count, _seconds) for i in range(1, count + 1)]
    assert [{c.id for c in p} for p in again] == [{c.id for c in p} for p in parts], "the order decides nothing"
    whole = [c.id for c in cells]
    assert all([c.id for c in p] == [i for i in whole if i in {c.id for c in p}] for p in parts)


@settings(max_examples=30)
@given(CELLS, st.integers(2, 4))
def test_shards_are_balanced_as_well_as_the_longest_group_allows(cells: list[CellSpec], count: int) -> None:
    costs = [sum(_seconds(c) for c in shard(cells, i, count, _seconds) if not c.excluded) for i in range(1, count + 1)]
    groups: dict[str, float] = {}
    for one in cells:
        groups[load_key(one)] = groups.get(load_key(one), 0.0) + (0.0 if one.excluded else _seconds(one))
    longest = max(groups.values(), default=0.0)
    assert max(costs) - min(costs) <= longest + 1e-9


def _cut(whole: Run, parts: list[int], count: int) -> list[Run]:
    """`whole` as runs of shards: cell i belongs to part parts[i]."""
    made = []
    for number in range(count):
        places = [i for i, part in enumerate(parts) if part == number]
        note = {"part": f"{number + 1}/{count}", "total": len(whole.cells), "positions": places}
        info = msgspec.structs.replace(whole.run, settings={**whole.run.settings, "shard": note})
        made.append(msgspec.structs.replace(whole, run=info, cells=linked([whole.cells[i] for i in places])))
    return made


@settings(max_examples=20)
@given(st.data())
def test_merged_shards_are_the_run_that_was_cut(data: st.DataObject) -> None:
    drawn = data.draw(runs())
    info = msgspec.structs.replace(drawn.run, settings={"seed": 1}, complete=True)
    whole = msgspec.structs.replace(drawn, run=info, cells=linked(drawn.cells))
    parts = [data.draw(st.integers(0, 2)) for _ in whole.cells]
    cut = data.draw(st.permutations(_cut(whole, parts, 3)))
    merged = merge(cut)
    assert merged.cells == whole.cells
    assert merged.run.complete
    assert merged.summary.outcomes == whole.summary.outcomes
    assert diff_runs(whole, merged).empty


def test_a_missing_part_is_a_partial_run() -> None:
    whole = run_of(cell(A, check(O.PASS)), cell(OTHER, check(O.PASS)), cell("opt/fp32/sdpa/none", check(O.PASS)))
    first, second, _ = _cut(whole, [0, 1, 2], 3)
    assert not merge([first, second]).run.complete


def test_runs_that_overlap_must_agree() -> None:
    one = run_of(cell(A, check(O.PASS), check(O.FAIL, "padding")))
    two = run_of(cell(A, check(O.PASS), check(O.PASS, "cache")), cell(OTHER, check(O.PASS)))
    merged = merge([one, two])
    assert [(c.id, [k.name for k in c.checks]) for c in merged.cells] == [
        (A, ["agreement", "padding", "cache"]),
        (OTHER, ["agreement"]),
    ]
    assert merged.cells[0].outcome is O.FAIL
    with pytest.raises(MergeError, match=r"disagree: llama/bf16/sdpa/none: agreement: pass and fail"):
        merge([one, run_of(cell(A, check(O.FAIL)))])


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (Environment(fingerprint="g", packages={"torch": "2.12.0"}), "packages differs (torch 2.13.0 and 2.12.0)"),
        (Environment(fingerprint="g", packages={"torch": "2.13.0"}, cpu="X"), "the machine differs (cpu none and X)"),
    ],
)
def test_runs_of_other_stacks_or_machines_are_refused(environment: Environment, says: str) -> None:
    one, two = run_of(cell(A, check(O.PASS))), run_of(cell(OTHER, check(O.PASS)), environment=environment)
    with pytest.raises(MergeError) as raised:
        merge([one, two])
    assert says in str(raised.value)
    if "machine" in says:
        assert merge([one, two], any_machine=True).environment.fingerprint == ""


def test_real_shards_merged_are_the_run_that_was_not_cut(
    clean: Run, tmp_path: Path, probe_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = write(tmp_path, TINY)
    for i in (1, 2):
        run(matrix, tmp_path / f"s{i}", probe_cache, shard=(i, 2))
    parts = [read_run(tmp_path / f"s{i}") for i in (1, 2)]
    assert [len(p.cells) for p in parts] == [2, 2]
    folders = [str(tmp_path / "s2"), str(tmp_path / "s1")]
    assert main(["merge", *folders, "--out", str(tmp_path / "m")]) == OK
    merged = read_run(tmp_path / "m")
    assert merged.run.complete
    assert [c.id for c in merged.cells] == [c.id for c in clean.cells]
    assert {k.kind.value for k in diff_runs(clean, merged).cells} == {"same"}
    assert merged.summary.checks == clean.summary.checks
    assert (tmp_path / "m" / "report.md").exists()
    assert main(["merge", *folders, "--out", str(tmp_path / "m")]) == USAGE
    assert "already there" in capsys.readouterr().err


def test_what_cannot_be_merged_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, outcome in (("a", O.PASS), ("b", O.FAIL)):
        (tmp_path / name).mkdir()
        write_run(run_of(cell(A, check(outcome))), tmp_path / name)
    for arguments, says in (
        ([str(tmp_path / "a")], "two runs or more"),
        ([str(tmp_path / "a"), str(tmp_path / "b")], "disagree"),
        ([str(tmp_path / "a"), str(tmp_path / "c")], "no such file or folder"),
    ):
        assert main(["merge", *arguments, "--out", str(tmp_path / "m")]) == USAGE
        assert says in capsys.readouterr().err
        assert not (tmp_path / "m").exists(), "nothing half-written"


def test_a_part_without_a_load_group_has_nothing_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = write(tmp_path, TINY)
    command = ["run", str(matrix), "--device", "cpu", "--shard", "3/3", "--out", str(tmp_path / "out")]
    assert main(command) == NOTHING
    assert "shard 3/3 holds no load group" in capsys.readouterr().err
    for wrong in ("0/3", "4/3", "1", "a/b", "1/0"):
        with pytest.raises(SystemExit) as ended:
            main(["run", str(matrix), "--shard", wrong])
        assert ended.value.code == USAGE
