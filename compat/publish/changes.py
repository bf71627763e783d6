"""What became of a cell or a check from one run to another, by its outcome: the same for the pages and for what is
counted here, in the words and the order of `compat diff`.

In: two outcomes, or None for what a run does not hold. Out: a `Change`, or None where nothing changed. Causes, kernels,
repeated attempts and speeds are left to `compat diff`, which has the whole runs.
"""

from __future__ import annotations

from typing import NamedTuple

from compat.compare.diff import RANK
from compat.compare.result import Kind
from compat.records import Outcome

from .columns import ABSENT, LETTERS


class Change(NamedTuple):
    """One kind of change. `sign` stands beside its colour, `slug` names its class in CSS."""

    word: str
    meaning: str
    sign: str
    slug: str


REGRESSED = Change(Kind.REGRESSED.value, "worse: pass, degraded, unsupported, bad follow each other", "\u25bc", "fail")
MIXED = Change(Kind.MIXED.value, "one check regressed, another was fixed", "\u2260", "degraded")
FIXED = Change(Kind.FIXED.value, "better, in the same order", "\u25b2", "pass")
CHANGED = Change(
    Kind.CHANGED.value,
    "neither better nor worse: another bad outcome, or one that says nothing of the cell",
    "~",
    "inconclusive",
)
NEW = Change(Kind.NEW.value, "the newer run alone holds it", "+", "not-run")
GONE = Change(Kind.GONE.value, "the older run alone holds it", "-", "not-run")

KINDS: tuple[Change, ...] = (REGRESSED, MIXED, CHANGED, GONE, FIXED, NEW)
"""Every kind, the alarming first."""


def change(base: Outcome | None, head: Outcome | None) -> Change | None:
    """What happened between `base` and `head`."""
    if base is head:
        return None
    if base is None or head is None:
        return NEW if base is None else GONE
    before, after = RANK.get(base), RANK.get(head)
    if before is None or after is None or before == after:
        return CHANGED
    return REGRESSED if before < after else FIXED


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
