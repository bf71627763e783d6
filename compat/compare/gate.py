"""What of a diff counts, by the names that `compat diff --fail-on` takes. Pure.

In: a `Diff`. Out: for each name the texts of what it found; nothing found, nothing counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from compat.compare.diff import RANK
from compat.compare.result import CellChange, CheckChange, Diff, Kind, Speeds
from compat.records import BAD, Outcome

MEASURED: frozenset[Outcome] = frozenset(RANK) - {Outcome.UNSUPPORTED}
"""Outcomes that stand on a computation that ran."""


def lost(change: CheckChange) -> bool:
    """Whether base measured what head does not: gone, not run, unavailable, in error, or without a conclusion."""
    return change.base in MEASURED and change.head not in RANK


def newly_failing(change: CheckChange) -> bool:
    """Whether head fails (or is degraded) where base says nothing of the cell, so that it cannot have regressed."""
    return change.head in BAD | {Outcome.DEGRADED} and change.base not in RANK


def _regressed(diff: Diff) -> Iterator[str]:
    for cell in diff.of(Kind.REGRESSED, Kind.MIXED):
        worse = [k for k in cell.checks if k.kind is Kind.REGRESSED]
        yield from (_told(cell, k) for k in worse)
        if not worse:
            yield f"{cell.id}: {cell.base} -> {cell.head}"


def _told(cell: CellChange, change: CheckChange) -> str:
    return f"{cell.id}: {change.check}: {change.base or 'absent'} -> {change.head or 'absent'}"


def _checks(wanted: Callable[[CheckChange], bool]) -> Callable[[Diff], Iterator[str]]:
    return lambda diff: (_told(c, k) for c, k in diff.checks() if wanted(k))


def _coverage(diff: Diff) -> Iterator[str]:
    yield from (_told(c, k) for c, k in diff.checks() if lost(k))


def _slower(diff: Diff) -> Iterator[str]:
    for speed in diff.speed:
        if speed.says is Speeds.SLOWER:
            yield f"{speed.cell}: {speed.name} {speed.ratio:.3g} of base's, {speed.ci95[0]:.3g} to {speed.ci95[1]:.3g}"


def _changed(diff: Diff) -> Iterator[str]:
    yield from (f"{c.id}: {c.base or 'absent'} -> {c.head or 'absent'}" for c in diff.of(Kind.CHANGED))


GATES: dict[str, Callable[[Diff], Iterable[str]]] = {
    "regressed": _regressed,
    "coverage": _coverage,
    "slower": _slower,
    "new-failures": _checks(newly_failing),
    "changed": _changed,
    "flaky": _checks(lambda k: k.kind is Kind.FLAKY),
    "spurious": _checks(lambda k: k.kind is Kind.SPURIOUS),
}
"""Name -> what it finds in a diff."""


def findings(diff: Diff, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Name -> what it found, for those of `names` (keys of GATES) that found anything."""
    found = {name: tuple(GATES[name](diff)) for name in names}
    return {name: texts for name, texts in found.items() if texts}
