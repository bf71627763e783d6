"""Asking a worker why a check failed: what may be asked, how often, and what becomes of the answer.

In: a judged check and the bounds that it breaks. Out: the request, or None; and the check with its evidence. The worker
measures and never decides, so the bounds travel with the request.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from compat.records import Check, Outcome

EXPLAINED = ("agreement", "padding", "cache", "generation", "quality", "gradient", "determinism")
"""Checks whose failure can be shown by a call of the model."""

FAILED = frozenset({Outcome.FAIL, Outcome.DEGRADED})

SECONDS = 10.0
"""After so long a worker answers with what it has."""

LIMIT_SECONDS = 15.0
"""After so long it is not waited for."""

FULL_A_CAUSE = 3
"""Cells of one model with one signature that get the bisection; the others get their input as it was."""

FULL_SECONDS = 120.0
"""Seconds of bisecting in one run; a stack on which everything fails must not take all day to say so."""


class Explainer:
    """Keeps the account of one run. Its methods may be called from several lanes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._causes: Counter[tuple[str, str]] = Counter()
        self._seconds = 0.0

    def effort(self, model: str, check: Check, first: bool) -> str:
        """`full`, `case` or "" (not to be asked); `first` says that no other check of the cell was explained."""
        if check.outcome not in FAILED or check.name not in EXPLAINED or not check.measurements:
            return ""
        with self._lock:
            cause = (model, check.evidence.signature)
            if not first or self._causes[cause] >= FULL_A_CAUSE or self._seconds > FULL_SECONDS:
                return "case"
            self._causes[cause] += 1
            return "full"

    def took(self, seconds: float) -> None:
        """Count the seconds of one explanation."""
        with self._lock:
            self._seconds += seconds


def explain_request(check_request: Mapping[str, Any], limits: Mapping[str, float], effort: str) -> dict[str, Any]:
    """What a worker is asked, from the request of the check itself and the bounds that it broke."""
    return {**check_request, "op": "explain", "limits": dict(limits), "effort": effort, "seconds": SECONDS}


def explained(check: Check, limits: Mapping[str, float], answer: Mapping[str, Any] | None) -> Check:
    """`check` with the bounds that it broke and, where it was asked, what the worker found or why it found nothing."""
    if answer is None:
        minimal: dict[str, Any] = {}
        module = ""
    elif answer["status"] == "ok":
        minimal, module = answer.get("minimal", {}), answer.get("diverges_at", "")
    else:
        exception = answer.get("exception", {})
        told = f"{exception['type']}: {exception['message']}" if exception else answer.get("reason", answer["status"])
        minimal, module = {"note": f"no explanation: {told}"[:400]}, ""
    if not module and any(name.startswith("kernel_error") for name in limits):  # `quality` names its linear itself
        module = str(check.evidence.facts.get("worst_kernel", ""))
    minimal = {"bounds": dict(limits), **minimal} if limits or minimal else {}
    evidence = msgspec.structs.replace(check.evidence, diverges_at=module, minimal=minimal)
    return msgspec.structs.replace(check, evidence=evidence)
