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
from compat.matrix import CellSpec
from compat.plan import LoadGroup
from compat.records import SEVERITY, Check, Outcome

BELIEVED = 3
"""Cells of one model in which a cause came twice alike; after these its other cells are not asked again."""

DISTURBED_SECONDS = 60.0
"""What a run spends on disturbed timings at most; those that are left keep their first answer."""

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
    """The timings of one run of which a guard said that they say nothing (throttled, contended, intervals too wide).
    They are kept, and asked once more when nothing else is left to do."""

    def __init__(self) -> None:
        self.groups: deque[LoadGroup] = deque()
        """What to ask, in the order in which it was kept."""
        self._first: dict[str, tuple[CellSpec, Check]] = {}
        self._settled: set[str] = set()

    def keeps(self, group: LoadGroup, cell: CellSpec, check: Check) -> bool:
        """Whether `check` is asked again, and so is not to be told yet."""
        again = check.name == "speed" and check.outcome is Outcome.INCONCLUSIVE and bool(check.measurements)
        if not again or cell.id in self._first or check.seconds > LONG_SECONDS:
            return False
        self._first[cell.id] = (cell, check)
        before = self.groups.pop().cells if self.groups and self.groups[-1].key == group.key else ()
        self.groups.append(replace(group, cells=(*before, replace(cell, checks=(check.name,)))))
        return True

    def settled(self, cell: CellSpec, check: Check) -> Check:
        """`check`, asked again where its cell was kept, with the first answer in `evidence.facts["disturbed"]`."""
        if cell.id not in self._first or check.name != "speed":
            return check
        self._settled.add(cell.id)
        first = self._first[cell.id][1]
        told = {"reason": first.reason, "seconds": first.seconds}
        evidence = msgspec.structs.replace(check.evidence, facts={**check.evidence.facts, "disturbed": told})
        seconds = round(first.seconds + check.seconds, 6)
        return msgspec.structs.replace(
            check, attempts=first.attempts + check.attempts, seconds=seconds, evidence=evidence
        )

    def left(self) -> list[tuple[CellSpec, Check]]:
        """First answers of what was kept and not asked again; from now on these are settled too."""
        found = [kept for cell, kept in self._first.items() if cell not in self._settled]
        self._settled |= set(self._first)
        return found


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
