"""Run a plan on this machine: one lane a worker, each taking the next load group.

In: a plan and a configuration. Out: every result through `on_result`, as it comes. A worker that dies, hangs or grows
without end costs the check that it was running; the next one gets a fresh worker. Checks that measure time have the
machine to themselves: with several lanes they come last, on one.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compat.axes import ATTENTION, DTYPES, PLAIN, QUANTIZATIONS
from compat.axes.attention import KERNEL_KINDS
from compat.checks import CHECKS
from compat.execute.again import DISTURBED_SECONDS, DISTURBED_SHARE, Disturbed, Reruns, combined
from compat.execute.explaining import (
    LIMIT_SECONDS,
    Explainer,
    asks,
    explain_request,
    explained,
    lost_device,
    raised_by,
    unasked,
)
from compat.execute.paired import paired_answer
from compat.execute.worker_process import Stopped, WorkerProcess
from compat.judge import broken, judge, not_run
from compat.matrix import CellSpec, Model
from compat.plan import LoadGroup, Plan, by_exclusive, make_plan
from compat.records import WITHHELD, Check, Outcome
from compat.rules import Context, context_of
from compat.speed.settings import SpeedSettings

OnResult = Callable[[CellSpec, Check], None]
OnEnvironment = Callable[[dict[str, Any]], None]

NEEDS_FRESH_WORKER = frozenset({Outcome.OOM, Outcome.CRASH})
"""Outcomes after which the device may not be as it was."""


@dataclass(frozen=True)
class Configuration:
    """What execution needs beside the plan. `lanes` are device names, one worker each (`cpu`, `cuda:0`, ...)."""

    lanes: tuple[str, ...]
    cache: Path
    folder: Path
    models: Mapping[str, Model]
    threads: int = 1
    seed: int = 0
    depth: str = "standard"
    timeout_seconds: float | None = None
    memory_limit_bytes: int | None = None
    repro: Callable[[CellSpec, str], str] = lambda cell, check: ""
    loads: Mapping[str, Check] = field(default_factory=dict)
    """Cell id -> load check that is already known (a resumed run)."""
    speed: SpeedSettings = field(default_factory=SpeedSettings)
    baselines: Mapping[str, CellSpec] = field(default_factory=dict)
    """Cell id -> the cell that its speed is compared with; eager of the same group for those that are not named."""
    python: str = sys.executable
    """The interpreter of the stack under test."""
    against: str = ""
    """The interpreter of the stack that speed is compared with; "" for a baseline in the stack under test."""
    unexpected: Callable[[CellSpec, Check], bool] = lambda cell, check: False
    """Whether a result is to be asked for once more."""
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    """Model -> the folder that it is loaded from, where not each stack makes its own."""


class LocalEngine:
    """Executes one plan. `stop` ends it early: what is under way is given up, nothing more is started."""

    def __init__(
        self,
        plan: Plan,
        configuration: Configuration,
        on_result: OnResult,
        on_environment: OnEnvironment = lambda environment: None,
    ) -> None:
        self.configuration = configuration
        self.on_result = on_result
        self.on_environment = on_environment
        self.model_seconds = 0.0
        """Seconds that workers report as spent inside the stack under test."""
        alone = len(configuration.lanes) > 1
        # a full-size model is loaded once, and fills the memory that all lanes share
        large = {name for name, model in configuration.models.items() if model.shape}
        shared, timed = by_exclusive(plan, large) if alone else (plan, Plan((), ()))
        # real checkpoints take longest: last, they would leave the other lanes idle
        self._groups = deque(sorted(shared.groups, key=lambda g: alone and not configuration.models[g.model].real))
        self._timed = deque(timed.groups)
        """What must have the machine to itself: the last lane to come to its end runs it."""
        self._working = len(configuration.lanes)
        self._loads = dict(configuration.loads)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._explainer = Explainer()
        self._reruns = Reruns(configuration.unexpected)
        self._disturbed = Disturbed()
        self._started = 0.0
        self.failure: BaseException | None = None
        self._ended: list[threading.Event] = []
        """One a lane. Thread.is_alive will not do: until Python 3.13 it says False after Ctrl-C within Thread.join."""
        self._workers: dict[str, WorkerProcess] = {}
        self._other: WorkerProcess | None = None

    def stop(self) -> None:
        """Ask every lane to end; returns at once."""
        self._stop.set()

    @property
    def worker_pids(self) -> list[int]:
        """The workers that are running now."""
        return [w.pid for w in self._workers.values() if w.pid is not None]

    def run(self) -> None:
        """Execute until nothing is left or `stop` was called. Raises what a listener raised."""
        self.start()
        self.run_down()

    @property
    def running(self) -> bool:
        """Whether any lane is still at work."""
        return not all(ended.is_set() for ended in self._ended)

    def start(self) -> None:
        """Start the lanes and return."""
        self._started = time.monotonic()
        for i, device in enumerate(self.configuration.lanes):
            ended = threading.Event()
            self._ended.append(ended)
            name = f"{i}-{device.replace(':', '')}"
            threading.Thread(target=self._lane, args=(name, device, ended), daemon=True).start()

    def run_down(self) -> None:
        """Wait until every lane has ended. Raises what a listener raised."""
        for ended in self._ended:
            while not ended.wait(0.1):  # short, so that Ctrl-C is seen
                pass
        if self._other is not None:
            self._other.close()
        self._tell_disturbed()
        if self.failure is not None:
            raise self.failure

    def _lane(self, name: str, device: str, ended: threading.Event) -> None:
        configuration = self.configuration
        worker = WorkerProcess(
            configuration.folder / f"worker-{name}.log",
            configuration.memory_limit_bytes,
            self._stop.is_set,
            configuration.python,
            gpu=None if device == "cpu" else int(device.partition(":")[2] or 0),
        )
        device = "cuda:0" if device.startswith("cuda") else device  # the worker's own comes first to it
        self._workers[name] = worker
        try:
            if self._stop.is_set():
                return
            worker.start()
            if worker.environment is not None:
                with self._lock:
                    self.on_environment(worker.environment)
            self._run_groups(worker, self._groups, device)
            with self._lock:
                self._working -= 1
                last = self._working == 0
            if last:
                self._run_groups(worker, self._timed, device)
                now = time.monotonic()
                patience = max(DISTURBED_SECONDS, DISTURBED_SHARE * (now - self._started))
                self._run_groups(worker, self._disturbed.groups, device, now + patience)
                self._tell_disturbed()
        except Stopped:
            return
        except BaseException as error:  # handed to the caller of run(), which raises it
            self.failure = error
            self._stop.set()
        finally:
            worker.close()
            ended.set()

    def _tell_disturbed(self) -> None:
        """Tell what the timings said last that were to be asked again and are not."""
        for cell, check in self._disturbed.left():
            self.on_result(cell, check)

    def _run_groups(
        self, worker: WorkerProcess, groups: deque[LoadGroup], device: str, until: float = math.inf
    ) -> None:
        while not self._stop.is_set() and time.monotonic() < until:
            with self._lock:
                if not groups:
                    return
                group = groups.popleft()
            self._run_group(worker, group, device)

    def _run_group(self, worker: WorkerProcess, group: LoadGroup, device: str) -> None:
        settings = self.configuration
        spec = group_spec(group, settings.models[group.model], device, settings.cache, settings.seed, settings.depth)
        spec["checkpoint"] = settings.checkpoints.get(group.model, "")
        for cell in group.cells:
            model = self.configuration.models[cell.model]
            context = context_of(cell.axes, device, model)
            load = self._loads.get(cell.id)
            first = True
            spec["speed"] = self._speed(cell, device)
            for check in cell.checks:
                if self._stop.is_set():
                    raise Stopped
                why_not = _why_not(load) if check != "load" else ""
                last = result = not_run(check, why_not) if why_not else self._ask(worker, spec, cell, check, context)
                if not why_not and self._reruns.asks(cell, result):
                    worker.close()
                    last = self._ask(worker, spec, cell, check, context)
                    self._reruns.saw(cell, result, last)
                    result = combined(result, last)
                # hooks and smaller calls say nothing of a compiled graph or of weights that come and go
                effort = self._explainer.effort(cell.model, result, first) if cell.mode == PLAIN else ""
                first = first and not effort
                if asks(result):
                    result = self._explain(worker, spec, cell, result, context, effort)
                if check == "load":
                    load = self._loads[cell.id] = last  # what can be asked after it
                if not self._disturbed.keeps(group, cell, result):
                    self.on_result(cell, self._disturbed.settled(cell, result))

    def _ask(self, worker: WorkerProcess, spec: dict[str, Any], cell: CellSpec, check: str, context: Context) -> Check:
        request = check_request(check, spec, cell.attention, self.configuration.threads)
        if check == "speed" and self.configuration.against:
            answer = self._against(worker, request, self._timeout(cell, check))
        else:
            answer = worker.ask(request, self._timeout(cell, check))
        with self._lock:
            self.model_seconds += answer.get("model_seconds", 0.0)
        result = judge(check, answer, context, self.configuration.repro(cell, check))
        if result.outcome in NEEDS_FRESH_WORKER:
            worker.close()
        return result

    def _against(self, worker: WorkerProcess, request: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
        """The answer of a speed check whose baseline is the same cell in the other environment."""
        if self._other is None:
            folder, limit = self.configuration.folder, self.configuration.memory_limit_bytes
            name = f"worker-against-{worker.stderr.stem}.log"
            self._other = WorkerProcess(folder / name, limit, self._stop.is_set, self.configuration.against, worker.gpu)
            self._workers["against"] = self._other
            self._other.start()
        return paired_answer(worker, self._other, (request, request), timeout_seconds)

    def _explain(
        self, worker: WorkerProcess, spec: dict[str, Any], cell: CellSpec, check: Check, context: Context, effort: str
    ) -> Check:
        """`check` with what the worker found of its cause; its outcome stays."""
        limits = broken(check, context)
        if lost_device(check):
            return explained(check, limits, unasked(check, self.configuration.seed))
        if not effort:
            return explained(check, limits, None)
        request = check_request(check.name, spec, cell.attention, self.configuration.threads)
        started = time.monotonic()
        answer = worker.ask(explain_request(request, limits, effort, raised_by(check, limits)), LIMIT_SECONDS)
        self._explainer.took(time.monotonic() - started)
        if answer.get("device_lost"):
            worker.close()
        return explained(check, limits, answer)

    def _timeout(self, cell: CellSpec, check: str) -> float:
        settings = self.configuration
        own = settings.models[cell.model].row.get("timeout_seconds")
        if settings.timeout_seconds and not own:
            return settings.timeout_seconds
        grid = settings.speed.patience_seconds if check == "speed" else 0.0
        return float(own or CHECKS[check].timeout_seconds) + grid

    def _speed(self, cell: CellSpec, device: str) -> dict[str, Any]:
        """What the speed check of `cell` is asked, see worker.group.GroupSpec; {} for its own single point."""
        settings = self.configuration
        baseline = settings.baselines.get(cell.id)
        if baseline is None:
            return settings.speed.request()
        (group,) = make_plan([baseline]).groups
        model = settings.models[baseline.model]
        spec = group_spec(group, model, device, settings.cache, settings.seed, settings.depth)
        named = {"group": spec, "attention": _attention(baseline.attention), "cell": baseline.id}
        return settings.speed.request() | {"baseline": named}


def check_request(check: str, spec: dict[str, Any], attention: str, threads: int) -> dict[str, Any]:
    """What a worker is asked; `spec` as `group_spec` makes it."""
    return {"op": "check", "check": check, "group": spec, "attention": _attention(attention), "threads": threads}


def group_spec(group: LoadGroup, model: Model, device: str, cache: Path, seed: int, depth: str) -> dict[str, Any]:
    """A load group as the worker needs it."""
    scheme = QUANTIZATIONS[group.quantization]
    return {
        "key": group.key,
        "row": dict(model.row),
        "dtype": group.dtype,
        "quantization": {
            "name": scheme.name,
            "library": scheme.library,
            "arguments": scheme.arguments,
            "bits": scheme.bits,
            "overhead_bytes": scheme.overhead(DTYPES[group.dtype].bytes),
        },
        "device": device,
        "cache": str(cache),
        "seed": seed,
        "depth": depth,
        "mode": group.mode,
    }


def _attention(name: str) -> dict[str, Any]:
    """An attention backend as the worker needs it; `operators` are parts of the names of its kernels."""
    entry = ATTENTION[name]
    return {
        "name": entry.name,
        "implementation": entry.implementation,
        "sdpa_kernel": entry.sdpa_kernel,
        "convert": entry.convert,
        "provider": entry.provider,
        "keyword": entry.keyword,
        "operators": [part for part, kind in KERNEL_KINDS if kind in entry.kinds | entry.slower_kinds],
    }


def _why_not(load: Check | None) -> str:
    """Why nothing can be asked after this load, or ""."""
    if load is None:
        return ""
    if load.outcome in WITHHELD:
        return f"load is {load.outcome.value}"
    phase = load.evidence.facts.get("phase")
    if load.outcome == Outcome.TIMEOUT or phase in ("load", "fetch", "convert", "build", "export"):
        return f"the model did not load: {load.outcome.value}"
    return ""
