"""The whole story of a cell: what was asked, what ran, each check against its bounds, why it failed, its past.

In: a stored run, one of its cells, other runs. Out: a `Story` of records and rows, for compat.render.story. Pure.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from compat import bounds
from compat.axes import nearest
from compat.compare.history import Past
from compat.judge import rejudge
from compat.records import Cell, Check, Outcome, Run
from compat.rules import Context, Refusal, refusals

NAMED = 5
"""Cells that the answer to a pattern names when it fits several."""


class CellNotFound(Exception):
    """No cell, or more than one, fits what was asked; the message names the nearest."""


@dataclass(frozen=True)
class CheckStory:
    """A check, and what the criteria of this compat say of it row by row."""

    check: Check
    rows: tuple[bounds.Judged, ...] = ()
    findings: tuple[bounds.Found, ...] = ()
    refusal: Refusal | None = None
    today: Outcome | None = None
    """The outcome by the criteria of this compat, where it is another than the stored one."""
    unjudged: str = ""
    """Why this compat has no bounds for it, where it has measurements and no rows."""


@dataclass(frozen=True)
class Story:
    """A cell of a run."""

    run: Run
    cell: Cell
    checks: tuple[CheckStory, ...]
    past: tuple[Past, ...] = ()
    left_out: int = 0
    """Runs beside this one that were not looked at."""


def find(run: Run, wanted: str) -> Cell:
    """The cell of that id, or the only one that fits it as a pattern with wildcards. Raises CellNotFound."""
    exact = next((c for c in run.cells if c.id == wanted), None)
    if exact is not None:
        return exact
    fitting = [c for c in run.cells if fnmatch.fnmatchcase(c.id, wanted)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        named = ", ".join(repr(c.id) for c in fitting[:NAMED])
        more = f" and {len(fitting) - NAMED:,} more" if len(fitting) > NAMED else ""
        raise CellNotFound(f"{wanted!r} fits {len(fitting):,} cells: {named}{more}; name one")
    hint = nearest(wanted, [c.id for c in run.cells])
    raise CellNotFound(f"no cell {wanted!r} in run {run.run.id!r}" + (f"; nearest: {hint!r}" if hint else ""))


def find_check(cell: Cell, name: str) -> Check:
    """The check of that name. Raises CellNotFound."""
    found = cell.check(name)
    if found is None:
        known = [c.name for c in cell.checks]
        hint = nearest(name, known)
        told = f"nearest: {hint!r}" if hint else f"it has {', '.join(known) or 'none'}"
        raise CellNotFound(f"{cell.id}: no check {name!r} in this run; {told}")
    return found


def story(run: Run, cell: Cell, past: Sequence[Past] = (), left_out: int = 0) -> Story:
    """Everything that is known of `cell`."""
    context = bounds.context(run, cell)
    told = [_told(check, context) for check in cell.checks]
    return Story(run, cell, tuple(told), tuple(past), left_out)


def _told(check: Check, context: Context | None) -> CheckStory:
    exception = check.evidence.exception
    refusal = next((r for r in refusals() if exception and exception.refusal and r.id == exception.refusal), None)
    if context is None:
        return CheckStory(check, refusal=refusal, unjudged="it does not know a value of the cell's axes")
    try:
        again = rejudge(check, context).outcome
        rows, found = bounds.judged(check, context), bounds.findings(check, context)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:  # facts of another form than ours
        return CheckStory(check, refusal=refusal, unjudged=f"what the check saw is not as it writes it: {error!r}")
    return CheckStory(check, rows, found, refusal, again if again != check.outcome else None)
