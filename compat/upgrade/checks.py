"""What the checks of two runs say of an upgrade: from a diff to findings. Pure.

In: a `Diff` of the run before and the run after. Out: `Finding`s named `check:NAME`.
"""

from __future__ import annotations

from compat.compare.result import CellChange, CheckChange, Diff
from compat.compare.result import Kind as Changed
from compat.records import Outcome
from compat.upgrade.result import Finding, Kind

_JUDGED = frozenset({Outcome.PASS, Outcome.DEGRADED})
_WITHHELD = frozenset({Outcome.UNSUPPORTED, Outcome.UNAVAILABLE, Outcome.INCONCLUSIVE, Outcome.NOT_RUN, None})


def of_diff(diff: Diff) -> tuple[Finding, ...]:
    """A finding for every check that is not the same, in the order of the cells."""
    return tuple(_finding(cell, change) for cell, change in diff.checks())


def _because(cell: CellChange, change: CheckChange) -> str:
    """The load check, for one that was not asked after a load that is other."""
    loads = any(c.check == "load" for c in cell.checks)
    unasked = Outcome.NOT_RUN in (change.base, change.head)
    return "check:load" if loads and unasked and change.check != "load" else ""


def kind_of(change: CheckChange) -> Kind:
    """What the change of a check means for an upgrade."""
    if change.kind in (Changed.REGRESSED, Changed.CHANGED, Changed.GONE):
        if change.base in _JUDGED and change.head in _WITHHELD:
            return Kind.COVERAGE
        return Kind.REGRESSED if change.kind is Changed.REGRESSED else Kind.NOTED
    return {Changed.FIXED: Kind.FIXED, Changed.NEW: Kind.GAINED}.get(change.kind, Kind.NOTED)


def _finding(cell: CellChange, change: CheckChange) -> Finding:
    names = [o.value if o is not None else "not asked" for o in (change.base, change.head)]
    return Finding(
        kind=kind_of(change),
        name=f"check:{change.check}",
        cell=cell.id,
        words=f"outcome of the check {change.check}",
        before=names[0],
        after=f"{names[1]}: {change.reason}" if change.reason else names[1],
        detail=change.cause,
        because=_because(cell, change),
    )
