"""Asking a worker why a check failed: what may be asked, how often, and what becomes of the answer.

In: a judged check and the bounds that it breaks. Out: the request, or None; and the check with its evidence. The worker
measures and never decides, so the bounds travel with the request.
"""

from __future__ import annotations

import re
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


DEVICE_LOST = "device-fault"
"""The refusal (compat/refusals.toml) after which every further call on a device fails: never asked again."""

PHASE_KINDS = {"generate": "generate", "train": "train", "backward": "train", "load": "load", "switch": "switch"}
"""Phase in which a check raised -> the kind of call that stands for it where it is not asked again; else a forward."""

DRAWN_LENGTHS = (33, 33)
"""Tokens of the rows of such a call: as `load` draws its own."""


class Explainer:
    """Keeps the account of one run. Its methods may be called from several lanes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._causes: Counter[tuple[str, str]] = Counter()
        self._seconds = 0.0

    def effort(self, model: str, check: Check, first: bool) -> str:
        """`full`, `case` or "" (not to be asked); `first` says that no other check of the cell was explained."""
        figures = check.name in EXPLAINED and bool(check.measurements)
        if check.outcome not in FAILED or not (figures or check.evidence.exception is not None):
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


def asks(check: Check) -> bool:
    """Whether something is to be said of why `check` failed: beside failures, of a call that broke its device."""
    return check.outcome in FAILED or lost_device(check)


def lost_device(check: Check) -> bool:
    """Whether what `check` raised leaves the device unusable for the process."""
    return check.evidence.exception is not None and check.evidence.exception.refusal == DEVICE_LOST


def explain_request(
    check_request: Mapping[str, Any],
    limits: Mapping[str, float],
    effort: str,
    raised: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What a worker is asked, from the request of the check itself, the bounds that it broke, and what it raised."""
    asked = {**check_request, "op": "explain", "limits": dict(limits), "effort": effort, "seconds": SECONDS}
    return asked if raised is None else {**asked, "raised": dict(raised)}


def raised_by(check: Check, limits: Mapping[str, float]) -> dict[str, str] | None:
    """`phase`, `type` and `message` (a regular expression for its first line) of what made `check` fail, where that is
    an exception: its own, or that of a path which `cache` went round."""
    exception = check.evidence.exception
    if exception is not None:
        phase = str(check.evidence.facts.get("phase", ""))
        return {"phase": phase, "type": exception.type, "message": pattern(exception.message)}
    said = check.evidence.facts.get("raised")
    if set(limits) != {"paths_raised"} or not isinstance(said, Mapping) or not said:
        return None
    phase, kind, message = (*str(next(iter(said.values()))).split(": ", 2), "", "")[:3]
    return {"phase": phase, "type": kind, "message": pattern(message)}


def pattern(message: str) -> str:
    """A regular expression for the first line of `message` in which numbers, addresses, paths and the names of model
    classes may be others; at most 200 characters of the line are compared."""
    line = next((x.strip() for x in message.splitlines() if x.strip()), "")[:200]
    varying = r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?(?:e[+-]?\d+)?|/\S+|\b[A-Z]\w+For\w+\b"
    kept = [re.escape(part) for part in re.split(varying, line)]
    return r"\S+".join(kept)


def unasked(check: Check, seed: int) -> dict[str, Any]:
    """What stands for a worker's answer where asking again would break the next one: the call by its phase, on rows
    that the script draws from `seed`."""
    raised = raised_by(check, {}) or {}
    kind = PHASE_KINDS.get(raised.get("phase", ""), "forward")
    case: dict[str, Any] = {"kind": kind, "drawn": {"seed": 1000 * seed, "lengths": list(DRAWN_LENGTHS)}}
    if kind == "generate":
        case |= {"side": "left", "length": max(DRAWN_LENGTHS), "pad": 0, "new": 4}
    note = "not asked again, since it breaks the device: the call is the plainest of its phase"
    return {"status": "ok", "minimal": {"case": case, "raises": raised, "note": note}}


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
