"""What became of a cell from one run to another, in one word: the same for the pages and for what is counted here.

In: two outcomes, or None for a cell that a run does not hold. Out: a `Change`, or None where nothing changed.
"""

from __future__ import annotations

from typing import NamedTuple

from compat.records import BAD, SEVERITY, Outcome
from compat.render.groups import QUIET

from .columns import ABSENT, LETTERS


class Change(NamedTuple):
    """One kind of change. `sign` stands beside its colour, `slug` names its class in CSS."""

    word: str
    meaning: str
    sign: str
    slug: str


BROKE = Change("newly bad", "bad now, and was not", "\u25bc", "fail")
FIXED = Change("fixed", "bad before, and runs well enough now", "\u25b2", "pass")
WORSE = Change("worse", "not bad, but less than it was", "\u2193", "degraded")
BETTER = Change("better", "more than it was", "\u2191", "pass")
WITHHELD = Change("no longer asked", "refused, missing or left out now", "-", "unsupported")
ASKED = Change("now asked", "refused, missing or left out before", "+", "inconclusive")
OTHER = Change("other", "bad or not asked in another way, or the harness failed", "\u2260", "not-run")
ADDED = Change("added", "only the newer run holds it", "+", "not-run")
REMOVED = Change("removed", "only the older run holds it", "-", "not-run")

KINDS: tuple[Change, ...] = (BROKE, WORSE, WITHHELD, FIXED, BETTER, ASKED, OTHER, ADDED, REMOVED)
"""Every kind, the alarming first."""


def change(base: Outcome | None, head: Outcome | None) -> Change | None:
    """What happened to a cell between `base` and `head`."""
    if base == head:
        return None
    if base is None or head is None:
        return ADDED if base is None else REMOVED
    if Outcome.ERROR in (base, head):
        return OTHER
    if (base in BAD and head in BAD) or (base in QUIET and head in QUIET):
        return OTHER
    if head in BAD:
        return BROKE
    if head in QUIET:
        return WITHHELD
    if base in BAD:
        return FIXED
    if base in QUIET:
        return ASKED
    return WORSE if SEVERITY.index(head) < SEVERITY.index(base) else BETTER


def table() -> dict[str, int]:
    """Two letters (base, head) -> number of the kind in KINDS; pairs without a change are left out."""
    letters: list[tuple[str, Outcome | None]] = [(ABSENT, None), *((v, k) for k, v in LETTERS.items())]
    found = {}
    for first, base in letters:
        for second, head in letters:
            kind = change(base, head)
            if kind is not None:
                found[first + second] = KINDS.index(kind)
    return found
