"""Asking a check again, and what becomes of two answers.

In: a judged check. Out: whether it is asked once more; and one check from both.

One that failed unexpectedly is asked at once, in a fresh worker. Flaky is a fact that people must see: the worse
outcome stays, and the other attempt is kept beside it. A timing that the machine disturbed says nothing, so there is
nothing to choose: it is asked when all else is done, and that answer stands.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from compat.execute.explaining import lost_device
from compat.judge import doubts
from compat.matrix import CellSpec
from compat.plan import LoadGroup
from compat.records import SEVERITY, Check, Outcome

BELIEVED = 3
"""Cells of one model in which a cause came twice alike; after these its other cells are not asked again."""

DISTURBED_SECONDS = 60.0
DISTURBED_SHARE = 0.1
"""What a run spends on disturbed timings at most: so long, or this share of its time before, whichever is more."""

DISTURBED_ATTEMPTS = 4
"""So often a disturbed timing is asked at most, the first time included."""

LONG_SECONDS = 30.0
"""A timing that took longer is not asked again: it had time to wait for calm."""


class Reruns:
    """Keeps the account of one run. Its methods may be called from several lanes."""

    def __init__(self, wanted: Callable[[CellSpec, Check], bool]) -> None:
        """`wanted` says whether a check failed unexpectedly."""
        self._wanted = wanted
        self._lock = threading.Lock()
        self._alike: Counter[tuple[str, str, str]] = Counter()

    def asks(self, cell: CellSpec, check: Check) -> bool:
        """Whether `check` is to be asked again. What breaks its device never is."""
        if lost_device(check) or not self._wanted(cell, check):
            return False
        with self._lock:
            return self._alike[_cause(cell, check)] < BELIEVED

    def saw(self, cell: CellSpec, first: Check, second: Check) -> None:
        """Count a cause that came twice."""
        if first.outcome is second.outcome and _cause(cell, first) == _cause(cell, second):
            with self._lock:
                self._alike[_cause(cell, first)] += 1


class Disturbed:
    """The timings of one run of which something says nothing: all of the check, or figures of a machine that was
    throttled or shared (`compat.judge.doubts`). They are kept, and asked again when nothing else is left to do."""

    def __init__(self) -> None:
        self.groups: deque[LoadGroup] = deque()
        """What to ask, in the order in which it was kept."""
        self._waiting: dict[str, CellSpec] = {}
        self._answers: dict[str, list[Check]] = {}
        """Cell id -> the answers that say nothing, the last one last."""

    def keeps(self, group: LoadGroup, cell: CellSpec, check: Check) -> bool:
        """Whether `check` is asked again, and so is not to be told yet."""
        if check.name != "speed" or not _says_nothing(check) or check.seconds > LONG_SECONDS:
            return False
        answers = self._answers.setdefault(cell.id, [])
        if len(answers) == DISTURBED_ATTEMPTS - 1:
            return False
        answers.append(check)
        self._waiting[cell.id] = cell
        before = self.groups.pop().cells if self.groups and self.groups[-1].key == group.key else ()
        self.groups.append(replace(group, cells=(*before, replace(cell, checks=(check.name,)))))
        return True

    def settled(self, cell: CellSpec, check: Check) -> Check:
        """`check` as it is told: with how often its cell was asked before, and what was said first, in
        `evidence.facts["disturbed"]`."""
        before = self._answers.get(cell.id, ()) if check.name == "speed" else ()
        if not before:
            return check
        self._waiting.pop(cell.id, None)
        told = {"times": len(before), "reason": _says_nothing(before[0])}
        evidence = msgspec.structs.replace(check.evidence, facts={**check.evidence.facts, "disturbed": told})
        return msgspec.structs.replace(
            check,
            attempts=check.attempts + sum(c.attempts for c in before),
            seconds=round(check.seconds + sum(c.seconds for c in before), 6),
            evidence=evidence,
        )

    def left(self) -> list[tuple[CellSpec, Check]]:
        """The last answers of what waits to be asked again and no longer is."""
        waiting, self._waiting = tuple(self._waiting.values()), {}
        return [(cell, self.settled(cell, self._answers[cell.id].pop())) for cell in waiting]


def _says_nothing(check: Check) -> str:
    """Why a timing, or a figure of it, says nothing; "" where all of it does or nothing was timed."""
    if check.outcome is Outcome.INCONCLUSIVE and check.measurements:
        return "; ".join(dict.fromkeys([check.reason, *(d.reason for d in doubts(check))]))
    return "; ".join(d.reason for d in doubts(check)) if check.outcome is Outcome.PASS else ""


def _cause(cell: CellSpec, check: Check) -> tuple[str, str, str]:
    return cell.model, check.name, check.evidence.signature or check.outcome.value


def combined(first: Check, second: Check) -> Check:
    """Both attempts as one check: the worse (the second where they are alike), with the other in
    `evidence.facts["attempts"]`."""
    kept, other, number = (second, first, 1)
    if SEVERITY.index(first.outcome) < SEVERITY.index(second.outcome):
        kept, other, number = (first, second, 2)
    reason = kept.reason
    if kept.outcome is not other.outcome:
        told = f"flaky: {other.outcome.value} in another attempt"
        reason = f"{reason}; {told}" if reason else told
    evidence = msgspec.structs.replace(
        kept.evidence, facts={**kept.evidence.facts, "attempts": [_attempt(other, number)]}
    )
    return msgspec.structs.replace(
        kept,
        reason=reason,
        attempts=first.attempts + second.attempts,
        seconds=round(first.seconds + second.seconds, 6),
        evidence=evidence,
    )


def _attempt(check: Check, number: int) -> dict[str, Any]:
    """What is kept of the attempt that is not the check's own."""
    return {
        "attempt": number,
        "outcome": check.outcome.value,
        "reason": check.reason,
        "signature": check.evidence.signature,
        "seconds": check.seconds,
        "figures": {m.name: m.value for m in check.measurements if not m.at},
    }
