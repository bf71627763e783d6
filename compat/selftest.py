"""The self-test: which checks see which bug, on this machine, with these packages.

In: the catalogue of compat.faults, a device, a depth. Out: a `SelfTest`. Every cell that the catalogue names is checked
once as it is; then each fault is put into a worker's stack and its cells are checked again. A fault is killed when a
check that is named to see it turns from another outcome to fail or degraded in a cell that the fault touches, and no
outcome changes in a cell that it spares.
"""

from __future__ import annotations

import fnmatch
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compat.builtin import matrix_path
from compat.checks import CHECKS
from compat.execute.local import check_request, group_spec
from compat.execute.worker_process import WorkerProcess
from compat.faults import Fault, catalogue
from compat.judge import Context, judge
from compat.matrix import AXES, CellSpec, Model, read_matrix
from compat.plan import LoadGroup, make_plan
from compat.records import Check, Outcome

SEEN = frozenset({Outcome.FAIL, Outcome.DEGRADED})

LEFT_OUT = frozenset({"speed"})
"""Checks that the self-test does not run: a clock says nothing about a fault, and costs most."""


@dataclass(frozen=True)
class Trial:
    """What came of one fault."""

    fault: str
    reached: bool
    killed: bool
    seen_by: tuple[str, ...]
    """Checks that turned to fail or degraded in cells that it touches."""
    seen_in: tuple[str, ...]
    """Cells in which they did."""
    disturbed: tuple[str, ...]
    """`cell check: before -> after` of every change in cells that it spares (for a benign change: in all)."""
    reasons: tuple[str, ...] = ()


@dataclass
class SelfTest:
    """Runs the trials; `results` grows while they run."""

    device: str
    depth: str
    cache: Path
    log_folder: Path
    lanes: int = 1
    seed: int = 0
    on_trial: Callable[[Trial], None] = lambda trial: None
    models: dict[str, Model] = field(default_factory=dict)
    baseline: dict[tuple[str, str], Check] = field(default_factory=dict)
    results: list[Trial] = field(default_factory=list)

    def run(self, faults: Sequence[Fault]) -> list[Trial]:
        """Every trial, in the order in which they end."""
        self.models = read_matrix(matrix_path("default"), self.device).models
        named = dict.fromkeys(c for f in faults for c in (*f.cells, *f.spared))
        plan = make_plan(self._cell(c) for c in named)
        self._over(plan.groups, self._measure_baseline)
        self._over(faults, self._measure_fault)
        return self.results

    def _cell(self, identity: str) -> CellSpec:
        axes = dict(zip(AXES, identity.split("/"), strict=True))
        task = self.models[axes["model"]].task
        checks = tuple(c for c in CHECKS.names if c not in LEFT_OUT and CHECKS[c].applies(task, axes))
        return CellSpec(**axes, checks=checks)

    def _over(self, items: Sequence[Any], work: Callable[[WorkerProcess, Any], None]) -> None:
        """`work` on every item, by as many workers as there are lanes."""
        waiting = deque(items)
        failures: list[BaseException] = []

        def lane(number: int) -> None:
            worker = WorkerProcess(self.log_folder / f"selftest-{number}.log")
            try:
                while waiting and not failures:
                    work(worker, waiting.popleft())
            except IndexError:
                pass  # another lane took the last
            except BaseException as error:  # raised below, in the caller's thread
                failures.append(error)
            finally:
                worker.close()

        threads = [threading.Thread(target=lane, args=(n,), daemon=True) for n in range(self.lanes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def _measure_baseline(self, worker: WorkerProcess, group: LoadGroup) -> None:
        for cell in group.cells:
            for check, (result, _) in self._checks(worker, cell, group, "").items():
                self.baseline[cell.id, check] = result

    def _checks(
        self, worker: WorkerProcess, cell: CellSpec, group: LoadGroup, fault: str
    ) -> dict[str, tuple[Check, int]]:
        """Check -> (result, how often the fault was reached)."""
        model = self.models[cell.model]
        spec = group_spec(group, model, self.device, self.cache, self.seed, self.depth)
        context = Context(cell.axes, self.device.split(":")[0], model.real, model.features)
        found = {}
        for check in cell.checks:
            request = check_request(check, spec, cell.attention, 1) | {"fault": fault}
            answer = worker.ask(request, CHECKS[check].timeout_seconds)
            found[check] = (judge(check, answer, context), int(answer.get("fault_reached", 0)))
        return found

    def _measure_fault(self, worker: WorkerProcess, fault: Fault) -> None:
        reached = 0
        seen: dict[str, list[str]] = {}
        reasons: list[str] = []
        disturbed: list[str] = []
        for group in make_plan(self._cell(c) for c in (*fault.cells, *fault.spared)).groups:
            for cell in group.cells:
                for check, (result, times) in self._checks(worker, cell, group, fault.name).items():
                    reached = max(reached, times)
                    before = self.baseline[cell.id, check].outcome
                    if result.outcome == before:
                        continue
                    if cell.id in fault.spared or fault.benign:
                        disturbed.append(
                            f"{cell.id} {check}: {before.value} -> {result.outcome.value}: {result.reason}"
                        )
                    elif result.outcome in SEEN:
                        seen.setdefault(check, []).append(cell.id)
                        reasons.append(f"{cell.id} {check}: {result.reason}")
        killed = not disturbed and (fault.benign or bool(set(seen) & set(fault.seen_by)))
        trial = Trial(
            fault.name,
            reached > 0,
            killed,
            tuple(seen),
            tuple(dict.fromkeys(c for cells in seen.values() for c in cells)),
            tuple(disturbed),
            tuple(reasons),
        )
        self.results.append(trial)
        self.on_trial(trial)


def chosen(device: str, patterns: Sequence[str] = ()) -> list[Fault]:
    """The faults of the catalogue that exist on `device`, of those the ones whose name fits a pattern (none: all)."""
    return [
        f
        for f in catalogue().values()
        if f.device in ("", device) and (not patterns or any(fnmatch.fnmatchcase(f.name, p) for p in patterns))
    ]
