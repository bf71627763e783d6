"""An upgrade from one stack to another: is anything worse, or otherwise, than it was?

In: `UpgradeOptions`. Out: an `Upgrade`, stored beside the runs of both sides. Stages: environments, checkpoints (made
once, by the stack that is left, and read by both), a run on each stack, both stacks asked the same (execute/across.py),
timing in turns, what the runs' own checks say (compat/compare/diff.py). Nothing here prints: progress goes to `say`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from compat import device, environments, identity, run_start, session, stacks, store
from compat.compare.diff import diff_runs
from compat.execute.across import NAMES, Both, TwoStacks
from compat.execute.worker_process import default_memory_limit
from compat.matrix import CellSpec, Matrix, read_matrix
from compat.plan import Plan, fits_nothing, make_plan, select
from compat.records import FileIdentity, Record, Run
from compat.stored import write_reports
from compat.upgrade.checks import of_diff
from compat.upgrade.result import Compared, Side, Timed, Upgrade

FOLDER = Path("compat-upgrades")
JOURNAL = "across.jsonl"
CELL_SECONDS = 300.0
"""Longest wait for one answer of one stack, where the user sets no other."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class UpgradeOptions:
    """What a user may ask of an upgrade."""

    before: str
    after: str
    matrix: Path
    device: str = "auto"
    patterns: tuple[str, ...] = ()
    out: Path | None = None
    resume: Path | None = None
    workers: int | None = None
    seed: int | None = None
    timeout_seconds: float | None = None
    memory_limit_bytes: int | None = None
    cache: Path | None = None
    timing: bool = True
    argv: tuple[str, ...] = ()


class Begun(Record, frozen=True):
    """The first line of the journal: what a resumed upgrade must have in common with the one that began."""

    before: str
    after: str
    digests: tuple[str, str]
    matrix: str
    device: str
    seed: int
    cells: tuple[str, ...]
    timing: bool
    id: str
    started: str
    checkpoints: dict[str, str] = {}


class Stopped(Exception):
    """The upgrade was interrupted; what it has is in `folder`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


@dataclass
class _Journal:
    """What has been compared and timed so far: one line each, flushed."""

    path: Path
    begun: Begun
    compared: dict[str, Compared]
    timed: dict[str, Timed]

    def add(self, result: Compared | Timed) -> None:
        """Keep a result. Raises OSError."""
        kind = "compared" if isinstance(result, Compared) else "timed"
        with self.path.open("ab") as file:
            file.write(b'{"%b":%b}\n' % (kind.encode(), msgspec.json.encode(result)))
        if isinstance(result, Compared):
            self.compared[result.cell] = result
        else:
            self.timed[result.cell] = result


def conduct(options: UpgradeOptions, say: Say = lambda text: None) -> tuple[Upgrade, Path]:
    """Everything; the result and its folder. Raises MatrixError, CreateError, SessionError, StoreError, Stopped."""
    found = (stacks.find(options.before), stacks.find(options.after))
    detected = device.detect()
    kind = detected.type if options.device == "auto" else options.device
    matrix = read_matrix(options.matrix, kind)
    cells = select(matrix.cells, options.patterns)
    plan = make_plan(cells)
    if said := fits_nothing(options.matrix, matrix.cells, options.patterns, plan.cells):
        raise session.SessionError(said)
    seconds: dict[str, float] = {}
    with _stage(seconds, "environments"):
        pythons = (_python(found[0], options, say), _python(found[1], options, say))
    folder, journal = _opened(options, found, matrix, kind, plan)
    both = Both(
        pythons=pythons,
        folder=folder,
        models=matrix.models,
        device=kind if kind == "cpu" else f"{kind}:0",
        cache=options.cache or identity.default_cache(),
        seed=journal.begun.seed,
        depth=matrix.settings.depth,
        timeout_seconds=options.timeout_seconds or CELL_SECONDS,
        memory_limit_bytes=options.memory_limit_bytes or default_memory_limit(2),
    )
    try:
        with TwoStacks(both) as two, _stage(seconds, "checkpoints"):
            checkpoints = {m: two.locate(m) for m in dict.fromkeys(c.model for c in plan.cells)}
        runs = []
        for side in (0, 1):
            with _stage(seconds, f"run {NAMES[side]}"):
                runs.append(_run(options, side, folder, kind, plan, checkpoints, say))
        with TwoStacks(both) as two:
            with _stage(seconds, "across"):
                _across(two, plan, checkpoints, journal, say)
            if options.timing:
                with _stage(seconds, "timing"):
                    _timing(two, plan, checkpoints, journal, matrix, say)
    except KeyboardInterrupt:
        raise Stopped(folder) from None
    return _result(options, journal, matrix, kind, plan, runs, seconds), folder


def again(options: UpgradeOptions, folder: Path) -> str:
    """The command that continues an interrupted upgrade."""
    words = ["compat", "upgrade", "--from", options.before, "--to", options.after, "--matrix", str(options.matrix)]
    words += ["--device", options.device] if options.device != "auto" else []
    words += ["--cells", *options.patterns] if options.patterns else []
    words += ["--seed", str(options.seed)] if options.seed is not None else []
    words += [] if options.timing else ["--no-timing"]
    words += ["--cache", str(options.cache)] if options.cache is not None else []
    return shlex.join([*words, "--resume", str(folder)])


@contextlib.contextmanager
def _stage(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = round(time.monotonic() - started, 3)


def _python(stack: stacks.Stack, options: UpgradeOptions, say: Say) -> str:
    """The interpreter of a stack, its environment made where there is none yet."""
    if stack.current:
        return sys.executable
    return environments.python_of(environments.create(stack, options.cache, say))


def _opened(
    options: UpgradeOptions, found: tuple[stacks.Stack, stacks.Stack], matrix: Matrix, kind: str, plan: Plan
) -> tuple[Path, _Journal]:
    """The folder and its journal, new or continued. Raises SessionError, StoreError."""
    below = environments.base()
    seed = matrix.settings.seed if options.seed is None else options.seed
    started = datetime.now(UTC)
    begun = Begun(
        before=found[0].name,
        after=found[1].name,
        digests=(stacks.digest(found[0], below), stacks.digest(found[1], below)),
        matrix=matrix.sha256,
        device=kind,
        seed=seed,
        cells=tuple(c.id for c in plan.cells),
        timing=options.timing,
        id=f"{started:%Y%m%dT%H%M%SZ}-upgrade-{os.getpid()}",
        started=f"{started:%Y-%m-%dT%H:%M:%SZ}",
    )
    if options.resume is not None:
        journal = _read(options.resume / JOURNAL)
        for name in ("before", "after", "digests", "matrix", "device", "seed", "cells", "timing"):
            first, now = getattr(journal.begun, name), getattr(begun, name)
            if first != now:
                shown = f": {name} was {first!r}, is {now!r}" if name not in ("cells", "digests") else f": other {name}"
                raise session.SessionError(f"{options.resume} cannot be resumed{shown}; start a new upgrade instead")
        return options.resume, journal
    folder = options.out or FOLDER / begun.id
    path = folder / JOURNAL
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(msgspec.json.encode(begun) + b"\n")
    except FileExistsError:
        problem = f"{folder} already holds an upgrade: continue it with --resume {folder}, or name another folder"
        raise session.SessionError(problem) from None
    except OSError as error:
        raise session.SessionError(f"{folder}: cannot be written: {error.strerror}") from error
    return folder, _Journal(path, begun, {}, {})


def _read(path: Path) -> _Journal:
    """A journal; a last line that was cut off is dropped. Raises StoreError naming file and line."""
    try:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            with path.open("r+b") as file:
                file.truncate(len(whole))
    except OSError as error:
        raise store.StoreError(f"{path}: {error.strerror}") from error
    lines = whole.splitlines()
    if not lines:
        raise store.StoreError(f"{path}: holds no header")
    compared: dict[str, Compared] = {}
    timed: dict[str, Timed] = {}
    read = 0
    try:
        begun = msgspec.json.decode(lines[0], type=Begun)
        for line in lines[1:]:
            read += 1
            if line.startswith(b'{"compared"'):
                one = msgspec.json.decode(line, type=dict[str, Compared])["compared"]
                compared[one.cell] = one
            else:
                other = msgspec.json.decode(line, type=dict[str, Timed])["timed"]
                timed[other.cell] = other
    except (msgspec.DecodeError, KeyError) as error:
        raise store.StoreError(f"{path}: line {read + 1}: {error}") from error
    return _Journal(path, begun, compared, timed)


# -- the stages --------------------------------------------------------------------------------------------------


def _run(
    options: UpgradeOptions, side: int, folder: Path, kind: str, plan: Plan, checkpoints: dict[str, str], say: Say
) -> Run:
    """The run of one side, without its speed checks: those are for `_timing`. A complete one is taken as it is."""
    own = folder / NAMES[side]
    if (own / store.RUN).exists():
        there = store.read_run(own)
        if there.run.complete:
            say(f"{NAMES[side]}: its run is there already")
            return there
    begun = (own / store.JOURNAL).exists()
    asked = session.Options(
        matrix=options.matrix,
        device=kind,
        tasks=frozenset((c.id, check) for c, check in plan.tasks if check != "speed"),
        out=own,
        resume=own if begun else None,
        workers=options.workers,
        seed=options.seed,
        timeout_seconds=options.timeout_seconds,
        memory_limit_bytes=options.memory_limit_bytes,
        cache=options.cache,
        stack=(options.before, options.after)[side],
        checkpoints=checkpoints,
        argv=options.argv,
    )
    prepared = session.prepare(asked)
    say(f"{NAMES[side]}: {len(prepared.remaining.cells)} cells on {prepared.header.run.stack.name}")
    prepared.execute()
    run, where = prepared.finish()
    if where != own:
        raise session.SessionError(f"{own} takes no more ({prepared.refused}); what there is was rescued to {where}")
    if prepared.interrupted:
        raise KeyboardInterrupt
    write_reports(run, own)
    return run


def _across(two: TwoStacks, plan: Plan, checkpoints: dict[str, str], journal: _Journal, say: Say) -> None:
    """Every cell, asked of both; what does not depend on the backend with the first cell of each group."""
    for number, group in enumerate(plan.groups, start=1):
        for i, cell in enumerate(group.cells):
            if cell.id not in journal.compared:
                journal.add(two.compare(cell, checkpoints.get(cell.model, ""), defaults=i == 0))
        found = [f for c in group.cells for f in journal.compared[c.id].findings]
        names = ", ".join(dict.fromkeys(f.name for f in found if not f.because)) or "nothing"
        say(f"across {number}/{len(plan.groups)} {group.key}: {names}")


def _timing(
    two: TwoStacks, plan: Plan, checkpoints: dict[str, str], journal: _Journal, matrix: Matrix, say: Say
) -> None:
    """The cells that have a speed check and that both stacks answer for."""
    for cell in timed_cells(plan, journal.compared):
        if cell.id not in journal.timed:
            speed = matrix.settings.speed.request()
            journal.add(two.time(cell, checkpoints.get(cell.model, ""), speed))
        one = journal.timed[cell.id]
        said = one.not_stated or ", ".join(f"{f.name} {f.after}" for f in one.findings) or "no difference stated"
        say(f"timing {cell.id}: {said}")


def timed_cells(plan: Plan, compared: dict[str, Compared]) -> list[CellSpec]:
    """The cells to time, in order."""
    able = {c.cell for c in compared.values() if c.status == "compared"}
    return [c for c in plan.cells if "speed" in c.checks and c.id in able]


def _result(
    options: UpgradeOptions,
    journal: _Journal,
    matrix: Matrix,
    kind: str,
    plan: Plan,
    runs: list[Run],
    seconds: dict[str, float],
) -> Upgrade:
    sides = [
        Side(
            stack=run.run.stack,
            packages=run.environment.packages,
            fingerprint=run.environment.fingerprint,
            run=name,
            cells=len(run.cells),
            complete=run.run.complete,
        )
        for name, run in zip(NAMES, runs, strict=True)
    ]
    argv = options.argv
    return Upgrade(
        id=journal.begun.id,
        started=journal.begun.started,
        ended=identity.now(),
        argv=(Path(argv[0]).name.replace("__main__.py", "compat"), *argv[1:]) if argv else (),
        matrix=FileIdentity(path=run_start.shown(matrix.path), sha256=matrix.sha256),
        device=kind,
        before=sides[0],
        after=sides[1],
        checks=of_diff(diff_runs(runs[0], runs[1])),
        across=tuple(journal.compared[c.id] for c in plan.cells),
        timed=tuple(journal.timed[c.id] for c in plan.cells if c.id in journal.timed),
        seconds=seconds,
        settings=_settings(options, journal.begun),
    )


def _settings(options: UpgradeOptions, begun: Begun) -> dict[str, Any]:
    return {"seed": begun.seed, "timing": begun.timing, "cells": list(options.patterns)}
