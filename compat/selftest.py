"""The self-test: which checks see which bug, on this machine, with these packages.

In: the catalogue of compat.faults, a device, a depth. Out: a `SelfTestResult`. Every cell that the chosen faults name
is checked once as it is; then each fault is put into a worker's stack and its cells are checked again. A fault is
killed when a check that is named to see it turns from another outcome to fail or degraded in a cell that the fault
touches, and no outcome changes in a cell that it spares.

A cell that many faults spare is asked with many of them in the stack at once, since each by itself should change
nothing there: where nothing changes, none of them did. Where something does, they are asked in halves, and in the end
alone. So are benign changes. (Group testing: Dorfman, The Detection of Defective Members of Large Populations, 1943.
Faults that replace the same thing are never in together: one could hide the other.)
"""

from __future__ import annotations

import fnmatch
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import msgspec

from compat import __version__, progress
from compat.axes import axes_of, nearest
from compat.builtin import matrix_path
from compat.checks import CHECKS
from compat.device import default_workers
from compat.execute.local import NEEDS_FRESH_WORKER, check_request, group_spec
from compat.execute.worker_process import Stopped, WorkerProcess
from compat.faults import Fault, catalogue
from compat.identity import default_cache, describe, now, stack_identity
from compat.judge import judge
from compat.matrix import CellSpec, Model, read_matrix
from compat.plan import LoadGroup, make_plan
from compat.records import Check, Outcome
from compat.rules import context_of
from compat.selftest_result import Change, SelfTestResult, Status, Trial, keep, sources_hash
from compat.session import SessionError

SEEN = frozenset({Outcome.FAIL, Outcome.DEGRADED})
DIED = frozenset({Outcome.CRASH, Outcome.TIMEOUT, Outcome.OOM})
NO_BASELINE = DIED | {Outcome.ERROR}
"""Outcomes without a fault with which nothing can be compared."""

LEFT_OUT = frozenset({"speed", *(kind.name for kind in CHECKS if kind.on_request)})
"""Checks that the self-test does not run: a clock says nothing about a fault, and costs most; what only those get who
ask for it by name."""

CPU_WORKERS = 4
"""Most workers that a CPU gets by itself: nothing is timed."""

AT_LEAST = {"quick": 80.0, "standard": 95.0, "deep": 95.0}
"""Percent of the faults that are to be killed at a depth. Source: the project's requirement."""

TIMEOUT_SECONDS = 120.0
"""Longest wait for one check: a fault may make the stack hang, and that costs no more than this."""

TOGETHER = "with several that should change nothing there in at once, and alone where anything changed"

RULES = {
    "quick": "the checks named to see a fault, in cells that it touches until one does (none that is compiled, "
    "and no other where the first never ran what is changed), then in cells that it spares; "
    f"for benign changes every check in one cell (spared cells and benign changes {TOGETHER})",
    "standard": "the checks named to see a fault in every cell that it touches; every check in the cells that it "
    f"spares, and for benign changes (both {TOGETHER})",
    "deep": f"every check in every cell that a fault names (spared cells and benign changes {TOGETHER})",
}
"""Which checks are asked, in words: it stands in the table."""


@dataclass(frozen=True)
class Company:
    """Faults, or benign changes, that should change nothing in one cell, and what is asked of it with them in."""

    group: LoadGroup
    cell: CellSpec
    asked: Mapping[str, frozenset[str]]
    """Fault -> the checks that are asked of the cell under it."""

    @property
    def faults(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.asked)

    @property
    def checks(self) -> tuple[str, ...]:
        """What is asked under any of them."""
        named = frozenset().union(*self.asked.values())
        return tuple(c for c in self.cell.checks if c in named)

    def of(self, faults: Sequence[str]) -> Company:
        """Only `faults` of them."""
        return replace(self, asked={name: self.asked[name] for name in faults})

    def halves(self) -> tuple[Company, ...]:
        """Two of half the faults each; none for a single fault, which is asked alone."""
        middle = len(self.asked) // 2
        parts = (self.faults[:middle], self.faults[middle:])
        return tuple(self.of(part) for part in parts if len(part) > 1)


@dataclass
class Phase:
    """Items, and what a worker does with each of them; it may append more."""

    waiting: deque[Any]
    work: Callable[[WorkerProcess, Any], None]
    on_done: Callable[[int, int], None] = lambda done, of: None
    running: int = 0
    done: int = 0


@dataclass
class SelfTest:
    """Runs the trials. Listeners: `on_baseline(done, of)`, `on_company(done, of)`, `on_trial(trial, done, of)`."""

    device: str
    depth: str
    cache: Path
    log_folder: Path
    lanes: int = 1
    seed: int = 0
    on_baseline: Callable[[int, int], None] = lambda done, of: None
    on_company: Callable[[int, int], None] = lambda done, of: None
    on_trial: Callable[[Trial, int, int], None] = lambda trial, done, of: None
    models: dict[str, Model] = field(default_factory=dict)
    baseline: dict[tuple[str, str], Check] = field(default_factory=dict)
    quiet: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    """(fault, cell) -> checks that did not change with it and others in."""
    reached: dict[str, int] = field(default_factory=dict)
    """Fault -> how often it really changed something while others were in too."""
    trials: list[Trial] = field(default_factory=list)
    interrupted: bool = False

    def run(self, faults: Sequence[Fault]) -> SelfTestResult:
        """Every trial; KeyboardInterrupt ends it with what there is. Raises SessionError where the device is not
        there."""
        started, clock, sources = now(), time.monotonic(), sources_hash()
        self._stopping = threading.Event()
        self._planned = len(faults)
        self._lock = threading.Condition()
        self._environment: dict[str, Any] = {}
        self.models = read_matrix(matrix_path("default"), self.device).models
        asked: dict[str, set[str]] = {}
        for fault in faults:
            for _, cell, name in self._at_once(fault):
                asked.setdefault(cell.id, set()).add(name)
        named = tuple(
            replace(cell, checks=tuple(c for c in cell.checks if c in asked[cell.id]))
            for cell in map(self._cell, asked)
        )
        companies = deque(self._companies(faults))
        workers = [self._worker(n) for n in range(self.lanes)]
        try:
            self._work_off(
                workers,
                Phase(deque(make_plan(named).groups), self._measure_baseline, self.on_baseline),
                Phase(
                    companies,
                    lambda worker, company: self._measure_company(worker, company, companies),
                    self.on_company,
                ),
                Phase(deque(_ordered(faults)), self._measure_fault),
            )
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            self._stopping.set()
            for worker in workers:
                worker.close()
        order = {f.name: i for i, f in enumerate(faults)}
        environment = describe(dict(self._environment)) if self._environment else None
        result = SelfTestResult(
            device=self.device,
            depth=self.depth,
            started=started,
            seconds=round(time.monotonic() - clock, 1),
            compat=__version__,
            sources=sources,
            trials=tuple(sorted(self.trials, key=lambda t: order[t.fault])),
            planned=len(faults),
            whole_catalogue=[f.name for f in faults] == [f.name for f in chosen(self.device)],
            complete=len(self.trials) == len(faults),
            seed=self.seed,
            lanes=self.lanes,
            checks=tuple(c for c in CHECKS.names if c not in LEFT_OUT),
            left_out=tuple(c for c in CHECKS.names if c in LEFT_OUT),
            rule=RULES[self.depth],
            before=tuple(
                Change(cell=cell, check=name, before=check.outcome, after=check.outcome, reason=check.reason)
                for (cell, name), check in sorted(self.baseline.items())
                if check.outcome not in (Outcome.PASS, Outcome.UNSUPPORTED, Outcome.UNAVAILABLE)
            ),
        )
        if environment is None:
            return result
        return msgspec.structs.replace(result, environment=environment, stack=stack_identity(environment))

    def _cell(self, identity: str) -> CellSpec:
        axes = axes_of(identity)
        task = self.models[axes["model"]].task
        checks = tuple(c for c in CHECKS.names if c not in LEFT_OUT and CHECKS[c].applies(task, axes))
        return CellSpec(**axes, checks=checks)

    def _worker(self, number: int) -> WorkerProcess:
        log = self.log_folder / f"selftest-{number}.log"
        gpu = None if self.device == "cpu" else 0
        return WorkerProcess(log, stopping=lambda: self._stopping.is_set(), gpu=gpu)

    def _work_off(self, workers: Sequence[WorkerProcess], *phases: Phase) -> None:
        """One phase after the other, each by all workers side by side. Raises what one of them raised.

        A worker keeps its thread through all phases: it dies with the thread that started it.
        """
        failures: list[BaseException] = []
        together = threading.Barrier(len(workers))

        def lane(worker: WorkerProcess, ended: threading.Event) -> None:
            try:
                for phase in phases:
                    while (item := self._next(phase)) is not None:
                        phase.work(worker, item)
                        self._done(phase)
                    together.wait()
            except (Stopped, threading.BrokenBarrierError):
                together.abort()  # nobody is to wait for a lane that is gone
            except BaseException as error:  # raised below, in the caller's thread
                failures.append(error)
                self._stopping.set()
                together.abort()
            finally:
                ended.set()

        events = [threading.Event() for _ in workers]
        for worker, ended in zip(workers, events, strict=True):
            threading.Thread(target=lane, args=(worker, ended), daemon=True).start()
        try:
            for ended in events:
                while not ended.wait(0.1):  # short, so that Ctrl-C is seen
                    pass
        except KeyboardInterrupt:
            self._stopping.set()
            together.abort()
            for ended in events:
                ended.wait(10.0)
            raise
        if failures:
            raise failures[0]

    def _next(self, phase: Phase) -> Any:
        """An item to work on; None where none is left and nobody can add one. Raises Stopped."""
        with self._lock:
            while not phase.waiting and phase.running and not self._stopping.is_set():
                self._lock.wait(0.1)
            if self._stopping.is_set():
                raise Stopped
            if not phase.waiting:
                return None
            phase.running += 1
            return phase.waiting.popleft()

    def _done(self, phase: Phase) -> None:
        with self._lock:
            phase.done, phase.running = phase.done + 1, phase.running - 1
            phase.on_done(phase.done, phase.done + phase.running + len(phase.waiting))
            self._lock.notify_all()

    def _measure_baseline(self, worker: WorkerProcess, group: LoadGroup) -> None:
        for cell in group.cells:
            self._ask_baseline(worker, group, cell, cell.checks)

    def _ask_baseline(self, worker: WorkerProcess, group: LoadGroup, cell: CellSpec, checks: Sequence[str]) -> None:
        for name in checks:
            result, _ = self._ask(worker, group, cell, name)
            with self._lock:
                self.baseline[cell.id, name] = result

    def _companies(self, faults: Sequence[Fault]) -> list[Company]:
        """The cells that several faults spare, and apart from them those in which several benign changes are asked
        about; those of the most faults first."""
        found: dict[tuple[bool, str], Company] = {}
        for fault in faults:
            for group, cell, name in self._questions(fault):
                if cell.id not in fault.spared and not fault.benign:
                    continue
                key = (fault.benign, cell.id)
                so_far = found.get(key, Company(group, cell, {}))
                checks = so_far.asked.get(fault.name, frozenset()) | {name}
                found[key] = replace(so_far, asked={**so_far.asked, fault.name: checks})
        return sorted((c for c in found.values() if len(c.asked) > 1), key=lambda c: -len(c.asked))

    def _measure_company(self, worker: WorkerProcess, company: Company, waiting: deque[Company]) -> None:
        """Those of it that have to be asked again apart are appended to `waiting`."""
        inside: dict[str, int] = {}
        for name in company.checks:
            if name not in company.checks:  # only those asked for it who are not in
                continue
            result, answer = self._ask(worker, company.group, company.cell, name, company.faults)
            inside = answer.get("faults_reached", inside)
            if "faults_reached" in answer and tuple(inside) != company.faults:  # the first answer says who is in
                aside = tuple(answer["set_aside"])
                if len(aside) > 1:
                    with self._lock:
                        waiting.append(company.of(aside))
                company = company.of(tuple(inside))
            if "injection" in answer or result.outcome != self.baseline[company.cell.id, name].outcome:
                with self._lock:
                    waiting.extend(company.halves())
                return
        with self._lock:
            self.quiet |= {(fault, company.cell.id): company.checks for fault in inside}
            for fault, times in inside.items():
                self.reached[fault] = max(times, self.reached.get(fault, 0))

    def _ask(
        self, worker: WorkerProcess, group: LoadGroup, cell: CellSpec, name: str, faults: tuple[str, ...] = ()
    ) -> tuple[Check, dict[str, Any]]:
        """The check's result with `faults` in, and the worker's whole answer."""
        model = self.models[cell.model]
        spec = group_spec(group, model, self.device, self.cache, self.seed, self.depth)
        request = check_request(name, spec, cell.attention, 1) | {"faults": faults}
        for attempt in (1, 2):  # a worker can also be killed from outside: a crash must repeat itself to count
            answer = worker.ask(request, min(TIMEOUT_SECONDS, CHECKS[name].timeout_seconds) if faults else 600.0)
            self._note_environment(worker)
            result = judge(name, answer, context_of(cell.axes, self.device, model), attempts=attempt)
            if result.outcome in NEEDS_FRESH_WORKER or "injection" in answer:
                worker.close()
            if result.outcome not in NEEDS_FRESH_WORKER:
                break
        return result, answer

    def _note_environment(self, worker: WorkerProcess) -> None:
        if self._environment or worker.environment is None:
            return
        described = dict(worker.environment)
        if self.device == "cuda" and not described.pop("torch_sees_cuda", False):
            raise SessionError("the device is cuda, but torch in this environment sees no GPU")
        self._environment = described

    def _measure_fault(self, worker: WorkerProcess, fault: Fault) -> None:
        started = time.monotonic()
        reached, note = self.reached.get(fault.name, 0), ""
        asked: list[tuple[str, str]] = []
        together: dict[str, None] = {}
        seen: list[Change] = []
        disturbed: list[Change] = []
        other: list[Change] = []
        questions = self._questions(fault)
        for group, cell, name in questions:
            if self._one_will_do(fault, cell):
                elsewhere = {where for where, _ in asked if where in fault.cells} - {cell.id}
                if seen or (elsewhere and not reached):
                    continue
            if (cell.id, name) not in self.baseline:
                others = [c for _, where, c in questions if where.id == cell.id and (cell.id, c) not in self.baseline]
                self._ask_baseline(worker, group, cell, others)
            asked.append((cell.id, name))
            if name in self.quiet.get((fault.name, cell.id), ()):
                together[cell.id] = None
                continue
            result, answer = self._ask(worker, group, cell, name, (fault.name,))
            reached = max(reached, answer.get("faults_reached", {}).get(fault.name, 0))
            if "injection" in answer:
                note = str(answer["injection"])
                break
            before = self.baseline[cell.id, name].outcome
            if result.outcome == before:
                continue
            change = Change(cell=cell.id, check=name, before=before, after=result.outcome, reason=result.reason)
            if before in NO_BASELINE or (fault.benign and result.outcome == Outcome.PASS):
                other.append(change)
            elif cell.id in fault.spared or fault.benign:
                disturbed.append(change)
            elif result.outcome in SEEN and before not in SEEN:
                seen.append(change)
            else:
                other.append(change)
        trial = Trial(
            fault=fault.name,
            group="benign" if fault.benign else fault.group,
            title=fault.title,
            origin=fault.origin,
            status=_status(fault, reached, seen, disturbed, other, note),
            expected=fault.seen_by,
            cells=fault.cells,
            spared=fault.spared,
            asked=tuple(asked),
            together=tuple(together),
            seen=tuple(seen),
            disturbed=tuple(disturbed),
            other=tuple(other),
            times_reached=reached,
            seconds=round(time.monotonic() - started, 1),
            note=note,
        )
        with self._lock:
            self.trials.append(trial)
            self.on_trial(trial, len(self.trials), self._planned)

    def _one_will_do(self, fault: Fault, cell: CellSpec) -> bool:
        """Whether the fault touches the cell, and need not be seen there if it is seen elsewhere."""
        return self.depth == "quick" and not fault.benign and cell.id not in fault.spared

    def _at_once(self, fault: Fault) -> list[tuple[LoadGroup, CellSpec, str]]:
        """Those of its questions that are asked whatever the answers to the others are."""
        questions = self._questions(fault)
        touched = [cell.id for _, cell, _ in questions if self._one_will_do(fault, cell)]
        return [q for q in questions if not self._one_will_do(fault, q[1]) or q[1].id == touched[0]]

    def _questions(self, fault: Fault) -> list[tuple[LoadGroup, CellSpec, str]]:
        """What is asked under a fault (RULES), group by group."""
        asked = []
        touched = fault.cells
        if self.depth == "quick":
            touched = touched[:1] if fault.benign else tuple(c for c in touched if not _compiled(c))
        for group in make_plan(map(self._cell, (*touched, *fault.spared))).groups if touched else ():
            for cell in group.cells:
                narrow = ("quick",) if cell.id in fault.spared else ("quick", "standard")
                all_of_them = fault.benign or self.depth not in narrow
                names = [c for c in cell.checks if all_of_them or c in fault.seen_by]
                asked += [(group, cell, name) for name in names]
        return asked


def _status(
    fault: Fault,
    reached: int,
    seen: Sequence[Change],
    disturbed: Sequence[Change],
    other: Sequence[Change],
    note: str,
) -> Status:
    if note:
        return Status.NOT_APPLIED
    if fault.benign:
        return Status.FLAGGED if disturbed else Status.QUIET if reached else Status.NOT_REACHED
    if disturbed:
        return Status.DISTURBED
    if {c.check for c in seen} & set(fault.seen_by):
        return Status.KILLED
    if seen:
        return Status.OTHER_CHECK
    if any(c.after in DIED for c in other):
        return Status.CRASHED
    return Status.UNSEEN if reached else Status.NOT_REACHED


def _ordered(faults: Sequence[Fault]) -> list[Fault]:
    """Those that take longest first, so that the workers end together: of compiled cells, then of the most cells."""
    return sorted(faults, key=lambda f: (not any(_compiled(c) for c in f.cells), -len(f.cells) - len(f.spared)))


def _compiled(cell: str) -> bool:
    return axes_of(cell).get("mode") == "compile"


def fitting(patterns: Sequence[str] = ()) -> list[Fault]:
    """The faults of the catalogue whose name fits a pattern (none: all). Raises SessionError for a pattern that fits
    none, naming the nearest."""
    known = catalogue()
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in known):
            hint = nearest(pattern, known)
            raise SessionError(f"unknown fault {pattern!r}" + (f"; nearest: {hint!r}" if hint else ""))
    return [f for f in known.values() if not patterns or any(fnmatch.fnmatchcase(f.name, p) for p in patterns)]


def chosen(device: str, patterns: Sequence[str] = ()) -> list[Fault]:
    """Those of `fitting(patterns)` that exist on `device`. Raises SessionError where that leaves none."""
    fits = fitting(patterns)
    here = [f for f in fits if f.device in ("", device)]
    if not here:
        raise SessionError(f"{fits[0].name!r} exists on {fits[0].device} only, and the device is {device}")
    return here


def conduct(
    faults: Sequence[Fault],
    device: str,
    depth: str,
    *,
    cache: Path | None = None,
    lanes: int | None = None,
    seed: int = 0,
    stream: TextIO | None = None,
) -> tuple[SelfTestResult, bool]:
    """Run the self-test with progress on `stream`, and keep a complete one for the reports of later runs.

    Returns the result and whether it was interrupted.
    """
    cache = cache or default_cache()
    listener = progress.selftest_listener(stream, len(faults))
    with tempfile.TemporaryDirectory(prefix="compat-selftest-") as folder:
        test = SelfTest(
            device,
            depth,
            cache,
            Path(folder),
            default_workers(device, 1, CPU_WORKERS) if lanes is None else lanes,
            seed,
            on_baseline=listener.baseline,
            on_company=listener.company,
            on_trial=listener.trial,
        )
        try:
            result = test.run(faults)
        finally:
            listener.close()
    keep(result, cache)
    return result, test.interrupted
