"""One run from matrix to stored results: the flow that both front ends drive.

In: `Options`. Out: a stored run. `prepare` reads, selects, plans and opens the journal; `execute` runs; `finish`
writes run.json and the reports. Nothing here prints: progress goes to the listener given.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from compat import device, environments, reproduce, run_start, stacks, store
from compat.availability import estimate_seconds
from compat.compare.expect import FAILING, FOLDER, Expectations, of_matrix, read_expectations
from compat.execute.local import Configuration, LocalEngine
from compat.execute.worker_process import default_memory_limit
from compat.identity import default_cache, describe, now, stack_identity
from compat.matrix import CellSpec, Matrix, MatrixError, read_matrix
from compat.plan import Plan, fits_nothing, make_plan, select, shard, without
from compat.records import Check, Run
from compat.selftest_result import last_figure
from compat.speed.settings import SettingError, SpeedOptions, SpeedSettings, baselines
from compat.stored import effective

RUNS_FOLDER = Path("compat-runs")


class SessionError(Exception):
    """A run that cannot be started as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Options:
    """What a user may ask of a run."""

    matrix: Path
    device: str = "auto"
    patterns: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    tasks: frozenset[tuple[str, str]] | None = None
    """(cell id, check) pairs to run, where a front end has selected them itself."""
    out: Path | None = None
    resume: Path | None = None
    workers: int | None = None
    seed: int | None = None
    depth: str | None = None
    speed: SpeedOptions | None = None
    """Asks for the cells that have a speed check, and for these settings of it (None: the matrix's)."""
    timeout_seconds: float | None = None
    memory_limit_bytes: int | None = None
    cache: Path | None = None
    stack: str = ""
    """Whose interpreter the workers run: a stack's name, or its file; "" for what the matrix names, or else the current
    one."""
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    """Model -> the folder that it is loaded from, where not each stack makes its own (`compat upgrade`)."""
    argv: tuple[str, ...] = ()
    expect: bool = False
    """Whether known failures are told from others, by `expectations` or else by the matrix's own file."""
    expectations: Path | None = None
    rerun: bool = False
    """Whether failures are asked once more, in a fresh worker; with `expect` those are that nobody expects."""
    shard: tuple[int, int] | None = None
    """(part, parts) of the load groups that are selected."""


@dataclass
class Session:
    """A prepared run. Listeners: `on_result(cell, check)` after each check, in the order in which answers come."""

    options: Options
    matrix: Matrix
    plan: Plan
    folder: Path
    header: store.Header
    journal: store.Journal
    results: list[store.Line]
    device: str
    lanes: tuple[str, ...]
    speed: SpeedSettings = field(default_factory=SpeedSettings)
    baselines: dict[str, CellSpec] = field(default_factory=dict)
    python: str = sys.executable
    against: str = ""
    """The interpreter of the stack that speed is compared with, where one was asked for."""
    book: Expectations | None = None
    """What is known to fail, where that was asked for."""
    on_result: Callable[[CellSpec, Check], None] = lambda cell, check: None
    engine: LocalEngine | None = None
    started: float = field(default_factory=time.monotonic)
    interrupted: bool = False
    refused: OSError | None = None
    """Why the run's own folder took no more."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def remaining(self) -> Plan:
        """What has no result yet."""
        return without(self.plan, {(line.cell, line.check.name) for line in self.results})

    def execute(self) -> None:
        """Run what remains; on KeyboardInterrupt stop the workers, keep what there is, and return."""
        self.engine = self._engine()
        try:
            self.engine.run()
        except KeyboardInterrupt:
            self.interrupted = True
            self.engine.stop()
            with contextlib.suppress(KeyboardInterrupt):
                self.engine.run_down()

    def start(self) -> None:
        """Run what remains in the background; `stop` ends it."""
        self.engine = self._engine()
        self.engine.start()

    @property
    def running(self) -> bool:
        """Whether any lane is still at work."""
        return self.engine is not None and self.engine.running

    def raise_failure(self) -> None:
        """Raise what ended the run, if anything did."""
        if self.engine is not None and self.engine.failure is not None:
            raise self.engine.failure

    def stop(self) -> None:
        """End what `start` began; what has no result by then stays without one."""
        if self.engine is not None:
            self.engine.stop()
            with contextlib.suppress(Exception):  # raised to a waiting test already
                self.engine.run_down()

    def _engine(self) -> LocalEngine:
        settings = self.matrix.settings
        configuration = Configuration(
            lanes=self.lanes,
            cache=self.options.cache or default_cache(),
            folder=self.folder,
            models=self.matrix.models,
            threads=max(1, (os.cpu_count() or 1) // len(self.lanes)),
            seed=settings.seed if self.options.seed is None else self.options.seed,
            depth=self.options.depth or settings.depth,
            timeout_seconds=self.options.timeout_seconds or settings.timeout_seconds,
            memory_limit_bytes=self.options.memory_limit_bytes
            or settings.memory_limit_bytes
            or default_memory_limit(len(self.lanes)),
            repro=self.repro,
            loads={x.cell: x.check for x in self.results if x.check.name == "load"},
            speed=self.speed,
            baselines=self.baselines,
            python=self.python,
            against=self.against,
            unexpected=self.unexpected,
            checkpoints=self.options.checkpoints,
        )
        return LocalEngine(self.remaining, configuration, self._record, self._described)

    def unexpected(self, cell: CellSpec, check: Check) -> bool:
        """Whether a result is to be asked for once more: a failure, where that was asked for, that nobody expects."""
        if not (self.options.rerun or self.book) or check.outcome not in FAILING:
            return False
        return self.book is None or self.here(self.book).covering(cell.id, check) is None

    def here(self, book: Expectations) -> Expectations:
        """`book` for the device and the packages of this run."""
        return book.on(self.device, self.header.environment.packages)

    def repro(self, cell: CellSpec, check: str) -> str:
        """A shell command that asks this check of this cell again."""
        own = check == "speed" and self.options.speed is not None
        command = ["speed" if own else "run", run_start.shown(self.options.matrix)]
        rest = self.speed.words() if own else ["--checks", check]
        stack = [] if self.options.stack == stacks.CURRENT else ["--stack", self.options.stack]
        return shlex.join(["compat", *command, "--device", self.device, "--cells", cell.id, *rest, *stack])

    def _record(self, cell: CellSpec, check: Check) -> None:
        with self._lock:
            check = self._with_script(cell, check)
            line = store.Line(
                cell=cell.id, check=check, effective=effective(cell.axes, check) if check.name == "load" else {}
            )
            self.results.append(line)
            self.journal.add(line)
        self.on_result(cell, check)

    def _with_script(self, cell: CellSpec, check: Check) -> Check:
        """`check` with its reproducer written beside the run, where there is one."""
        load = next((x.check for x in self.results if x.cell == cell.id and x.check.name == "load"), check)
        subject = reproduce.Subject(
            cell.id,
            cell.axes,
            self.matrix.models[cell.model].row,
            self.device,
            self.header.environment.packages,
            str(load.evidence.facts.get("how", "loaded")),
            reproduce.machine(self.header.environment),
        )
        text = reproduce.script(check, subject)
        if not text:
            return check
        name = reproduce.file_name(cell.id, check.name)
        folder = self.folder / reproduce.FOLDER
        try:
            folder.mkdir(exist_ok=True)
            store.write_whole(folder / name, text.encode("utf-8"))
        except OSError:  # a full disk: `compat reproduce` makes it again from the stored run
            return check
        evidence = msgspec.structs.replace(check.evidence, script=name)
        return msgspec.structs.replace(check, evidence=evidence)

    def _described(self, described: dict[str, Any]) -> None:
        """The first worker has said what it runs on."""
        if self.device == "cuda" and not described.pop("torch_sees_cuda", False):
            raise SessionError(
                "the device is cuda, but torch in this environment sees no GPU: install a CUDA build of torch, or "
                "run with --device cpu"
            )
        environment = describe(described)
        known = self.header.environment.fingerprint
        if known and known != environment.fingerprint:
            raise SessionError(
                f"{self.folder} cannot be resumed: it was started on another stack or machine; start a new run instead"
            )
        if not known:
            info = msgspec.structs.replace(
                self.header.run, stack=stack_identity(environment, self.header.run.stack.name)
            )
            self.header = msgspec.structs.replace(self.header, environment=environment, run=info)
            self.journal.add(store.Seen(environment=environment, stack=info.stack))

    def run(self) -> Run:
        """The run as it stands."""
        seconds = time.monotonic() - self.started
        missing = "interrupted" if self.interrupted else "the run ended before this check"
        run = store.assemble(self.header, self.results, round(seconds, 3), missing)
        settings = {**run.run.settings}
        if self.engine is not None:
            settings["model_seconds"] = round(self.engine.model_seconds, 3)
        sight = last_figure(
            self.options.cache or default_cache(), self.device, settings["depth"], run.environment.fingerprint
        )
        if sight is not None:
            settings["selftest"] = sight
        info = msgspec.structs.replace(run.run, ended=now(), settings=settings)
        return msgspec.structs.replace(run, run=info)

    def finish(self) -> tuple[Run, Path]:
        """Close the journal, write run.json; the folder that it was written to.

        When the run's own folder takes no more (a full disk), a fresh temporary folder is used.
        """
        self.journal.close()
        run = self.run()
        try:
            if self.journal.broken is not None:
                raise self.journal.broken
            store.write_run(run, self.folder)
            return run, self.folder
        except OSError as error:
            self.refused = error
            rescue = Path(tempfile.mkdtemp(prefix="compat-rescued-"))
            store.write_run(run, rescue)
            return run, rescue


def prepare(options: Options) -> Session:
    """Everything up to the first worker. Raises MatrixError, StoreError, SessionError."""
    detected = device.detect()
    kind = detected.type if options.device == "auto" else options.device
    matrix = read_matrix(options.matrix, kind)
    options = replace(options, stack=options.stack or matrix.settings.stack or stacks.CURRENT)
    stack, python = _interpreter(options.stack, options.cache)
    whole = select(matrix.cells, options.patterns, options.checks)
    cells = select(part_of(matrix, whole, options.shard), tasks=options.tasks)
    if options.speed is not None:
        cells = tuple(c for c in cells if "speed" in c.checks)
    what = "with a speed check " if options.speed is not None else ""
    if said := fits_nothing(options.matrix, matrix.cells, options.patterns, cells, what):
        raise SessionError(said)
    speed, baselines = _speed(options, matrix, cells)
    against = speed.against
    if against.endswith(".toml") or (against and not os.path.isabs(against)):  # a stack, not an interpreter
        against = _interpreter(against, options.cache)[1]
    plan = make_plan(cells)
    book = _expectations(matrix, options)
    devices = detected.count if detected.type == kind else 1
    workers = options.workers or device.default_workers(kind, devices)
    lanes = ("cpu",) * workers if kind == "cpu" else tuple(f"cuda:{i % devices}" for i in range(workers))
    seed = matrix.settings.seed if options.seed is None else options.seed
    settings = run_start.run_settings(seed, options.depth or matrix.settings.depth, speed)
    if options.shard is not None:
        places = {c.id: i for i, c in enumerate(whole)}
        settings["shard"] = {
            "part": "{}/{}".format(*options.shard),
            "total": len(whole),
            "positions": [places[c.id] for c in cells],
        }
    if options.resume is not None:
        header, results = store.read_journal(options.resume)
        if why := run_start.changed(header, plan, matrix, settings, stack):
            raise SessionError(f"{options.resume} cannot be resumed: {why}")
        journal = store.Journal(options.resume, None)
        folder = options.resume
    else:
        started = datetime.now(UTC)
        run_id = f"{started:%Y%m%dT%H%M%SZ}-{kind}-{os.getpid()}"
        folder = options.out or RUNS_FOLDER / run_id
        if options.patterns or options.checks:
            settings["selected"] = {"cells": list(options.patterns), "checks": list(options.checks)}
        header = run_start.header(
            run_id, started, options.argv, matrix, cells, settings | {"lanes": list(lanes)}, stack
        )
        results = []
        try:
            journal = store.Journal(folder, header)
        except FileExistsError:
            raise SessionError(
                f"{folder} already holds a run: continue it with --resume {folder}, or name another folder"
            ) from None
        except OSError as error:
            raise SessionError(f"{folder}: the run's folder cannot be written: {error.strerror}") from error
    return Session(
        options, matrix, plan, folder, header, journal, results, kind, lanes, speed, baselines, python, against, book
    )


def part_of(matrix: Matrix, cells: tuple[CellSpec, ...], part: tuple[int, int] | None) -> tuple[CellSpec, ...]:
    """The shard of `cells` that is asked for, balanced by the measured costs of checks."""
    if part is None:
        return cells
    found = shard(cells, *part, lambda cell: estimate_seconds(matrix, (cell,)))
    if not found and cells:
        raise SessionError("nothing selected: shard {}/{} holds no load group; ask for fewer shards".format(*part))
    return found


def _expectations(matrix: Matrix, options: Options) -> Expectations | None:
    """What is known to fail, where that was asked for. Raises ExpectationError; SessionError where there is no file."""
    if options.expectations is None and not options.expect:
        return None
    path = options.expectations or of_matrix(matrix)
    if path is None:
        raise SessionError(
            f"no expectations: {matrix.path} names none, and there is no {FOLDER}/{matrix.path.name} beside it; "
            "write one (compat baseline update RUN --out FILE) or name one (--expectations FILE)"
        )
    return read_expectations(path)


def _interpreter(stack: str, cache: Path | None) -> tuple[str, str]:
    """The name of a stack and its interpreter. Raises MatrixError, and SessionError where it is not created."""
    try:
        return stacks.find(stack).name, environments.interpreter(stack, cache)
    except environments.NotCreated as error:
        raise SessionError(str(error)) from error


def _speed(options: Options, matrix: Matrix, cells: Sequence[CellSpec]) -> tuple[SpeedSettings, dict[str, CellSpec]]:
    """The speed check's settings, and cell id -> baseline. Raises MatrixError, or SessionError for an option."""
    asked = options.speed
    key = "speed.baseline" if asked is None or asked.baseline is None else "--baseline"
    measured = [c for c in cells if "speed" in c.checks and not c.excluded]
    try:
        speed = matrix.settings.speed if asked is None else asked.over(matrix.settings.speed)
        return speed, baselines(measured, matrix.cells, speed.baseline, key)
    except SettingError as error:
        if error.key.startswith("--"):
            raise SessionError(f"{error} (matrix {matrix.path})") from error
        raise MatrixError(matrix.path, error.key, error.problem, error.hint) from error
