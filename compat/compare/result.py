"""What a diff of two runs says, as frozen structs, and its JSON form (`compat-diff/1`).

In: nothing but values. Out: what compat/compare/diff.py fills in, and front ends, gates and renderers read. `base` is
the run that is compared with, `head` the run that is looked at.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable

from compat.records import Outcome, Record, decode_record, encode_record

SCHEMA = "compat-diff/1"


class Kind(enum.StrEnum):
    """What became of a check or a cell from base to head. Every cell, and every check of it, has exactly one."""

    REGRESSED = "regressed"
    """Worse: pass, degraded, unsupported and the bad outcomes follow each other in this order."""
    MIXED = "mixed"
    """Of a cell alone: one check regressed, another was fixed."""
    FIXED = "fixed"
    """Better, in the same order."""
    FLAKY = "flaky"
    """Asked more than once within one run with different outcomes, one of which the other run has too."""
    SPURIOUS = "spurious"
    """Out of memory or time in one of the runs, once: believed when it repeats."""
    CHANGED = "changed"
    """Other without being better or worse: another bad outcome, another cause of the same, another kernel, or an
    outcome that says nothing of the cell on one side."""
    NEW = "new"
    """In head alone."""
    GONE = "gone"
    """In base alone."""
    SAME = "same"


class Speeds(enum.StrEnum):
    """What the intervals of two speedups say."""

    SLOWER = "slower"
    FASTER = "faster"
    ALIKE = "alike"
    """No difference of the least effect is shown; that is no proof that there is none."""


class Difference(Record, frozen=True):
    """Something beside the outcomes that is not alike; empty text where a run has it not, or did not record it."""

    subject: str
    """`package`, `machine`, `run` or `effective`."""
    name: str
    base: str
    head: str


class Side(Record, frozen=True):
    """One of the two runs."""

    id: str
    started: str
    complete: bool
    cells: int
    device: str
    stack: str
    fingerprint: str


class CheckChange(Record, frozen=True, omit_defaults=True):
    """A check that is not the same in both runs."""

    check: str
    kind: Kind
    base: Outcome | None = None
    """None: not asked for in that run."""
    head: Outcome | None = None
    attempts: int = 1
    """The most often that either run asked."""
    cause: str = ""
    """Signature of the worse side, or its reason without numbers: the same for changes with one cause."""
    reason: str = ""
    """Why the worse side has its outcome."""
    repro: str = ""
    """The command that asks again."""


class CellChange(Record, frozen=True, omit_defaults=True):
    """A cell of either run."""

    id: str
    axes: dict[str, str]
    kind: Kind
    base: Outcome | None = None
    head: Outcome | None = None
    checks: tuple[CheckChange, ...] = ()
    """Those that are not the same."""
    same: int = 0
    """How many checks are."""
    effective: tuple[Difference, ...] = ()
    """What else held after loading."""


class SpeedChange(Record, frozen=True, omit_defaults=True):
    """The speedup of one cell at one point in both runs. `ratio` is head's over base's: below 1, head is slower."""

    cell: str
    name: str
    says: Speeds
    ratio: float
    ci95: tuple[float, float]
    base: float
    head: float
    over: str
    """What both speedups are over, or the stack itself where head was timed against it directly."""
    at: dict[str, float] = {}


class Diff(Record, frozen=True):
    """Two runs compared."""

    base: Side
    head: Side
    differences: tuple[Difference, ...]
    """What changed in stack, machine and settings: the first thing to read."""
    cells: tuple[CellChange, ...]
    """Every cell of both runs, in the order of head, then those that are gone."""
    speed: tuple[SpeedChange, ...]
    speed_not_comparable: dict[str, int]
    """Why speeds were not compared -> how many."""
    least_effect: float
    """Smallest relative difference of a speed that is stated."""
    compared: int
    """Checks that both runs hold; where it is 0, nothing can be said."""
    schema: str = SCHEMA

    @property
    def empty(self) -> bool:
        """Whether no cell, no setting and no speed is other."""
        slower = any(s.says is not Speeds.ALIKE for s in self.speed)
        return not self.differences and not slower and all(c.kind is Kind.SAME for c in self.cells)

    def of(self, *kinds: Kind) -> tuple[CellChange, ...]:
        """The cells of these kinds."""
        return tuple(c for c in self.cells if c.kind in kinds)

    def checks(self, *kinds: Kind) -> tuple[tuple[CellChange, CheckChange], ...]:
        """The checks of these kinds (of any but `same`, where none is named), each with its cell."""
        return tuple((c, k) for c in self.cells for k in c.checks if not kinds or k.kind in kinds)

    def counts(self) -> dict[Kind, tuple[int, int]]:
        """Kind -> (cells, checks), kinds that do not occur left out."""
        cells = Counter(c.kind for c in self.cells)
        checks = Counter(k.kind for _, k in self.checks())
        checks[Kind.SAME] = sum(c.same for c in self.cells)
        return {kind: (cells[kind], checks[kind]) for kind in Kind if cells[kind] or checks[kind]}


class Group(Record, frozen=True):
    """Checks that changed in one way for one cause."""

    kind: Kind
    base: Outcome | None
    head: Outcome | None
    cause: str
    checks: tuple[str, ...]
    cells: tuple[CellChange, ...]
    reason: str
    """Of the first of the cells."""
    repro: str


def groups(changes: Iterable[tuple[CellChange, CheckChange]]) -> tuple[Group, ...]:
    """`changes` (as `Diff.checks` gives them) by kind, outcomes and cause: most cells first within a kind."""
    found: dict[tuple[Kind, Outcome | None, Outcome | None, str], list[tuple[CellChange, CheckChange]]] = {}
    for cell, change in changes:
        found.setdefault((change.kind, change.base, change.head, change.cause), []).append((cell, change))
    made = [
        Group(
            kind=kind,
            base=base,
            head=head,
            cause=cause,
            checks=tuple(dict.fromkeys(k.check for _, k in members)),
            cells=tuple({c.id: c for c, _ in members}.values()),
            reason=members[0][1].reason,
            repro=next((k.repro for _, k in members if k.repro), ""),
        )
        for (kind, base, head, cause), members in found.items()
    ]
    order = list(Kind)
    return tuple(sorted(made, key=lambda g: (order.index(g.kind), -len(g.cells), g.cause)))


def encode_diff(diff: Diff) -> bytes:
    """`diff` as JSON (UTF-8, one cell a line)."""
    return encode_record(diff, "cells")


def decode_diff(data: bytes) -> Diff:
    """The diff stored in `data`. Raises `ValueError` naming the key when it is none of a schema we read."""
    return decode_record(data, Diff, SCHEMA, "diff")
