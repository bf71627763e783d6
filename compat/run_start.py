"""What a run says of itself before its first result, and whether another may continue it. Pure.

In: what a front end asked for, the matrix and its plan. Out: the header of the journal; why a stored one does not fit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from compat import __version__, store
from compat.matrix import CellSpec, Matrix, Model
from compat.plan import Plan
from compat.records import Environment, FileIdentity, RunInfo, StackIdentity
from compat.speed.settings import SpeedSettings
from compat.stacks import CURRENT


def header(
    run_id: str,
    started: datetime,
    argv: Sequence[str],
    matrix: Matrix,
    cells: Sequence[CellSpec],
    settings: Mapping[str, Any],
    stack: str = CURRENT,
) -> store.Header:
    """The header of a run of `cells` on the stack of that name; `settings` as `run_settings` makes them, and what else
    shapes the figures."""
    info = RunInfo(
        id=run_id,
        started=f"{started:%Y-%m-%dT%H:%M:%SZ}",
        argv=(Path(argv[0]).name.replace("__main__.py", "compat"), *argv[1:]) if argv else (),
        matrix=FileIdentity(path=shown(matrix.path), sha256=matrix.sha256),
        stack=StackIdentity(name=stack, sha256=""),
        device=matrix.device,
        settings={
            "title": matrix.title,
            **settings,
            "compat": __version__,
            "criteria": criteria_digest(),
            "models": {m: traits(matrix.models[m]) for m in dict.fromkeys(c.model for c in cells)},
        },
    )
    planned = tuple(store.Planned(id=c.id, axes=c.axes, checks=c.checks, excluded=c.excluded) for c in cells)
    return store.Header(journal=store.JOURNAL_SCHEMA, run=info, environment=Environment(), planned=planned)


def criteria_digest() -> str:
    """A hash of the thresholds and of the recognised refusals: equal digests judge alike."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in (*sorted((here / "criteria").glob("*.toml")), here / "refusals.toml"):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def run_settings(seed: int, depth: str, speed: SpeedSettings) -> dict[str, Any]:
    """What must be the same when a run is resumed."""
    return {"seed": seed, "depth": depth} | ({"speed": own} if (own := speed.stored()) else {})


def changed(began: store.Header, plan: Plan, matrix: Matrix, settings: Mapping[str, Any], stack: str = CURRENT) -> str:
    """Why the run with header `began` cannot be continued by `plan` under `settings` on `stack`; "" where it can."""
    if began.run.stack.name != stack:
        return f"it was started on stack {began.run.stack.name}, not {stack}; start a new run instead"
    if began.run.matrix.sha256 != matrix.sha256:
        return f"{matrix.path} or a models.toml that it uses has changed since; start a new run instead"
    planned = {(p.id, c) for p in began.planned if not p.excluded for c in p.checks}
    if planned != {(cell.id, check) for cell, check in plan.tasks}:
        return "it was started for another selection of cells or checks"
    for name in ("seed", "depth", "speed"):
        default: Any = {} if name == "speed" else settings[name]
        first, now = began.run.settings.get(name, default), settings.get(name, default)
        if first != now:
            return f"it was started with {name} {_said(first)}, not {_said(now)}; start a new run instead"
    return ""


def _said(value: Any) -> str:
    """A setting in words."""
    if not isinstance(value, dict):
        return str(value)
    points = ["{}x{}@{:g}".format(*p) for p in value.get("points", ())]
    parts = {**value, **({"points": ",".join(points)} if points else {})}
    return " ".join(f"{k}={v}" for k, v in parts.items()) or "as the check has it"


def traits(model: Model) -> dict[str, Any]:
    """What judging again must know of a model."""
    return {
        "source": model.row["source"],
        "task": model.task,
        "features": sorted(model.features),
        "digest": model.digest,
        "row": dict(model.row),
    }


def shown(path: Path) -> str:
    """`path` relative to the working directory where it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
