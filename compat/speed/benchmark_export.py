"""The raw samples of the speed check as results of pytest-benchmark: `pytest --compat-benchmark`.

In: the cells of a run whose speed test pytest went through. Out: one benchmark a cell, phase and point in the session
of pytest-benchmark, which then stores, compares and plots them as it does its own. What is stored are the seconds that
a worker measured; nothing is timed again. What cannot be believed is not stored, and the terminal says why.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from compat.judge import doubts
from compat.records import BAD, Cell, Check, Outcome, Run

CHECK = "speed"
BELIEVED = (Outcome.PASS, Outcome.DEGRADED)
"""Outcomes of the speed check whose figures may all be compared: a cell may be slow, it may not be uncertain.
Points that something speaks against are left out."""

SESSION = "pytest-benchmark"
"""The name under which pytest-benchmark registers its session, once it is configured."""

NEEDS = "--compat-benchmark needs the plugin pytest-benchmark, version 5: pip install 'pytest-benchmark>=5'"


@dataclass
class Sampled:
    """A phase of a cell at one point. The fields are those that pytest-benchmark reads off its fixture."""

    name: str
    """E.g. `speed[llama/bf16/sdpa/none] prefill 4x2048@0.3`."""
    group: str
    """What is compared within one table: the backends and quantizations of one model, dtype, phase and point."""
    param: str
    params: dict[str, Any]
    extra_info: dict[str, Any]
    seconds: tuple[float, ...]
    """Of one call each."""
    calls: int
    """Calls that one sample is the mean of."""
    options: dict[str, Any]
    cprofile_stats: None = None
    has_error: bool = False

    @property
    def fullname(self) -> str:
        """By this pytest-benchmark finds the same benchmark in another run; the same in every folder."""
        return f"compat::{self.name}"


def sampled(run: Run, cell: Cell) -> tuple[list[Sampled], list[str]]:
    """What of a cell is stored, one entry a phase and point, and why the rest is not."""
    check = cell.check(CHECK)
    if check is None:
        return [], ["no speed check ran"]
    points = [p for p in check.evidence.facts.get("points", ()) if p.get("seconds")]
    against = [_doubt(check, p) for p in points]
    uncertain = check.outcome == Outcome.INCONCLUSIVE and any(against)
    if check.outcome not in BELIEVED and not uncertain:
        return [], [f"speed is {check.outcome.value}" + (f": {check.reason}" if check.reason else "")]
    wrong = next((c for c in cell.checks if c.name != CHECK and c.outcome in BAD), None)
    if wrong is not None:
        return [], [f"{wrong.name} is {wrong.outcome.value}, so its speed is not compared"]
    if not points:
        return [], ["nothing was timed"]
    device = run.environment.gpus[0].name if run.run.device == "cuda" else run.environment.cpu
    believed = [_sampled(cell, check, p, device) for p, doubt in zip(points, against, strict=True) if not doubt]
    return believed, [doubt for doubt in against if doubt]


def _at(point: Mapping[str, Any]) -> dict[str, Any]:
    return {name: point[name] for name in ("length", "batch", "padding")}


def _shown(point: Mapping[str, Any]) -> str:
    return f"{point['phase']} {point['batch']}x{point['length']}@{point['padding']:g}"


def _doubt(check: Check, point: Mapping[str, Any]) -> str:
    """What speaks against the figures of a point, or ""."""
    own = (d.reason for d in doubts(check) if d.phase == point["phase"] and d.at == _at(point))
    return next(own, "")


def _sampled(cell: Cell, check: Check, point: Mapping[str, Any], device: str) -> Sampled:
    phase, seconds = point["phase"], tuple(float(s) for s in point["seconds"])
    at, shown, axes = _at(point), _shown(point), cell.axes
    return Sampled(
        name=f"{CHECK}[{cell.id}] {shown}",
        group=f"{axes['model']}/{axes['dtype']} {shown}",
        param=f"{cell.id} {shown}",
        params={**axes, "phase": phase, **at},
        extra_info=_extra(cell, check, phase, point, at, device),
        seconds=seconds,
        calls=int(point.get("calls", 1)),
        options={name: point[name] for name in ("stopped", "warm_calls", "overhead") if name in point},
    )


def _extra(
    cell: Cell, check: Check, phase: str, point: Mapping[str, Any], at: dict[str, Any], device: str
) -> dict[str, Any]:
    """What pytest-benchmark keeps beside the statistics."""
    extra: dict[str, Any] = {"cell": cell.id, "outcome": cell.outcome.value, "device": device}
    if "tokens" in point:
        extra[point.get("unit", "tokens")] = point["tokens"]
    load = cell.check("load")
    if kernels := sorted({**check.evidence.kernels, **(load.evidence.kernels if load is not None else {})}):
        extra["kernels"] = kernels
    speedup = next((m for m in check.measured(f"{phase}_speedup") if m.at == at), None)
    if speedup is not None and speedup.value is not None:
        extra["baseline"] = check.evidence.facts.get("baseline", "eager")
        extra["speedup"] = speedup.value
        extra["speedup_ci95"] = list(speedup.ci95) if speedup.ci95 is not None else None
    return extra


@dataclass
class Benchmarks:
    """The pytest plugin behind `--compat-benchmark`."""

    config: pytest.Config
    stored: int = 0
    left_out: list[str] = field(default_factory=list)
    run: Run | None = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: Sequence[pytest.Item]) -> Generator[None, None, None]:
        """Let pytest-benchmark take speed tests for what they are, so that --benchmark-only and -skip choose them."""
        own = [i for i in items if isinstance(i, pytest.Function) and _is_speed_test(i)]
        before = [i.fixturenames for i in own]
        for item in own:
            item.fixturenames = [*item.fixturenames, "benchmark"]
        try:
            return (yield)
        finally:
            for item, names in zip(own, before, strict=True):
                item.fixturenames = names

    def hand_over(self, run: Run, tested: Iterable[str]) -> None:
        """Give pytest-benchmark what the cells in `tested` (ids) measured. Raises UsageError without the plugin."""
        session = self.config.pluginmanager.get_plugin(SESSION)
        if session is None:
            raise pytest.UsageError(NEEDS)
        self.run = run
        if session.disabled:
            return
        import pytest_benchmark.stats

        made: Any = pytest_benchmark.stats.Metadata
        wanted = set(tested)
        for cell in (c for c in run.cells if c.id in wanted):
            believed, why_not = sampled(run, cell)
            self.left_out += [f"{cell.id}: {why}" for why in why_not]
            for one in believed:
                metadata = made(one, iterations=one.calls, options=one.options)
                for seconds in one.seconds:
                    metadata.stats.update(seconds)
                session.benchmarks.append(metadata)
                self.stored += 1

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        """Add the device, so that a comparison of two devices warns."""
        from compat import device

        found = device.detect()
        machine_info["device"] = {"type": found.type, "count": found.count, "found": found.because}

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """Add which run the figures are from, and on which packages."""
        if self.run is not None:
            environment = self.run.environment
            output_json["compat"] = {
                "run": self.run.run.id,
                "started": self.run.run.started,
                "matrix": {"path": self.run.run.matrix.path, "sha256": self.run.run.matrix.sha256},
                "settings": {
                    k: v for k, v in self.run.run.settings.items() if k in ("seed", "depth", "speed", "compat")
                },
                "gpus": [g.name for g in environment.gpus],
                "driver": environment.driver,
                "packages": environment.packages,
            }

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """How much was handed over, and what was not and why."""
        session = self.config.pluginmanager.get_plugin(SESSION)
        if session is None or self.config.option.collectonly:
            return
        terminalreporter.section("compat: benchmarks", sep="-")
        if session.disabled:
            terminalreporter.write_line("none handed to pytest-benchmark: it is disabled (--benchmark-disable)")
            return
        none = "" if self.stored or self.left_out else ": no speed test ran"
        terminalreporter.write_line(f"{self.stored} handed to pytest-benchmark{none}")
        for why in self.left_out:
            terminalreporter.write_line(f"not stored: {why}")


def _is_speed_test(item: pytest.Function) -> bool:
    return "compat_task" in item.fixturenames and item.originalname == f"test_{CHECK}"
