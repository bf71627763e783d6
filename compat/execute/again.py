"""Asking a check again that failed unexpectedly, and what becomes of two answers.

In: a judged check. Out: whether it is asked once more, in a fresh worker; and one check from both. Flaky is a fact that
people must see: the worse outcome stays, and the other attempt is kept beside it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from compat.execute.explaining import lost_device
from compat.matrix import CellSpec
from compat.records import SEVERITY, Check

BELIEVED = 3
"""Cells of one model in which a cause came twice alike; after these its other cells are not asked again."""


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
