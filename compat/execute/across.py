"""Two workers, one of each stack, asked the same: their answers compared, and their calls timed in turns.

In: a cell, and the checkpoint that both load. Out: `Compared` or `Timed`. The second worker is asked after the first
has answered, and the first then compares both: it holds the reference and the yardstick already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from compat.execute.local import check_request, group_spec
from compat.execute.paired import paired_answer
from compat.execute.worker_process import WorkerProcess
from compat.judge import doubts, judge
from compat.matrix import CellSpec, Model
from compat.plan import make_plan
from compat.records import Check, Measurement, Outcome
from compat.rules import context_of
from compat.upgrade import across
from compat.upgrade.result import Compared, Finding, Kind, Timed

NAMES = ("before", "after")

LOCATE_SECONDS = 600.0
"""Longest wait for a checkpoint: a large one may have to be converted."""

PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Both:
    """What both workers have in common, and the interpreter of each."""

    pythons: tuple[str, str]
    folder: Path
    """For their logs, and for tensors while they are compared."""
    models: Mapping[str, Model]
    device: str
    cache: Path
    seed: int = 0
    depth: str = "standard"
    threads: int = 1
    timeout_seconds: float = 300.0
    memory_limit_bytes: int | None = None
    stopping: Callable[[], bool] = lambda: False


class TwoStacks:
    """See the module's docstring. A context manager: the workers end with it."""

    def __init__(self, both: Both) -> None:
        self.both = both
        self.workers: list[WorkerProcess] = [self._worker(side, both.pythons[side]) for side in (0, 1)]

    def __enter__(self) -> TwoStacks:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End both workers; the next question starts fresh ones."""
        for worker in self.workers:
            worker.close()

    def turn_to(self, python: str) -> None:
        """Ask another interpreter as the second side from here on; the first stays as it is."""
        self.workers[1].close()
        self.workers[1] = self._worker(1, python)

    def locate(self, model: str) -> str:
        """The folder of the checkpoint that the first stack reads, made by it where compat makes it; "" where it has
        none, or does not know the family."""
        cell = CellSpec(model=model, dtype="fp32", attention="eager", quantization="none", checks=("load",))
        answer = self._ask(0, cell, "", "locate", LOCATE_SECONDS)
        return str(answer.get("location", ""))

    def compare(self, cell: CellSpec, checkpoint: str, defaults: bool) -> Compared:
        """Both answers, and how far they are apart. Raises Stopped."""
        started = time.monotonic()
        files = [str(self.both.folder / f".across-{name}.safetensors") for name in NAMES]
        try:
            before, after = (
                self._ask(side, cell, checkpoint, "answer", self.both.timeout_seconds, file=file, defaults=defaults)
                for side, file in enumerate(files)
            )
            figures = None
            if before["status"] == after["status"] == "ok":
                figures = self._ask(0, cell, checkpoint, "compare", self.both.timeout_seconds, files=files)
        finally:
            for file in files:
                Path(file).unlink(missing_ok=True)
        return across.compared(cell.id, cell.axes, before, after, figures, time.monotonic() - started)

    def time(self, cell: CellSpec, checkpoint: str, speed: dict[str, Any]) -> Timed:
        """The second stack's speed over the first's. A difference is stated where every pair of fresh processes shows
        it (criteria/across.toml). Raises Stopped."""
        rule = across.rules().timing
        attempts: list[tuple[Measurement, ...]] = []
        found: tuple[Finding, ...] = ()
        for _ in range(1 + rule.confirmations):
            self.close()
            check = self._timed(cell, checkpoint, speed)
            if check.outcome in (Outcome.INCONCLUSIVE, *_NOT_TIMED) or not _speedups(check):
                why = [check.reason, *(d.reason for d in doubts(check)), check.outcome.value]
                return Timed(cell=cell.id, attempts=tuple(attempts), not_stated=next(filter(None, why)))
            attempts.append(_speedups(check))
            found = differences(cell.id, attempts)
            if not found:
                break
        return Timed(cell=cell.id, attempts=tuple(attempts), findings=found)

    def _timed(self, cell: CellSpec, checkpoint: str, speed: dict[str, Any]) -> Check:
        model = self.both.models[cell.model]
        request = check_request("speed", self._spec(cell, checkpoint) | {"speed": speed}, cell.attention, 1)
        answer = paired_answer(self.workers[1], self.workers[0], (request, request), self.both.timeout_seconds)
        return judge("speed", answer, context_of(cell.axes, self.both.device, model))

    def _spec(self, cell: CellSpec, checkpoint: str) -> dict[str, Any]:
        both, (group,) = self.both, make_plan([cell]).groups
        spec = group_spec(group, both.models[cell.model], both.device, both.cache, both.seed, both.depth)
        return spec | {"key": f"{group.key}@{checkpoint}", "checkpoint": checkpoint}

    def _ask(self, side: int, cell: CellSpec, checkpoint: str, do: str, seconds: float, **more: Any) -> dict[str, Any]:
        request = check_request("", self._spec(cell, checkpoint), cell.attention, self.both.threads)
        return self.workers[side].ask({**request, "op": "across", "do": do, **more}, seconds)

    def _worker(self, side: int, python: str) -> WorkerProcess:
        both = self.both
        log = both.folder / f"worker-across-{NAMES[side]}.log"
        gpu = None if both.device == "cpu" else 0
        return WorkerProcess(log, both.memory_limit_bytes, both.stopping, python, gpu)


_NOT_TIMED = (Outcome.CRASH, Outcome.ERROR, Outcome.OOM, Outcome.TIMEOUT, Outcome.UNSUPPORTED, Outcome.UNAVAILABLE)


def _speedups(check: Check) -> tuple[Measurement, ...]:
    """Those that have an interval, and nothing that speaks against them."""
    found = doubts(check)
    return tuple(
        m
        for phase in PHASES
        for m in check.measured(f"{phase}_speedup")
        if m.ci95 is not None and not any(doubt.against(m) for doubt in found)
    )


def differences(cell: str, attempts: list[tuple[Measurement, ...]]) -> tuple[Finding, ...]:
    """What every attempt states: a speedup whose whole interval lies beyond the bound, on the same side. Pure."""
    rule = across.rules().timing
    found = []
    for own in attempts[0] if attempts else ():
        same = [m for a in attempts for m in a if (m.name, m.at) == (own.name, own.at)]
        ends = [m.ci95 for m in same if m.ci95 is not None]
        if len(ends) < len(attempts):
            continue
        slower = all(high < 1 - rule.slower for _, high in ends)
        faster = all(low > 1 + rule.slower for low, _ in ends)
        if slower or faster:
            values = sorted(m.value or 0.0 for m in same)
            middle = values[len(values) // 2]
            at = f"{own.at['batch']:g}x{own.at['length']:g}@{own.at['padding']:g}"
            found.append(
                Finding(
                    kind=Kind.SLOWER if slower else Kind.FASTER,
                    name=own.name.removesuffix("_speedup"),
                    cell=cell,
                    words=f"{own.name.removesuffix('_speedup')} at {at}, in turns on one device",
                    after=f"{1 - middle:.0%} slower" if slower else f"{middle - 1:.0%} faster",
                    value=middle,
                    unit="x",
                    bound=1 - rule.slower if slower else 1 + rule.slower,
                    source=rule.source,
                )
            )
    return tuple(found)
