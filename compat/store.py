"""Runs on disk: an append-only journal while running, run.json at the end.

A run is a folder. `cells.jsonl` starts with a header (what was to run) and gets a line for every check as its result
comes, flushed; a run that was killed loses nothing, can be read as it is, and can be resumed. A last line that was cut
off is ignored.
"""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from compat.records import (
    Cell,
    Check,
    Environment,
    Outcome,
    R,
    Record,
    Run,
    RunInfo,
    StackIdentity,
    cell_outcome,
    decode_record,
    decode_run,
    encode_run,
    summarize,
)
from compat.sharper import linked

JOURNAL = "cells.jsonl"
RUN = "run.json"
STORED = (RUN, f"{RUN}.xz", f"{RUN}.gz")
"""Names of a stored run, in the order in which a folder is searched."""
JOURNAL_SCHEMA = "compat-journal/1"


class StoreError(Exception):
    """A stored run that cannot be read or written; the message names the file."""


class Planned(Record, frozen=True):
    """A cell as the header announces it."""

    id: str
    axes: dict[str, str]
    checks: tuple[str, ...] = ()
    excluded: str = ""


class Header(Record, frozen=True):
    """The first line of a journal."""

    journal: str
    run: RunInfo
    environment: Environment
    planned: tuple[Planned, ...]


class Seen(Record, frozen=True):
    """The environment that the first worker described; it stands before the first result."""

    environment: Environment
    stack: StackIdentity


class Line(Record, frozen=True):
    """A result."""

    cell: str
    check: Check
    effective: dict[str, Any] = {}


class Journal:
    """Append results to `folder`/cells.jsonl. When the disk is full, results are kept in memory and `broken` says why;
    what was written before stays whole."""

    def __init__(self, folder: Path, header: Header | None) -> None:
        """`header` starts a new journal; None continues the one that is there."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / JOURNAL
        self.broken: OSError | None = None
        self._lock = threading.Lock()
        if header is None:
            _cut_torn_line(self.path)
            self._file = self.path.open("ab")
        else:
            self._file = self.path.open("xb")
            self._append(msgspec.json.encode(header))
            if self.broken is not None:
                raise self.broken

    def add(self, line: Line | Seen) -> None:
        """Write one result, flushed to the operating system."""
        with self._lock:
            if self.broken is None:
                self._append(msgspec.json.encode(line))

    def _append(self, data: bytes) -> None:
        whole = self._file.tell()
        try:
            self._file.write(data + b"\n")
            self._file.flush()
        except OSError as error:
            self.broken = error
            with contextlib.suppress(OSError):  # leave whole lines only
                os.ftruncate(self._file.fileno(), whole)

    def close(self) -> None:
        """Close the file; a flush that the full disk refuses again changes nothing."""
        try:
            self._file.close()
        except OSError as error:
            self.broken = self.broken or error


def _cut_torn_line(path: Path) -> None:
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end != len(data):
        with path.open("r+b") as file:
            file.truncate(end)


def read_journal(folder: Path) -> tuple[Header, list[Line]]:
    """The header and the results of a journal. Raises StoreError naming file and line."""
    path = folder / JOURNAL
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    whole = [x for x in lines[:-1] if x]  # what follows the last newline was cut off
    if not whole:
        raise StoreError(f"{path}: holds no header")
    try:
        header = msgspec.json.decode(whole[0], type=Header)
    except msgspec.DecodeError as error:
        raise StoreError(f"{path}: line 1: {error}") from error
    if header.journal != JOURNAL_SCHEMA:
        raise StoreError(f"{path}: line 1: {header.journal!r} is not {JOURNAL_SCHEMA}")
    results = []
    for number, text in enumerate(whole[1:], start=2):
        try:
            if text.startswith(b'{"environment"'):
                seen = msgspec.json.decode(text, type=Seen)
                info = msgspec.structs.replace(header.run, stack=seen.stack)
                header = msgspec.structs.replace(header, environment=seen.environment, run=info)
            else:
                results.append(msgspec.json.decode(text, type=Line))
        except msgspec.DecodeError as error:
            raise StoreError(f"{path}: line {number}: {error}") from error
    return header, results


def assemble(header: Header, lines: Iterable[Line], seconds: float, missing: str) -> Run:
    """A run from a header and results in any order: every planned cell appears; what has no result yet says
    `missing`."""
    results: dict[str, dict[str, Check]] = {}
    effective: dict[str, dict[str, Any]] = {}
    for line in lines:
        results.setdefault(line.cell, {})[line.check.name] = line.check
        if line.effective:
            effective[line.cell] = line.effective
    cells = []
    whole = True
    for planned in header.planned:
        if planned.excluded:
            cells.append(Cell(id=planned.id, axes=planned.axes, outcome=Outcome.NOT_RUN, reason=planned.excluded))
            continue
        found = results.get(planned.id, {})
        whole = whole and all(name in found for name in planned.checks)
        checks = tuple(
            found.get(name) or Check(name=name, outcome=Outcome.NOT_RUN, reason=missing) for name in planned.checks
        )
        cells.append(make_cell(planned, checks, effective.get(planned.id, {})))
    info = msgspec.structs.replace(header.run, complete=whole)
    return Run(run=info, environment=header.environment, cells=linked(cells), summary=summarize(cells, seconds))


def make_cell(planned: Planned, checks: Sequence[Check], effective: dict[str, Any]) -> Cell:
    """A cell from its checks: its outcome is the worst of theirs, its reason that check's."""
    outcome = cell_outcome(checks)
    reason = "; ".join(dict.fromkeys(f"{c.name}: {c.reason}" for c in checks if c.outcome == outcome and c.reason))
    return Cell(
        id=planned.id,
        axes=planned.axes,
        outcome=outcome,
        effective=effective,
        reason=reason,
        seconds=round(sum(c.seconds for c in checks), 6),
        checks=tuple(checks),
    )


def write_run(run: Run, folder: Path) -> Path:
    """Write run.json whole or not at all. Raises OSError."""
    path = folder / RUN
    write_whole(path, encode_run(run))
    return path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name beside `path` and move it into place. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_run(where: Path) -> Run:
    """The run in a folder, or in a file of one of the names in STORED; a folder without any of these is read from its
    journal, as partial.

    Raises StoreError naming the file.
    """
    return read_stored(where)[0]


def read_stored(where: Path) -> tuple[Run, bytes]:
    """What `read_run` reads, and the bytes of its run.json, uncompressed; of a journal, those that it would have.

    Raises StoreError naming the file.
    """
    path = where
    if where.is_dir():
        found = next((where / name for name in STORED if (where / name).exists()), None)
        if found is None:
            header, lines = read_journal(where)
            seconds = sum(line.check.seconds for line in lines)
            run = assemble(header, lines, seconds, "the run ended before this check")
            run = msgspec.structs.replace(run, run=msgspec.structs.replace(run.run, complete=False))
            return run, encode_run(run)
        path = found
    with _naming(path):
        data = _uncompressed(path.read_bytes())
        return decode_run(data), data


RUN_FOLDERS = ("compat-runs", "reports")
"""Folders below the working directory whose runs can be named by the name of their folder."""


def find_run(named: str, below: Path = Path()) -> Path:
    """The run that a user names: a path, or the name of a folder in one of RUN_FOLDERS. Raises StoreError with the
    nearest name."""
    from compat.axes import nearest

    path = below / named
    if path.exists():
        return path
    places = [below / folder / named for folder in RUN_FOLDERS] if Path(named).name == named else []
    for place in places:
        if place.is_dir():
            return place
    known = [p.name for folder in RUN_FOLDERS if (below / folder).is_dir() for p in sorted((below / folder).iterdir())]
    hint = nearest(named, known)
    raise StoreError(
        f"{named}: no such file or folder, nor a run in {' or '.join(f'{f}/' for f in RUN_FOLDERS)}"
        + (f"; nearest: {hint!r}" if hint else "")
    )


def read_record(path: Path, kind: type[R], schema: str, what: str) -> R:
    """The record of `kind` that the file at `path` holds, compressed or not. Raises StoreError naming the file."""
    with _naming(path):
        return decode_record(_uncompressed(path.read_bytes()), kind, schema, what)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What reading or decoding a stored file raises, as a StoreError that names it."""
    try:
        yield
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError, ValueError) as error:
        raise StoreError(f"{path}: {error}") from error
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error


def _uncompressed(data: bytes) -> bytes:
    """The bytes that were compressed by gzip or xz; others as they are. Raises OSError, EOFError, lzma.LZMAError."""
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data)
    return lzma.decompress(data) if data.startswith(b"\xfd7zXZ") else data
