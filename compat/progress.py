"""Showing how far a run is: a bar on a terminal, one line a load group in a pipe; where cells take minutes, one line a
cell in either.

In: results as they come. Out: text on a stream; nothing else depends on it.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Protocol, TextIO

from compat.judge import doubts
from compat.matrix import CellSpec
from compat.plan import Plan
from compat.records import Check, cell_outcome


class Listener(Protocol):
    """What a run tells."""

    def result(self, cell: CellSpec, check: Check) -> None:
        """A check has its answer."""
        ...

    def close(self) -> None:
        """The run has ended."""
        ...


class _Count:
    """Cells done and their outcomes."""

    def __init__(self, plan: Plan) -> None:
        self.cells = len(plan.cells)
        self.done = 0
        self.outcomes: Counter[str] = Counter()
        self._checks: dict[str, list[Check]] = {}
        self._expected = {c.id: len(c.checks) for c in plan.cells}

    def add(self, cell: CellSpec, check: Check) -> str | None:
        """The cell's outcome when this was its last check."""
        checks = self._checks.setdefault(cell.id, [])
        checks.append(check)
        if len(checks) < self._expected.get(cell.id, 0):
            return None
        outcome = cell_outcome(checks).value
        self.done += 1
        self.outcomes[outcome] += 1
        del self._checks[cell.id]
        return outcome

    def so_far(self) -> str:
        return ", ".join(f"{n} {name}" for name, n in self.outcomes.most_common())


class PlainProgress:
    """One line a load group: for pipes and logs."""

    def __init__(self, plan: Plan, stream: TextIO) -> None:
        self._count = _Count(plan)
        self._stream = stream
        self._group_of = {c.id: g.key for g in plan.groups for c in g.cells}
        self._left = Counter(self._group_of.values())
        self._line: dict[str, list[str]] = {}
        self._started = time.monotonic()

    def result(self, cell: CellSpec, check: Check) -> None:
        """Count, and show when a cell is complete."""
        outcome = self._count.add(cell, check)
        if outcome is None:
            return
        key = self._group_of[cell.id]
        self._line.setdefault(key, []).append(f"{cell.attention} {outcome}")
        self._left[key] -= 1
        if not self._left[key]:
            at = f"{self._count.done}/{self._count.cells}"
            elapsed = time.monotonic() - self._started
            print(f"{at:>9} {elapsed:5.0f}s {key}: {', '.join(self._line.pop(key))}", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is left open."""


class TimedProgress:
    """One line a cell, with what its speed check found: a grid takes minutes a cell."""

    def __init__(self, plan: Plan, stream: TextIO) -> None:
        self._count = _Count(plan)
        self._stream = stream
        self._figures: dict[str, str] = {}
        self._started = time.monotonic()

    def result(self, cell: CellSpec, check: Check) -> None:
        """Keep what was timed, and show it when the cell is complete."""
        if check.name == "speed":
            self._figures[cell.id] = timed_figures(check)
        outcome = self._count.add(cell, check)
        if outcome is not None:
            at, elapsed = f"{self._count.done}/{self._count.cells}", time.monotonic() - self._started
            figures = self._figures.pop(cell.id, "")
            said = f"{cell.id}: {outcome}" + (f"; {figures}" if figures else "")
            print(f"{at:>9} {elapsed:5.0f}s {said}", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is left open."""


def timed_figures(check: Check) -> str:
    """The speedups of each phase from smallest to largest, or its rates where nothing was compared; "" for neither. A
    phase of which something speaks against a figure has a question mark."""
    said = []
    against = {d.phase for d in doubts(check)}
    for phase in ("prefill", "decode"):
        for name, shape in ((f"{phase}_speedup", "{:.2f}x"), (f"{phase}_rate", "{:,.0f}/s")):
            values = sorted(m.value for m in check.measured(name) if m.value is not None)
            if values:
                ends = dict.fromkeys(shape.format(v) for v in (values[0], values[-1]))
                points = f" at {len(values)} points" if len(values) > 1 else ""
                said.append(f"{phase} {' to '.join(ends)}{points}" + (" ?" if phase in against else ""))
                break
    return ", ".join(said)


class BarProgress:
    """A bar with cells done, outcomes so far and the time left."""

    def __init__(self, plan: Plan, stream: TextIO) -> None:
        self._count = _Count(plan)
        self._progress = _bar("cells", stream)
        self._task = self._progress.add_task("starting", total=self._count.cells)
        self._progress.start()

    def result(self, cell: CellSpec, check: Check) -> None:
        """Count, and show when a cell is complete."""
        if self._count.add(cell, check) is not None:
            self._progress.update(self._task, completed=self._count.done, description=self._count.so_far())

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()


def listener(plan: Plan, stream: TextIO, quiet: bool = False, timed: bool = False) -> Listener | None:
    """What fits the stream, and a run in which cells take minutes (`timed`); None for silence."""
    if quiet:
        return None
    if timed:
        return TimedProgress(plan, stream)
    return BarProgress(plan, stream) if stream.isatty() else PlainProgress(plan, stream)


class SelfTestListener(Protocol):
    """What a self-test tells."""

    def baseline(self, done: int, of: int) -> None:
        """A load group was measured without any fault."""
        ...

    def company(self, done: int, of: int) -> None:
        """A cell was asked with several of the faults that spare it."""
        ...

    def trial(self, trial: Any, done: int, of: int) -> None:
        """A fault was tried."""
        ...

    def close(self) -> None:
        """The self-test has ended."""
        ...


class SelfTestSilence:
    """No progress."""

    def baseline(self, done: int, of: int) -> None:
        """Nothing is said."""

    def company(self, done: int, of: int) -> None:
        """Nothing is said."""

    def trial(self, trial: Any, done: int, of: int) -> None:
        """Nothing is said."""

    def close(self) -> None:
        """Nothing is left open."""


class SelfTestPlain(SelfTestSilence):
    """One line a fault: for pipes and logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._started = time.monotonic()

    def baseline(self, done: int, of: int) -> None:
        """One line when the last group is done."""
        if done == of:
            self._say(f"{of} load groups measured without any fault")

    def company(self, done: int, of: int) -> None:
        """One line when the last one is done."""
        if done == of:
            self._say(f"spared cells asked {of} times with several faults at once")

    def trial(self, trial: Any, done: int, of: int) -> None:
        """One line."""
        by = f" by {', '.join(trial.seen_by)}" if trial.seen_by else ""
        self._say(f"{f'{done}/{of}':>9} {trial.status.value} {trial.fault}{by}")

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:5.0f}s {text}", file=self._stream, flush=True)


class SelfTestBar:
    """A bar with faults tried and killed so far."""

    def __init__(self, stream: TextIO, faults: int) -> None:
        self._seen: Counter[str] = Counter()
        self._progress = _bar("faults", stream)
        self._task = self._progress.add_task("starting", total=faults)
        self._progress.start()

    def baseline(self, done: int, of: int) -> None:
        """Show how far the cells without a fault are."""
        self._progress.update(self._task, description=f"without any fault: {done}/{of} load groups")

    def company(self, done: int, of: int) -> None:
        """Show how far the spared cells are."""
        self._progress.update(self._task, description=f"spared cells, several faults at once: {done}/{of}")

    def trial(self, trial: Any, done: int, of: int) -> None:
        """Move the bar."""
        self._seen[trial.status.value] += 1
        text = ", ".join(f"{n} {name}" for name, n in self._seen.most_common())
        self._progress.update(self._task, completed=done, description=text)

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()


def selftest_listener(stream: TextIO | None, faults: int) -> SelfTestListener:
    """What fits the stream; None for silence."""
    if stream is None:
        return SelfTestSilence()
    return SelfTestBar(stream, faults) if stream.isatty() else SelfTestPlain(stream)


def _bar(things: str, stream: TextIO) -> Any:
    """A bar of done and total `things`, the time taken and left, and a line of text."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn(f"{{task.completed}}/{{task.total}} {things}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(file=stream),
        transient=True,
    )
