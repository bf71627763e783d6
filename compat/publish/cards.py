"""What a place comes to at one glance: counts, a bar, how it went over the runs.

In: a history. Out: plain values for the templates.
"""

from __future__ import annotations

from typing import Any

from compat.records import SEVERITY, Outcome
from compat.render.figures import plural
from compat.render.groups import QUIET
from compat.render.inert import label
from compat.render.summary import HEADLINE_PACKAGES
from compat.render.symbols import symbol

from .entries import Entry
from .places import History, Tally

RECENT = 40
"""Runs in the small picture of a history."""


def card(history: History, *, speed: bool = False) -> dict[str, Any]:
    """A place for the landing page and for the head of its own; `speed` says whether it has a page of speed."""
    entry, place = history.shown, history.place
    tally = Tally(entry.counts)
    before = history.before
    recent = history.entries[-RECENT:]
    return {
        "slug": place.slug,
        "speed": speed,
        "stack": place.stack,
        "device": place.device,
        "matrix": place.matrix,
        "passed": tally.passed,
        "asked": tally.asked,
        "segments": segments(tally),
        "spoken": spoken(tally),
        "counts": [(symbol(o), n) for o, n in tally.counts],
        "when": entry.when,
        "versions": versions(entry),
        "partial": not entry.head.run.complete,
        "selected": not entry.whole,
        "run": entry.name,
        "before": before.name if before else "",
        "before_when": before.when if before else "",
        "changes": history.changes(),
        "spark": _spark(recent) if len(recent) > 1 else [],
        "spark_text": _told(recent),
        "badge": f"badges/{place.slug}.json",
    }


def versions(entry: Entry) -> str:
    """The packages that matter most."""
    known = entry.head.environment.packages
    return ", ".join(f"{name} {label(known[name], 40)}" for name in HEADLINE_PACKAGES if name in known)


def spoken(tally: Tally) -> str:
    """All counts in words."""
    words = ", ".join(f"{n:,} {symbol(o).word}" for o, n in tally.counts if o not in QUIET)
    quiet = f"{plural(tally.quiet, 'cell')} not asked" if tally.quiet else ""
    return "; ".join(part for part in (words, quiet) if part) or "no cells"


def segments(tally: Tally) -> list[dict[str, str]]:
    """The parts of a bar over the cells that were asked, in percent."""
    at, found = 0.0, []
    for outcome in reversed(SEVERITY):  # what passes first, what is worst last
        n = dict(tally.counts).get(outcome, 0)
        if n and outcome not in QUIET:
            width = 100 * n / tally.asked
            found.append({"slug": symbol(outcome).slug, "at": f"{at:.2f}%", "width": f"{width:.2f}%"})
            at += width
    return found


def _spark(entries: tuple[Entry, ...]) -> list[dict[str, str]]:
    """A column a run, from the bottom: what passes, what lies between, what is bad."""
    step = min(100 / len(entries), 5.0)
    found = []
    for i, entry in enumerate(entries):
        tally = Tally(entry.counts)
        y = 34.0
        between = tally.asked - tally.passed - tally.bad
        for kind, n in ((Outcome.PASS, tally.passed), (Outcome.DEGRADED, between), (Outcome.FAIL, tally.bad)):
            height = 34.0 * n / tally.asked if tally.asked else 0.0
            y -= height
            if n:
                found.append(
                    {
                        "slug": symbol(kind).slug,
                        "x": f"{i * step:.2f}%",
                        "width": f"{step * 0.82:.2f}%",
                        "y": f"{y:.1f}",
                        "height": f"{height:.1f}",
                    }
                )
    return found


def _told(entries: tuple[Entry, ...]) -> str:
    first, last = Tally(entries[0].counts), Tally(entries[-1].counts)
    return (
        f"{plural(len(entries), 'run')}: from {first.passed:,} of {first.asked:,} passing to {last.passed:,} of "
        f"{last.asked:,}"
    )
