"""Stored runs, read one at a time into what a site keeps of each: a head without cells, and its cells as columns.

In: paths. Out: entries, each with the SHA-256 of its run.json. A run that cannot be read ends everything with an error
that names its file.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from compat.records import Cell, Outcome, Run
from compat.render.inert import one_line
from compat.render.summary import READING_ORDER, headline_place
from compat.store import read_stored

from .columns import ABSENT, LETTERS, Key, axes_of, columns, keys_of, pooled
from .names import shown, slug

REASON_LENGTH = 300
"""Characters of a reason in the data of a run; the whole text is in run.json."""

RUN_DIGITS = 16
"""Hexadecimal digits of a run's digest in names of files."""


@dataclass(frozen=True)
class Place:
    """What the runs of one history have in common: a matrix on a stack on a device. All texts are shown names."""

    stack: str
    device: str
    matrix: str

    @property
    def slug(self) -> str:
        """Name of the files of this place."""
        return "--".join(slug(part) for part in (self.stack, self.device, self.matrix))


@dataclass(frozen=True)
class Entry:
    """A run without its cells."""

    path: Path
    digest: str
    """SHA-256 of run.json, uncompressed."""
    head: Run
    place: Place
    counts: tuple[tuple[Outcome, int], ...]
    """Outcomes that occur and their cells, in reading order."""

    @property
    def name(self) -> str:
        """Name of its files."""
        return self.digest[:RUN_DIGITS]

    @property
    def when(self) -> str:
        """The day it started, `2026-02-03`, or ""."""
        return self.time[:10]

    @property
    def time(self) -> str:
        """When it started, `2026-02-03T10:20:30+00:00`, or "" where the text is no time."""
        try:
            found = datetime.datetime.fromisoformat(self.head.run.started)
        except ValueError:
            return ""
        if found.tzinfo is None:
            return found.replace(tzinfo=datetime.UTC).isoformat()
        try:
            return found.astimezone(datetime.UTC).isoformat()
        except OverflowError:
            return ""

    @property
    def whole(self) -> bool:
        """Whether it asked for all of its matrix, not for a selection."""
        return not self.head.run.settings.get("selected")

    @property
    def order(self) -> tuple[str, str, str]:
        """Runs of one history are sorted by this."""
        return self.time, shown(self.head.run.id), self.digest


def read(path: Path) -> tuple[Entry, Run]:
    """The run at `path`, as an entry and whole. Raises StoreError naming the file."""
    run, data = read_stored(path)
    counted = Counter(c.outcome for c in run.cells)
    entry = Entry(
        path=path,
        digest=hashlib.sha256(data).hexdigest(),
        head=msgspec.structs.replace(run, cells=()),
        place=_place(run),
        counts=tuple((o, counted[o]) for o in READING_ORDER if counted[o]),
    )
    return entry, run


def _place(run: Run) -> Place:
    gpus = dict.fromkeys(g.name for g in run.environment.gpus) if run.run.device != "cpu" else {}
    file = re.split(r"[/\\]", run.run.matrix.path)[-1].removesuffix(".toml")
    return Place(shown(run.run.stack.name), shown(" ".join((run.run.device, *gpus)).strip()), shown(file))


def letters(cells: tuple[Cell, ...]) -> dict[Key, str]:
    """The outcome of each cell."""
    return {key: LETTERS[cell.outcome] for key, cell in zip(keys_of(cells), cells, strict=True)}


def compact(entry: Entry, cells: tuple[Cell, ...]) -> dict[str, Any]:
    """The run as JSON of a site: its head, and outcomes and reasons of its cells and checks; no measurements."""
    table = columns([(key, axes_of(c)) for (key, _), c in zip(keys_of(cells), cells, strict=True)])
    checks = list(dict.fromkeys(check.name for c in cells for check in c.checks))
    reasons, numbers = pooled(one_line(c.reason, REASON_LENGTH) for c in cells)
    return {
        **facts(entry),
        **table.content,
        "outcomes": "".join(LETTERS[c.outcome] for c in cells),
        "reasons": reasons,
        "reason": numbers,
        "checks": [shown(name) for name in checks],
        "letters": [_asked(cell, checks) for cell in cells],
    }


def _asked(cell: Cell, checks: list[str]) -> str:
    found = {check.name: LETTERS[check.outcome] for check in cell.checks}
    return "".join(found.get(name, ABSENT) for name in checks).rstrip(ABSENT)


def facts(entry: Entry) -> dict[str, Any]:
    """The head of a run as JSON: what it ran on, when, and what came out. No command line, no environment variable, no
    path beyond the name of the matrix file."""
    info, machine = entry.head.run, entry.head.environment
    return {
        "digest": entry.digest,
        "id": shown(info.id),
        "started": shown(info.started) if info.started else "",
        "ended": shown(info.ended) if info.ended else "",
        "complete": info.complete,
        "selected": not entry.whole,
        "stack": {"name": entry.place.stack, "sha256": shown(info.stack.sha256) if info.stack.sha256 else ""},
        "device": entry.place.device,
        "matrix": {"name": entry.place.matrix, "sha256": shown(info.matrix.sha256) if info.matrix.sha256 else ""},
        "summary": headline_place(entry.head),
        "packages": [[shown(n), shown(v)] for n, v in sorted(machine.packages.items())],
        "python": one_line(machine.python),
        "platform": one_line(machine.platform),
        "cpu": one_line(machine.cpu),
        "driver": one_line(machine.driver),
        "cuda": one_line(machine.cuda),
        "counts": [[o.value, n] for o, n in entry.counts],
        "seconds": round(entry.head.summary.seconds, 3),
    }
