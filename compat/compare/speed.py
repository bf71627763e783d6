"""Speeds of two runs, where they can be compared at all. Pure.

In: two runs. Out: what became of each speedup, and how many could not be compared, by reason. Rates of two runs were
not measured in turns, so they are never compared. What can be compared:

- a head that was timed against base's stack directly (`compat speed --against`): its speedup is the answer;
- speedups of both runs over the same baseline on the same machine with the same packages: their ratio, its interval
  from the far ends of both (low of one over high of the other), which is wider than needed and never too narrow for
  what either run saw. What changed on the machine between the runs is in neither interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from compat.compare.result import SpeedChange, Speeds
from compat.judge import doubts
from compat.records import BAD, Cell, Check, Environment, Measurement, Outcome, Run

LEAST_EFFECT = 0.05
"""Smallest relative difference of a speed that is stated, where nothing else is asked."""

FIGURES = ("prefill_speedup", "decode_speedup")


def stack_name(environment: Environment) -> str:
    """A stack in a few words, as `compat speed --against` stores it as the baseline."""
    from compat.execute.paired import stack_name as named

    return named({"packages": environment.packages, "python": environment.python})


def compare_speed(base: Run, head: Run, least_effect: float) -> tuple[tuple[SpeedChange, ...], dict[str, int]]:
    """What the intervals say of each speedup of both runs, and reason -> number of those that cannot be compared."""
    before = {c.id: c for c in base.cells}
    found: list[SpeedChange] = []
    reasons: Counter[str] = Counter()
    for cell in head.cells:
        check = cell.check("speed")
        if check is None:
            continue
        paired = _paired(check, base, head)
        for figure in (m for name in FIGURES for m in check.measured(name)):
            other = before.get(cell.id)
            found_or_why = _direct(cell, figure, least_effect, check) if paired else _both(
                (other, cell), figure, (base, head), least_effect
            )  # fmt: skip
            if isinstance(found_or_why, str):
                reasons[found_or_why] += 1
            else:
                found.append(found_or_why)
    return tuple(found), dict(reasons)


def _paired(check: Check, base: Run, head: Run) -> bool:
    """Whether head was timed against base's stack, both taking turns on the machine of the base run."""
    same = _hardware(base) == _hardware(head)
    return same and check.evidence.facts.get("baseline") == stack_name(base.environment)


def _hardware(run: Run) -> tuple[object, ...]:
    return run.run.device, run.environment.cpu, run.environment.gpus


def _direct(cell: Cell, figure: Measurement, least_effect: float, check: Check) -> SpeedChange | str:
    why = _why_not(cell, check, figure)
    if why or figure.value is None or figure.ci95 is None:
        return why or "no interval was stored"
    return SpeedChange(
        cell=cell.id,
        name=figure.name,
        says=_says(*figure.ci95, least_effect),
        ratio=figure.value,
        ci95=figure.ci95,
        base=1.0,
        head=figure.value,
        over=str(check.evidence.facts["baseline"]),
        at=figure.at,
    )


def _both(
    cells: tuple[Cell | None, Cell], figure: Measurement, runs: tuple[Run, Run], least_effect: float
) -> SpeedChange | str:
    old, cell = cells
    check, other = cell.check("speed"), old.check("speed") if old else None
    if check is None or old is None or other is None:
        return "base has no speed of the cell"
    fingerprints = {r.environment.fingerprint for r in runs}
    if len(fingerprints) > 1 or "" in fingerprints:
        return "other packages or another machine: time them in turns with compat speed --against"
    over = [_baseline(c) for c in (other, check)]
    if over[0] != over[1]:
        return "the speedups are over different baselines"
    was = next((m for m in other.measured(figure.name) if m.at == figure.at), None)
    if was is None:
        return "base has no speed at the point"
    why = _why_not(old, other, was) or _why_not(cell, check, figure)
    if why:
        return why
    if was.value is None or figure.value is None or was.ci95 is None or figure.ci95 is None:
        return "no interval was stored"
    interval = figure.ci95[0] / was.ci95[1], figure.ci95[1] / was.ci95[0]
    return SpeedChange(
        cell=cell.id,
        name=figure.name,
        says=_says(*interval, least_effect),
        ratio=_short(figure.value / was.value),
        ci95=(_short(interval[0]), _short(interval[1])),
        base=was.value,
        head=figure.value,
        over=over[1],
        at=figure.at,
    )


def _why_not(cell: Cell, check: Check, figure: Measurement) -> str:
    """Why this figure cannot be compared, or ""."""
    if cell.outcome in BAD:
        return "the cell fails: the speed of a wrong answer is no speed"
    if check.outcome not in (Outcome.PASS, Outcome.DEGRADED):
        return f"the speed check is {check.outcome.value}"
    if any(doubt.against(figure) for doubt in doubts(check)):
        return "the machine was disturbed while it was timed, or the interval is too wide"
    if figure.value is None or figure.ci95 is None:
        return "no interval was stored"
    if not (figure.value > 0 and 0 < figure.ci95[0] <= figure.ci95[1]):
        return "the interval is not one of positive numbers"
    return ""


def _baseline(check: Check) -> str:
    facts: Mapping[str, object] = check.evidence.facts
    return str(facts.get("baseline", "eager"))


def _says(low: float, high: float, least_effect: float) -> Speeds:
    if high < 1 / (1 + least_effect):
        return Speeds.SLOWER
    return Speeds.FASTER if low > 1 + least_effect else Speeds.ALIKE


def _short(value: float) -> float:
    """Four significant digits: more than a timing has."""
    return float(f"{value:.4g}")
