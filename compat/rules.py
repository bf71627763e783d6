"""What the judge goes by: rows of criteria/*.toml and refusals.toml, and the cell that they are asked of.

In: the files, a cell's axes, device and model. Out: `Rule`, `Refusal` and `Context`. Pure.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from compat import calibration
from compat.axes import MODES, identity_of, mode_of
from compat.checks import CHECKS
from compat.matrix import Model
from compat.records import Cell, ExceptionInfo, Outcome, Run

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Context:
    """What a rule may ask about the cell: the values of its axes, the device type, whether the model is real, and its
    family's features."""

    axes: Mapping[str, str]
    device: str
    real: bool
    features: frozenset[str] = frozenset()
    digest: str = ""
    """Of the model's row, for figures that were stored of it."""

    def values(self, name: str) -> frozenset[str]:
        """The value of an axis, or of `device`, `real` or `feature`, as a set. Rows for eager attention speak of the
        yardstick itself, so they do not hold for eager attention that is run in another way."""
        if name == "feature":
            return self.features
        if name == "attention" and self.axes["attention"] == "eager" and not self.own_yardstick:
            return frozenset({"eager, another way"})
        own = {"device": self.device, "real": "yes" if self.real else "no", "mode": mode_of(self.axes)}
        return frozenset({own.get(name) or self.axes.get(name, "")})

    @property
    def own_yardstick(self) -> bool:
        """Whether the cell is what the others of its load group are judged against: eager attention, run plainly. In a
        mode that is another way to the same function (`axes/mode.py`) eager attention has a yardstick as all others."""
        return self.axes["attention"] == "eager" and MODES[mode_of(self.axes)].kind != "how"

    def band(self, check: str, measurement: str) -> float | None:
        """The stored figure of clean runs for this cell, if there is one."""
        stored = calibration.bands(self.device, identity_of(self.axes), self.axes["model"], self.digest)
        return stored.get(check, {}).get(measurement)

    @property
    def answer(self) -> tuple[float, ...]:
        """The stored fp64 answer of this cell's model in its dtype, if there is one."""
        return calibration.answer(self.axes["model"], self.axes["dtype"], self.digest)

    @property
    def outputs(self) -> Mapping[str, Sequence[float]]:
        """All that this cell's model returns, as stored."""
        return calibration.outputs(self.axes["model"], self.digest)


def context_of(axes: Mapping[str, str], device: str, model: Model) -> Context:
    """What the rules may ask about a cell that runs on `device` (`cpu`, `cuda:0`)."""
    return Context(axes, device.split(":")[0], model.real, model.features, model.digest)


def stored_context(run: Run, cell: Cell) -> Context:
    """What the rules may ask about a cell of a stored run."""
    traits = run.run.settings.get("models", {}).get(cell.axes["model"], {})
    real = traits.get("source", "probe") not in ("probe", "shape")
    return Context(cell.axes, run.run.device, real, frozenset(traits.get("features", ())), traits.get("digest", ""))


@dataclass(frozen=True)
class Rule:
    """A row of criteria/CHECK.toml."""

    check: str
    measurement: str
    source: str
    passes: float
    degraded: float | None = None
    guard: bool = False
    doubt: bool = False
    """Whether it decides no outcome, and only casts doubt on the figures of its phase and point (`judge.doubts`)."""
    required: bool = False
    band: bool = False
    """Whether the bounds are multiples of the stored figure of clean runs; without one the row does not hold."""
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    excepted: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def holds(self, context: Context) -> bool:
        """Whether this row speaks of the cell."""
        return (
            all(_fits(context.values(k), v) for k, v in self.only.items())
            and not any(_fits(context.values(k), v) for k, v in self.excepted.items())
            and (not self.band or context.band(self.check, self.measurement) is not None)
        )

    def unit(self, context: Context) -> float:
        """What the bounds are multiples of: the cell's stored figure for a band, else 1."""
        return (context.band(self.check, self.measurement) or 0.0) if self.band else 1.0

    def outcome(self, value: float, better: str, unit: float = 1.0) -> Outcome:
        """The outcome of a measured value."""
        if _within(value, self.passes * unit, better):
            return Outcome.PASS
        if self.guard or self.doubt:
            return Outcome.INCONCLUSIVE
        if self.degraded is not None and _within(value, self.degraded * unit, better):
            return Outcome.DEGRADED
        return Outcome.FAIL


def _fits(values: frozenset[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(value, pattern) for value in values for pattern in patterns)


def _within(value: float, bound: float, better: str) -> bool:
    return value >= bound if better == "higher" else value <= bound


@dataclass(frozen=True)
class Refusal:
    """A row of refusals.toml."""

    id: str
    outcome: Outcome
    type: str
    message: str
    meaning: str

    def fits(self, exception: ExceptionInfo) -> bool:
        """Whether type and message of `exception` are this row's."""
        return bool(re.search(self.type, exception.type) and re.search(self.message, exception.message))


@dataclass(frozen=True)
class Criteria:
    """criteria/*.toml, read."""

    rules: tuple[Rule, ...]
    findings: Mapping[str, Outcome]


@cache
def criteria() -> Criteria:
    """The table of thresholds. Raises ValueError for a row that cannot be meant."""
    tables = criteria_tables()
    rules = tuple(
        Rule(
            check=check,
            measurement=row["measurement"],
            source=row["source"],
            passes=float(row["pass"]),
            degraded=float(row["degraded"]) if "degraded" in row else None,
            guard=row.get("guard", False),
            doubt=row.get("doubt", False),
            required=row.get("required", False),
            band=row.get("band", False),
            only=row.get("only", {}),
            excepted=row.get("except", {}),
        )
        for check, table in tables.items()
        for row in table.get("rule", ())
    )
    findings = {name: Outcome(row["outcome"]) for t in tables.values() for name, row in t.get("finding", {}).items()}
    return Criteria(rules, findings)


@cache
def criteria_tables() -> Mapping[str, Mapping[str, Any]]:
    """Check -> its file under compat/criteria, read; in the order of the checks."""
    return {
        check: tomllib.loads(path.read_text(encoding="utf-8"))
        for check in CHECKS.names
        if (path := _HERE / "criteria" / f"{check}.toml").exists()
    }


@cache
def refusals() -> tuple[Refusal, ...]:
    """The table of recognised refusals, in order."""
    data = tomllib.loads((_HERE / "refusals.toml").read_text(encoding="utf-8"))
    return tuple(
        Refusal(r["id"], Outcome(r["outcome"]), r["type"], r["message"], r["meaning"]) for r in data["refusal"]
    )
