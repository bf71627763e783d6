"""What each row of the criteria says of a check, row by row, for a reader who wants to know why.

In: a stored check and the context of its cell. Out: the rows that speak of it with figure, bound and source, and the
findings with theirs. Pure, and no judge of its own: outcomes are those of compat.judge.
"""

from __future__ import annotations

from dataclasses import dataclass

from compat.axes import ATTENTION, AXES, DTYPES, MODES, PLAIN, QUANTIZATIONS
from compat.judge import by_facts, derive
from compat.records import Cell, Check, Measurement, Outcome, Run
from compat.rules import Context, Rule, criteria, criteria_tables, stored_context


@dataclass(frozen=True)
class Judged:
    """A measurement beside the first row that holds for it; `measured` is None for a required one that is missing."""

    rule: Rule
    measured: Measurement | None
    bound: float
    """Of a pass, in the measurement's unit."""
    outcome: Outcome

    @property
    def sign(self) -> str:
        """`>=` where higher is better, else `<=`; "" for what was not measured."""
        if self.measured is None:
            return ""
        return ">=" if self.measured.better == "higher" else "<="


@dataclass(frozen=True)
class Found:
    """A finding of `load` or `dispatch`: asked for one thing, saw another."""

    name: str
    outcome: Outcome
    reason: str
    source: str


def context(run: Run, cell: Cell) -> Context | None:
    """What the rules may ask about a stored cell; None for one whose axes this version of compat does not know."""
    known = {"dtype": DTYPES.names, "attention": ATTENTION.names, "quantization": QUANTIZATIONS.names}
    whole = cell.axes.get("mode", PLAIN) in MODES
    models = run.run.settings.get("models", {})
    whole = whole and all(axis in cell.axes for axis in AXES) and isinstance(models, dict)
    if not whole or not isinstance(models.get(cell.axes["model"], {}), dict):
        return None
    return stored_context(run, cell) if all(cell.axes[a] in names for a, names in known.items()) else None


def judged(check: Check, context: Context) -> tuple[Judged, ...]:
    """Every row that speaks of `check`, in the order of the criteria: one a measurement, or one a point of its grid."""
    measured = derive(check.name, check.measurements, check.evidence.facts)
    rows: list[Judged] = []
    decided: set[str] = set()
    for rule in criteria().rules if measured else ():
        if rule.check != check.name or rule.measurement in decided or not rule.holds(context):
            continue
        decided.add(rule.measurement)
        unit = rule.unit(context)
        found = [m for m in measured if m.name == rule.measurement]
        for one in found:
            outcome = Outcome.INCONCLUSIVE if one.value is None else rule.outcome(one.value, one.better, unit)
            rows.append(Judged(rule, one, rule.passes * unit, outcome))
        if rule.required and not found:
            rows.append(Judged(rule, None, rule.passes * unit, Outcome.INCONCLUSIVE))
    return tuple(rows)


def findings(check: Check, context: Context) -> tuple[Found, ...]:
    """What was asked for and not had, each with its row of the criteria."""
    if not check.measurements:
        return ()
    rows = {n: row for table in criteria_tables().values() for n, row in table.get("finding", {}).items()}
    found = []
    for verdict in by_facts(check, context):
        name = verdict.signature.split(": ")[1]
        found.append(Found(name, verdict.outcome, verdict.reason, rows[name]["source"]))
    return tuple(found)
