"""Gather what went wrong by its cause, so that forty red cells with one reason read as one line.

In: the cells of a run. Out: groups of bad, degraded and inconclusive checks by signature, and groups of cells that
were not asked by reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compat.records import BAD, SEVERITY, WITHHELD, Cell, Check, Evidence, Measurement, Outcome
from compat.render.evidence import begins, kernels, script, smallest
from compat.render.figures import measured
from compat.render.inert import one_line
from compat.render.patterns import Patterns, patterns

FAILING: frozenset[Outcome] = BAD | {Outcome.DEGRADED, Outcome.INCONCLUSIVE}
"""Outcomes of a check that a reader should look at."""

QUIET: frozenset[Outcome] = WITHHELD | {Outcome.NOT_RUN}
"""Outcomes of a cell that was not asked."""

MEASURED: frozenset[Outcome] = frozenset({Outcome.FAIL, Outcome.DEGRADED})
"""Outcomes that a measurement decides: only there is one cell worse than another."""

CELL = "cell"
"""Stands for a check where a cell has an outcome that none of its checks carries, as when it was not reached."""

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Group:
    """Checks with one outcome and one signature. Figure, reason and command all belong to the cell `example`."""

    outcome: Outcome
    signature: str
    checks: tuple[str, ...]
    cells: tuple[Cell, ...]
    where: Patterns
    example: str
    reason: str
    worst: str
    diverges_at: str
    """The first diverging module in words, with what follows it."""
    smallest: str
    """The smallest failing call in words."""
    kernels: str
    script: str
    """The reproducer, seen from the run's folder."""
    repro: str


Finding = tuple[Cell, Check]


def failures(cells: Sequence[Cell], limit: int = 4) -> tuple[Group, ...]:
    """Groups of all `FAILING` checks: the worst outcome first, then the most cells; at most `limit` patterns each."""
    found: dict[tuple[Outcome, str, str], list[Finding]] = {}
    for cell in cells:
        for check in _answers(cell):
            if check.outcome in FAILING:
                # A recorded signature may span checks; reasons that merely read alike may not.
                apart = "" if check.evidence.signature else check.name
                found.setdefault((check.outcome, _signature(check), apart), []).append((cell, check))
    return _ordered(_group(outcome, text, items, cells, limit) for (outcome, text, _), items in found.items())


def not_asked(cells: Sequence[Cell], limit: int = 4) -> tuple[Group, ...]:
    """Groups of the cells that were not asked, by the refusal that was recognised, or else by signature."""
    found: dict[tuple[Outcome, str], list[Finding]] = {}
    for cell in cells:
        if cell.outcome in QUIET:
            check = next(
                (c for c in cell.checks if c.outcome is cell.outcome and (c.reason or c.evidence.signature)), None
            )
            check = check or Check(name=CELL, outcome=cell.outcome, reason=cell.reason)
            exception = check.evidence.exception
            recognised = exception.refusal if exception else ""
            found.setdefault((cell.outcome, recognised or _signature(check)), []).append((cell, check))
    return _ordered(_group(outcome, text, items, cells, limit) for (outcome, text), items in found.items())


def _answers(cell: Cell) -> Iterable[Check]:
    """The checks of `cell`, and one made up for an outcome of the cell that none of them explains."""
    yield from cell.checks
    if cell.outcome in FAILING and all(c.outcome is not cell.outcome for c in cell.checks):
        yield Check(name=CELL, outcome=cell.outcome, reason=cell.reason)


def _signature(check: Check) -> str:
    """The recorded signature, or the reason with the numbers left out."""
    return check.evidence.signature or _without_numbers(check.reason)


def _without_numbers(reason: str) -> str:
    return _NUMBER.sub("#", reason) or "no reason recorded"


def _ordered(groups: Iterable[Group]) -> tuple[Group, ...]:
    return tuple(sorted(groups, key=lambda g: (SEVERITY.index(g.outcome), -len(g.cells), g.signature)))


def _group(outcome: Outcome, signature: str, found: Sequence[Finding], universe: Sequence[Cell], limit: int) -> Group:
    cell, check, figure = _worst(found)
    members = tuple({id(c): c for c, _ in found}.values())
    evidence = check.evidence
    told = _telling(check, found)
    reasons = {c.reason for _, c in found}
    if signature != evidence.signature and len(reasons) == 1:
        signature = check.reason or signature
    return Group(
        outcome=outcome,
        signature=one_line(signature, 160),
        checks=tuple(dict.fromkeys(c.name for _, c in found)),
        cells=members,
        where=patterns(members, universe, limit),
        example=cell.id,
        reason=one_line(check.reason or cell.reason or "no reason recorded"),
        worst=measured(figure) if figure else "",
        diverges_at=begins(told),
        smallest=smallest(told),
        kernels=kernels(told),
        script=script(told) or next((s for _, c in found if (s := script(c.evidence))), ""),
        repro=evidence.repro or next((c.evidence.repro for _, c in found if c.evidence.repro), ""),
    )


def _telling(worst: Check, found: Sequence[Finding]) -> Evidence:
    """The evidence that says most of the cause: the worst check's own, or else that of one which was looked into."""
    explained = [c for c in (worst, *(c for _, c in found)) if c.evidence.diverges_at]
    return next(iter(explained), worst).evidence


def _worst(found: Sequence[Finding]) -> tuple[Cell, Check, Measurement | None]:
    """The finding with the worst figure of the deciding measurement, or the first when none is comparable."""
    first_cell, first = found[0]
    if first.outcome not in MEASURED:
        return first_cell, first, None
    name = _deciding(first)
    held = [(cell, check, m) for cell, check in found if (m := check.measurement(name)) is not None]
    if not held:
        return first_cell, first, None
    return max(held, key=lambda item: _badness(item[2]))


def _deciding(check: Check) -> str:
    """The measurement that the reason names, or the first that is judged at all."""
    judged = [m for m in check.measurements if m.better != "none"]
    named = [
        m for m in check.measurements if m.name and (m.name in check.reason or m.name.replace("_", " ") in check.reason)
    ]
    return next((m.name for m in (*named, *judged)), "")


def _badness(measurement: Measurement) -> float:
    """Larger is worse; a figure that is not finite is the worst; one without a direction compares as equal."""
    if measurement.value is None:
        return float("inf")
    return {"lower": measurement.value, "higher": -measurement.value}.get(measurement.better, 0.0)
