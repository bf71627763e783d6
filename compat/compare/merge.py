"""Runs of shards put together to the run that they are parts of. Pure.

In: stored runs of one matrix on one stack. Out: one run, as if it had not been cut, but for its times. Runs that were
not cut may overlap where they agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from compat.compare.diff import diff_runs
from compat.records import Cell, Run, RunInfo, summarize
from compat.sharper import linked
from compat.store import Planned, make_cell

ALIKE = ("seed", "depth", "speed", "compat", "criteria")
"""Settings that must be the same."""

OWN = ("shard", "model_seconds", "lanes", "models", "selftest")
"""Settings that each run has for itself."""


class MergeError(ValueError):
    """Runs that are no parts of one; the message names them and says what differs."""


def merge(runs: Sequence[Run], any_machine: bool = False) -> Run:
    """The run that `runs` are parts of. With `any_machine` they may come from different machines (not packages); the
    result then has no fingerprint, so that nobody compares its speeds. Raises MergeError."""
    if len(runs) < 2:
        raise MergeError("two runs or more are meant")
    first = runs[0]
    for other in runs[1:]:
        _fits(first, other, any_machine)
    cells = _cells(runs)
    positions = _positions(runs)
    ids = sorted(cells, key=lambda i: positions.get(i, len(positions))) if positions else list(cells)
    found = linked([cells[i] for i in ids])
    total = max((int(s["total"]) for r in runs if isinstance(s := r.run.settings.get("shard"), Mapping)), default=0)
    complete = all(r.run.complete for r in runs) and len(found) >= total
    same = len({r.environment.fingerprint for r in runs}) == 1
    environment = first.environment if same else msgspec.structs.replace(first.environment, fingerprint="")
    return Run(
        run=_info(runs, complete),
        environment=environment,
        cells=found,
        summary=summarize(found, round(sum(r.summary.seconds for r in runs), 3)),
    )


def _fits(first: Run, other: Run, any_machine: bool) -> None:
    pairs = {
        "matrix": (first.run.matrix.sha256, other.run.matrix.sha256),
        "device": (first.run.device, other.run.device),
        "stack": (first.run.stack.name, other.run.stack.name),
        "packages": (first.environment.packages, other.environment.packages),
        **{name: (first.run.settings.get(name), other.run.settings.get(name)) for name in ALIKE},
    }
    for name, (one, two) in pairs.items():
        if one != two:
            raise MergeError(f"{first.run.id} and {other.run.id}: {name} differs{_what(first, other, name)}")
    if first.environment.fingerprint != other.environment.fingerprint and not any_machine:
        raise MergeError(
            f"{first.run.id} and {other.run.id}: the machine differs{_what(first, other, 'machine')}; "
            "--any-machine merges them, and gives up comparing their speeds"
        )


def _what(first: Run, other: Run, name: str) -> str:
    """What differs, in words."""
    subject = {"packages": "package", "machine": "machine"}.get(name)
    told = [
        f"{d.name} {d.base or 'none'} and {d.head or 'none'}"
        for d in diff_runs(first, other).differences
        if d.subject == subject or (subject is None and d.name == name)
    ]
    return f" ({'; '.join(told[:4])})" if told else ""


def _cells(runs: Sequence[Run]) -> dict[str, Cell]:
    found: dict[str, Cell] = {}
    owner: dict[str, Run] = {}
    for run in runs:
        for cell in run.cells:
            known = found.get(cell.id)
            found[cell.id] = cell if known is None else _united(known, cell, owner[cell.id], run)
            owner.setdefault(cell.id, run)
    return found


def _united(one: Cell, other: Cell, first: Run, second: Run) -> Cell:
    """A cell that two runs hold. Raises MergeError where they disagree."""
    checks = {c.name: c for c in one.checks}
    for check in other.checks:
        known = checks.get(check.name)
        if known is not None and known.outcome is not check.outcome:
            raise MergeError(
                f"{first.run.id} and {second.run.id} disagree: {one.id}: {check.name}: "
                f"{known.outcome.value} and {check.outcome.value}"
            )
        checks.setdefault(check.name, check)
    if not checks:
        return one
    effective = {**other.effective, **one.effective}
    return make_cell(Planned(id=one.id, axes=one.axes, checks=tuple(checks)), tuple(checks.values()), effective)


def _positions(runs: Sequence[Run]) -> dict[str, int]:
    """Cell id -> its place in the run that was cut, as the shards noted it."""
    found: dict[str, int] = {}
    for run in runs:
        shard = run.run.settings.get("shard")
        if isinstance(shard, Mapping) and len(shard.get("positions", ())) == len(run.cells):
            found |= {c.id: int(p) for c, p in zip(run.cells, shard["positions"], strict=True)}
    return found


def _info(runs: Sequence[Run], complete: bool) -> RunInfo:
    first = runs[0].run
    models: dict[str, Any] = {}
    for run in runs:
        models |= run.run.settings.get("models", {})
    settings = {k: v for k, v in first.settings.items() if k not in OWN}
    settings |= {k: first.settings[k] for k in ("lanes", "selftest") if k in first.settings}
    seconds = [r.run.settings["model_seconds"] for r in runs if "model_seconds" in r.run.settings]
    settings |= {"model_seconds": round(sum(seconds), 3)} if seconds else {}
    return msgspec.structs.replace(
        first,
        id="+".join([first.id, *(["1 other"] if len(runs) == 2 else [f"{len(runs) - 1} others"])]),
        started=min(r.run.started for r in runs),
        ended=max(r.run.ended for r in runs),
        argv=_uncut(first.argv),
        complete=complete,
        settings=settings | {"models": models, "merged": [r.run.id for r in runs]},
    )


def _uncut(argv: Sequence[str]) -> tuple[str, ...]:
    """A command line without `--shard`, `--out` and their values."""
    kept: list[str] = []
    skip = False
    for word in argv:
        name = word.split("=")[0]
        if not skip and name not in ("--shard", "--compat-shard", "--out", "--compat-out"):
            kept.append(word)
        skip = not skip and name in ("--shard", "--compat-shard", "--out", "--compat-out") and "=" not in word
    return tuple(kept)
