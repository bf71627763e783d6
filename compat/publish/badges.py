"""Badges as shields.io reads them from an endpoint: a stack on a device, and each model there.

In: what was counted. Out: JSON with `schemaVersion`, `label`, `message`, `color`.
"""

from __future__ import annotations

from typing import Any

from compat.records import Outcome
from compat.render.inert import clip

from .places import History, Tally

GOOD, MIDDLING, BAD, NOTHING = "brightgreen", "yellow", "red", "lightgrey"


def badges(history: History) -> dict[str, dict[str, Any]]:
    """Name of the badge -> badge: "" for the whole of a place, else the model's name."""
    entry = history.shown
    place = f"{history.place.stack} {history.place.device}"
    whole = _badge(place, Tally(entry.counts), entry.when, entry.head.run.complete)
    return {"": whole} | {
        model: _badge(f"{model} on {place}", tally, entry.when, entry.head.run.complete)
        for model, tally in history.models().items()
    }


def _badge(label: str, tally: Tally, when: str, complete: bool) -> dict[str, Any]:
    message = f"{tally.passed:,} of {tally.asked:,} pass" if tally.asked else "nothing asked"
    if tally.bad:
        message += f", {tally.bad:,} bad"
    if not complete:
        message += ", partial run"
    return {
        "schemaVersion": 1,
        "label": clip(label, 80),
        "message": f"{message} ({when})" if when else message,
        "color": _color(tally),
    }


def _color(tally: Tally) -> str:
    if not tally.asked:
        return NOTHING
    if tally.bad:
        return BAD
    return GOOD if tally.passed == tally.asked and _found(tally, Outcome.PASS) else MIDDLING


def _found(tally: Tally, outcome: Outcome) -> bool:
    return any(o is outcome for o, _ in tally.counts)
