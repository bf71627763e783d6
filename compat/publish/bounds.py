"""What a measured figure had to keep to: the row of today's criteria that speaks of it.

In: a check of a stored run. Out: for each measurement that a criterion names, its bound in words and whether the figure
is within it. The stored outcome is not changed: it was judged by the criteria of its day.
"""

from __future__ import annotations

from typing import Any

from compat.records import Check, Measurement, Outcome
from compat.render.figures import figure
from compat.render.inert import clip, label
from compat.rules import Context, criteria

from .columns import LETTERS


def bounds(check: Check, context: Context, sources: dict[str, int]) -> list[list[Any]]:
    """[name, bound, letter of what the figure comes to, number of its source] of each measurement that a criterion
    judges; a source that is not among `sources` yet is added."""
    found: list[list[Any]] = []
    decided: set[str] = set()
    for rule in criteria().rules:
        if rule.check != check.name or rule.measurement in decided or not rule.holds(context):
            continue
        decided.add(rule.measurement)
        measured = [(m, m.value) for m in check.measured(rule.measurement) if m.value is not None]
        if measured:
            unit, better = rule.unit(context), measured[0][0].better
            letter = LETTERS[_worst([rule.outcome(value, m.better, unit) for m, value in measured])]
            bound = f"{'at least' if better == 'higher' else 'at most'} {_text(rule.passes * unit, measured[0][0])}"
            source = sources.setdefault(clip(rule.source, 300), len(sources))
            found.append([label(rule.measurement), bound, letter, source])
    return found


def _text(value: float, measured: Measurement) -> str:
    return figure(value, "" if measured.unit == "ratio" else measured.unit)


def _worst(outcomes: list[Outcome]) -> Outcome:
    order = (Outcome.FAIL, Outcome.DEGRADED, Outcome.INCONCLUSIVE, Outcome.PASS)
    return min(outcomes, key=order.index)
