"""Laws of the journal and of run.json: nothing written is lost, a torn end is ignored, files are whole or old."""

from __future__ import annotations

import gzip
import os
import tempfile
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compat import store
from compat.records import Check, Environment, Outcome, Run, RunInfo, StackIdentity, cell_outcome, encode_run, summarize
from compat.store import Header, Journal, Line, Planned, Seen, StoreError, assemble, read_journal, read_run

from .stored_runs import journals, runs

Written = tuple[Header, list[Line]]


def _write(folder: Path, header: Header, lines: list[Line]) -> None:
    journal = Journal(folder, header)
    for line in lines:
        journal.add(line)
    journal.close()


def _small() -> Written:
    header = Header(
        journal=store.JOURNAL_SCHEMA,
        run=RunInfo(id="run", started="2026-01-01T00:00:00Z"),
        environment=Environment(),
        planned=(Planned(id="a/fp32/eager/none", axes={"model": "a"}, checks=("load", "memory")),),
    )
    lines = [Line(cell="a/fp32/eager/none", check=Check(name=name, outcome=Outcome.PASS, reason="naïve ✓\n"))
             for name in ("load", "memory")]  # fmt: skip
    return header, lines


@given(journals())
def test_a_journal_reads_back_as_it_was_written(written: Written) -> None:
    header, lines = written
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), header, lines)
        assert read_journal(Path(folder)) == (header, lines)


def test_a_journal_cut_at_any_byte_reads_as_a_prefix_and_goes_on(tmp_path: Path) -> None:
    header, lines = _small()
    _write(tmp_path, header, lines)
    data = (tmp_path / store.JOURNAL).read_bytes()
    ends = [i for i, byte in enumerate(data) if byte == ord("\n")]
    assert len(ends) == 3
    extra = Line(cell="a/fp32/eager/none", check=Check(name="load", outcome=Outcome.FAIL))
    for cut in range(ends[0] + 1, len(data) + 1):
        (tmp_path / store.JOURNAL).write_bytes(data[:cut])
        whole = sum(end < cut for end in ends[1:])
        assert read_journal(tmp_path) == (header, lines[:whole]), f"cut at byte {cut}"
        journal = Journal(tmp_path, None)
        journal.add(extra)
        journal.close()
        assert read_journal(tmp_path) == (header, [*lines[:whole], extra]), f"cut at byte {cut}, then continued"


@settings(max_examples=30)
@given(journals(), st.floats(0, 1))
def test_any_journal_cut_anywhere_loses_only_what_was_cut(written: Written, where: float) -> None:
    header, lines = written
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, header, lines)
        data = (folder / store.JOURNAL).read_bytes()
        first = data.index(b"\n") + 1
        cut = first + round(where * (len(data) - first))
        (folder / store.JOURNAL).write_bytes(data[:cut])
        found, kept = read_journal(folder)
        assert found == header
        assert kept == lines[: data[:cut].count(b"\n") - 1]


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_journal_cut_within_its_header_is_refused_by_name(tmp_path: Path, cut: int) -> None:
    _write(tmp_path, *_small())
    path = tmp_path / store.JOURNAL
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StoreError, match="holds no header") as caught:
        read_journal(tmp_path)
    assert str(path) in str(caught.value)


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    header, lines = _small()
    _write(tmp_path, header, lines)
    path = tmp_path / store.JOURNAL
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([rows[0], b'{"cell": 3}\n', rows[2]]))
    with pytest.raises(StoreError, match=r"cells\.jsonl: line 2: .*cell"):
        read_journal(tmp_path)


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    header, _ = _small()
    _write(tmp_path, msgspec.structs.replace(header, journal="another/1"), [])
    with pytest.raises(StoreError, match="'another/1' is not compat-journal/1"):
        read_journal(tmp_path)
    with pytest.raises(StoreError, match="No such file"):
        read_journal(tmp_path / "absent")


def test_a_journal_does_not_replace_another(tmp_path: Path) -> None:
    header, lines = _small()
    _write(tmp_path, header, lines)
    with pytest.raises(FileExistsError):
        Journal(tmp_path, header)
    assert read_journal(tmp_path) == (header, lines)


def test_the_environment_that_a_worker_described_reaches_the_header(tmp_path: Path) -> None:
    header, lines = _small()
    journal = Journal(tmp_path, header)
    seen = Seen(
        environment=Environment(fingerprint="f", packages={"torch": "2"}), stack=StackIdentity(name="s", sha256="1")
    )
    journal.add(seen)
    journal.add(lines[0])
    journal.close()
    found, results = read_journal(tmp_path)
    assert found.environment == seen.environment
    assert found.run.stack == seen.stack
    assert results == lines[:1]


@given(journals(), st.randoms(use_true_random=False))
def test_assembling_does_not_depend_on_the_order_of_lines(written: Written, random: Random) -> None:
    header, lines = written
    shuffled = list(lines)
    random.shuffle(shuffled)
    assert assemble(header, shuffled, 1.0, "missing") == assemble(header, lines, 1.0, "missing")


@given(journals())
def test_an_assembled_run_has_every_planned_cell_and_no_blank(written: Written) -> None:
    header, lines = written
    run = assemble(header, lines, 1.0, "the power went")
    assert [c.id for c in run.cells] == [p.id for p in header.planned]
    answered = {(line.cell, line.check.name): line.check for line in lines}
    for cell, planned in zip(run.cells, header.planned, strict=True):
        if planned.excluded:
            assert (cell.outcome, cell.reason) == (Outcome.NOT_RUN, planned.excluded)
            continue
        assert tuple(c.name for c in cell.checks) == planned.checks
        assert cell.outcome == cell_outcome(cell.checks)
        for check in cell.checks:
            expected = answered.get((cell.id, check.name))
            if expected is None:
                assert (check.outcome, check.reason) == (Outcome.NOT_RUN, "the power went")
            else:
                assert check == expected
    tasks = sum(len(p.checks) for p in header.planned if not p.excluded)
    assert run.run.complete == (len(answered) == tasks)
    assert run.summary == summarize(run.cells, 1.0)


def test_a_later_answer_replaces_an_earlier_one() -> None:
    header, lines = _small()
    again = msgspec.structs.replace(lines[0], check=Check(name="load", outcome=Outcome.FAIL, reason="x"))
    assert assemble(header, [*lines, again], 0.0, "").cells[0].outcome == Outcome.FAIL


@given(runs())
def test_a_run_is_read_back_from_its_folder_and_from_its_file(run: Run) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = store.write_run(run, Path(folder))
        assert read_run(Path(folder)) == run
        assert read_run(path) == run
        assert os.listdir(folder) == [store.RUN], "a temporary file was left"


def test_a_folder_without_run_json_is_read_as_partial(tmp_path: Path) -> None:
    header, lines = _small()
    _write(tmp_path, header, lines)
    run = read_run(tmp_path)
    assert not run.run.complete, "a run that wrote no run.json did not end"
    assert [c.outcome for c in run.cells[0].checks] == [Outcome.PASS, Outcome.PASS]


@pytest.mark.parametrize("name", ["absent", "absent/run.json"])
def test_a_run_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match=f"{name}.*No such file"):
        read_run(tmp_path / name)


def test_a_run_json_that_is_cut_is_refused_by_name(tmp_path: Path) -> None:
    run = Run(run=RunInfo(id="r", started=""), environment=Environment(), cells=(), summary=summarize([], 0.0))
    path = store.write_run(run, tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StoreError, match=r"run\.json: not a stored run"):
        read_run(tmp_path)


def test_a_compressed_run_is_read_and_a_broken_one_refused_by_name(tmp_path: Path) -> None:
    run = Run(run=RunInfo(id="r", started=""), environment=Environment(), cells=(), summary=summarize([], 0.0))
    path = tmp_path / store.STORED[2]
    data = gzip.compress(encode_run(run))
    path.write_bytes(data)
    assert read_run(tmp_path) == run
    assert read_run(path) == run
    path.write_bytes(data[:-12])
    with pytest.raises(StoreError, match=r"run\.json\.gz: "):
        read_run(path)


def test_a_compressed_run_with_a_flipped_byte_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / store.STORED[2]
    path.write_bytes(gzip.compress(b"{}" * 500)[:10] + b"\xff" * 40)
    with pytest.raises(StoreError, match=r"run\.json\.gz: "):
        read_run(path)


def test_write_whole_replaces_the_content(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    store.write_whole(path, b"old")
    store.write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["report.md"]


def test_write_whole_leaves_the_old_content_when_the_disk_is_full(tmp_path: Path) -> None:
    """/dev/full stands in for a full disk: the temporary file is a link to it."""
    path = tmp_path / "report.md"
    store.write_whole(path, b"old")
    (tmp_path / f".report.md.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        store.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["report.md"], "a temporary file was left"
    assert os.path.exists("/dev/full")


def test_a_journal_on_a_full_disk_says_so_and_keeps_going(tmp_path: Path) -> None:
    header, lines = _small()
    _write(tmp_path, header, lines[:1])
    data = (tmp_path / store.JOURNAL).read_bytes()
    journal = Journal(tmp_path, None)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, journal._file.fileno())
    os.close(full)
    journal.add(lines[1])
    assert journal.broken is not None
    assert "No space left" in str(journal.broken)
    journal.add(lines[1])
    journal.close()
    assert (tmp_path / store.JOURNAL).read_bytes() == data, "what was written before stays whole"
