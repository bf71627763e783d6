"""The one definition of what is stored: structs, enums, schema version and their JSON form.

In: nothing but values. Out: frozen structs that every stage after `execute` reads (judge, store, render, front ends).
The JSON form is a contract with other tools: keys are only ever added, and `schema` changes when a meaning does.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

SCHEMA = "compat-run/1"


class Outcome(enum.StrEnum):
    """What happened to a check or a cell: a fact, never an expectation. Listed from worst to least."""

    FAIL = "fail"
    CRASH = "crash"
    ERROR = "error"
    OOM = "oom"
    TIMEOUT = "timeout"
    DEGRADED = "degraded"
    INCONCLUSIVE = "inconclusive"
    PASS = "pass"
    UNSUPPORTED = "unsupported"
    UNAVAILABLE = "unavailable"
    NOT_RUN = "not_run"


SEVERITY: tuple[Outcome, ...] = tuple(Outcome)
"""Worst first: the order in which a cell takes the outcome of its checks."""

BAD: frozenset[Outcome] = frozenset({Outcome.FAIL, Outcome.CRASH, Outcome.ERROR, Outcome.OOM, Outcome.TIMEOUT})
"""Outcomes that mean: do not use this cell (or, for `error`, this harness is broken)."""

WITHHELD: frozenset[Outcome] = frozenset({Outcome.UNSUPPORTED, Outcome.UNAVAILABLE})
"""Outcomes of `load` that hold for the cell as a whole: nothing after it could be asked."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every stored struct: immutable, keyword-only, unknown keys of newer writers ignored."""


R = TypeVar("R", bound=Record)


class Measurement(Record, frozen=True):
    """A named number with unit, direction and raw samples.

    `value` is derived from `values` by `method`; `ci95` is its 95% interval where one was computed. A figure that is
    not finite is stored as None, and the check counts it in a measurement of its own.
    """

    name: str
    unit: str
    better: str = "lower"
    """`lower`, `higher`, `equal` (to a target in the rule) or `none` (reported, never judged)."""
    values: tuple[float | None, ...] = ()
    value: float | None = None
    ci95: tuple[float, float] | None = None
    method: str = ""
    at: dict[str, float] = {}
    """The point of a grid that it was measured at: `length` (tokens of the longest row), `batch` (rows), `padding`
    (share of positions that are pads). Empty for what has no grid; one name may be measured at many points."""


class ExceptionInfo(Record, frozen=True):
    """An exception of the stack under test (or of the harness), as text."""

    type: str
    message: str
    traceback: str = ""
    refusal: str = ""
    """Id of the row in refusals.toml that recognised it, or empty."""


class Evidence(Record, frozen=True):
    """What lets a person believe an outcome."""

    kernels: dict[str, int] = {}
    """Operator name -> times seen in one forward."""
    exception: ExceptionInfo | None = None
    signature: str = ""
    """Short stable text that groups failures with the same cause."""
    diverges_at: str = ""
    """Module path where the candidate first leaves the yardstick's own error."""
    minimal: dict[str, Any] = {}
    """The smallest call found that shows the failure: `case`, `figures`, `beyond`, `modules`, `kernels`, `note`."""
    script: str = ""
    """Name of the reproducer under the run's folder `reproducers/`, or empty."""
    repro: str = ""
    """A shell command that runs this one check of this one cell again."""
    seed: int | None = None
    facts: dict[str, Any] = {}
    """What the check saw, as plain JSON values; the judge reads it, people read it."""


class Check(Record, frozen=True):
    """One question asked of a cell, with its answer."""

    name: str
    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0
    attempts: int = 1
    measurements: tuple[Measurement, ...] = ()
    evidence: Evidence = Evidence()

    def measurement(self, name: str) -> Measurement | None:
        """The measurement of that name (the first point of a grid), or None."""
        return next((m for m in self.measurements if m.name == name), None)

    def measured(self, name: str) -> tuple[Measurement, ...]:
        """Every measurement of that name: one a point of the grid."""
        return tuple(m for m in self.measurements if m.name == name)


class Cell(Record, frozen=True):
    """One value on every axis, with the outcome of its checks."""

    id: str
    axes: dict[str, str]
    """At least `model`, `dtype`, `attention`, `quantization`."""
    outcome: Outcome
    effective: dict[str, Any] = {}
    """What really held after loading, beside what was asked for: `attention`, `dtype`, `quantization`, `kernels` ..."""
    reason: str = ""
    """Why the cell has its outcome, in one line."""
    seconds: float = 0.0
    checks: tuple[Check, ...] = ()

    def check(self, name: str) -> Check | None:
        """The check of that name, or None."""
        return next((c for c in self.checks if c.name == name), None)


class FileIdentity(Record, frozen=True):
    """A file that shaped the run."""

    path: str
    sha256: str


class StackIdentity(Record, frozen=True):
    """The set of packages under test."""

    name: str
    sha256: str


class RunInfo(Record, frozen=True):
    """When, from what and how completely the run was made. Times are ISO 8601 in UTC."""

    id: str
    started: str
    argv: tuple[str, ...] = ()
    matrix: FileIdentity = FileIdentity(path="", sha256="")
    stack: StackIdentity = StackIdentity(name="current", sha256="")
    ended: str = ""
    complete: bool = False
    device: str = ""
    """`cpu`, `cuda`, ... : the device type the matrix was resolved for."""
    settings: dict[str, Any] = {}
    """What else shapes the figures: cells and checks selected, seed, lanes."""


class Gpu(Record, frozen=True):
    """One accelerator."""

    name: str
    arch: str = ""
    memory_bytes: int = 0


class Environment(Record, frozen=True):
    """The machine and the packages. `fingerprint` covers all but `volatile` and `env_vars`."""

    fingerprint: str = ""
    python: str = ""
    platform: str = ""
    cpu: str = ""
    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    cuda: str = ""
    cudnn: str = ""
    packages: dict[str, str] = {}
    env_vars: dict[str, str] = {}
    volatile: dict[str, Any] = {}


class Summary(Record, frozen=True):
    """Counts over cells and checks, and the wall seconds of the run."""

    outcomes: dict[str, int] = {}
    checks: dict[str, dict[str, int]] = {}
    """Check name -> outcome -> count."""
    seconds: float = 0.0


class Run(Record, frozen=True):
    """One matrix on one stack on one machine: the content of run.json."""

    run: RunInfo
    environment: Environment
    cells: tuple[Cell, ...]
    summary: Summary
    schema: str = SCHEMA


def point_name(at: Mapping[str, float]) -> str:
    """A point of a grid in words, `4x2048@0.3`: batch, length of the longest row, share of pads."""
    return f"{at.get('batch', 0):g}x{at.get('length', 0):g}@{at.get('padding', 0):g}"


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The most severe of `outcomes`; `not_run` when there are none."""
    return min(outcomes, key=SEVERITY.index, default=Outcome.NOT_RUN)


def cell_outcome(checks: Iterable[Check]) -> Outcome:
    """A cell's outcome: the worst of its checks, except that a withheld load holds for the cell as a whole."""
    checks = tuple(checks)
    load = next((c for c in checks if c.name == "load"), None)
    if load is not None and load.outcome in WITHHELD:
        return load.outcome
    return worst(c.outcome for c in checks)


def summarize(cells: Iterable[Cell], seconds: float) -> Summary:
    """Counts of outcomes over `cells` and over their checks."""
    outcomes: Counter[str] = Counter()
    checks: dict[str, Counter[str]] = {}
    for cell in cells:
        outcomes[cell.outcome.value] += 1
        for check in cell.checks:
            checks.setdefault(check.name, Counter())[check.outcome.value] += 1
    return Summary(outcomes=dict(outcomes), checks={k: dict(v) for k, v in checks.items()}, seconds=seconds)


def encode_record(record: Record, listed: str) -> bytes:
    """`record` as JSON (UTF-8), the items of its field `listed` one a line, so that stored files can be diffed."""
    parts = {
        name: msgspec.json.encode(getattr(record, name), order="deterministic") for name in record.__struct_fields__
    }
    if items := getattr(record, listed):
        rows = b",\n".join(msgspec.json.encode(item, order="deterministic") for item in items)
        parts[listed] = b"[\n" + rows + b"\n]"
    return b"{" + b",".join(b'"%b":%b' % (name.encode(), text) for name, text in parts.items()) + b"}\n"


def decode_record(data: bytes, kind: type[R], schema: str, what: str) -> R:
    """The record of `kind` in `data`. Raises `ValueError` naming the key when it is not a stored `what` of `schema`."""
    try:
        record = msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a stored {what}: {error}") from error
    found: str = getattr(record, "schema", "")
    if found != schema:
        raise ValueError(f"schema: {found!r} is not one this version reads ({schema})")
    return record


def encode_run(run: Run) -> bytes:
    """`run` as the bytes of run.json."""
    return encode_record(run, "cells")


def decode_run(data: bytes) -> Run:
    """The run stored in `data`. Raises `ValueError` naming the key when it is not a run of a schema we read."""
    return decode_record(data, Run, SCHEMA, "run")
