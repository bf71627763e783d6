"""What became of one cell in several runs.

In: stored runs, or the folders that hold them. Out: one line a run, oldest first, and where the cell changed. Runs are
compared with the one before on the same type of device; a run that does not have the cell says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compat.records import Cell, Outcome, Run
from compat.store import JOURNAL, STORED, read_run

MOST = 20
"""Runs beside a run that are looked at, the newest; each takes a part of a second to read."""


@dataclass(frozen=True)
class Past:
    """One run's word on the cell."""

    where: str
    run: Run
    cell: Cell | None
    before: Outcome | None = None
    """The cell's outcome in the run before on this type of device; None where there is none."""
    changed: tuple[tuple[str, Outcome, Outcome], ...] = ()
    """(check, before, now) of the checks that differ from that run."""

    @property
    def outcome(self) -> Outcome | None:
        """The cell's outcome, or None where the run does not have it."""
        return self.cell.outcome if self.cell is not None else None


def beside(where: Path) -> tuple[tuple[Path, ...], int]:
    """Other stored runs in the folder that holds the run at `where`, the newest MOST, and how many more there are."""
    own = where if where.is_dir() else where.parent
    own = own if own.name not in ("", "..") else own.resolve()
    found = []
    for folder in own.parent.iterdir() if own.parent.is_dir() else ():
        files = [p for name in (*STORED, JOURNAL) if (p := folder / name).is_file()]
        if files and folder.resolve() != own.resolve():
            found.append((max(p.stat().st_mtime for p in files), str(folder), folder))
    newest = [folder for _, _, folder in sorted(found, reverse=True)]
    return tuple(newest[:MOST]), max(len(newest) - MOST, 0)


def read(paths: Iterable[Path]) -> list[tuple[str, Run]]:
    """(where, run) of each. Raises StoreError naming the one that cannot be read."""
    return [(str(path), read_run(path)) for path in paths]


def past(cell: str, runs: Sequence[tuple[str, Run]]) -> tuple[Past, ...]:
    """What each of `runs` (of any order, told once each) says of `cell`, oldest first."""
    last: dict[str, Cell] = {}
    told: dict[str, Past] = {}
    for where, run in sorted(runs, key=lambda item: (item[1].run.started, item[1].run.id)):
        if run.run.id in told:
            continue
        found = next((c for c in run.cells if c.id == cell), None)
        earlier = last.get(run.run.device)
        told[run.run.id] = Past(where, run, found, earlier.outcome if earlier else None, _changes(earlier, found))
        if found is not None:
            last[run.run.device] = found
    return tuple(told.values())


def _changes(before: Cell | None, now: Cell | None) -> tuple[tuple[str, Outcome, Outcome], ...]:
    if before is None or now is None:
        return ()
    pairs = [(c, old) for c in now.checks if (old := before.check(c.name)) is not None]
    return tuple((c.name, old.outcome, c.outcome) for c, old in pairs if old.outcome != c.outcome)
