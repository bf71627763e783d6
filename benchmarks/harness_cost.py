"""What the harness costs: its wall time over its model calls, and its checks against a plain loop that keeps nothing.

In: a selection of the default matrix. Out: a table, and JSON with --out. benchmarks/README.md says how to read it.

    python benchmarks/harness_cost.py                      # about 10 minutes on 2 cores
    python benchmarks/harness_cost.py --quick              # one model, one repeat
    python benchmarks/harness_cost.py --run=reports/cpu    # the overhead of a stored run; runs nothing

The plain loop asks exactly what the harness asked, with the same check functions, in one process; but each check loads
its model, makes its fp64 reference and its eager yardstick anew, as a script without a plan does. Both include the
start of their process. They alternate, so that a drift of the machine meets both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

from tabulate import tabulate

from compat.builtin import matrices_folder
from compat.execute.worker_process import WorkerProcess, environment_of
from compat.records import Run
from compat.session import Options, prepare
from compat.store import read_run

CELLS = ("llama/*/none", "llama/bf16/*", "falcon/bf16/*", "mixtral/bf16/*/none", "bert/fp32/*/none", "t5/fp16/*/none")
"""Causal, expert, encoder and encoder-decoder families, one that cannot switch attention, every quantization."""

QUICK_CELLS = ("llama/bf16/*/none",)
OVERHEAD_AIM, RATIO_AIM = 1.3, 5.0

Request = dict[str, Any]
Timings = list[tuple[str, str, float]]
"""(cell, check, seconds) of each check."""


# -- the two sides -----------------------------------------------------------------------------------------------


def harness(cells: Sequence[str], cache: Path, checks: tuple[str, ...] = ()) -> tuple[Run, float, list[Request]]:
    """One run with one worker: the run, its wall seconds, and what it asked of the worker."""
    with tempfile.TemporaryDirectory() as folder, _recorded() as requests:
        options = Options(
            matrix=matrices_folder() / "default.toml",
            patterns=tuple(cells),
            checks=checks,
            out=Path(folder) / "run",
            cache=cache,
            workers=1,
        )
        started = time.perf_counter()
        session = prepare(options)
        session.execute()
        run, _ = session.finish()
        seconds = time.perf_counter() - started
    if session.interrupted:
        raise KeyboardInterrupt
    return run, seconds, requests


@contextmanager
def _recorded() -> Iterator[list[Request]]:
    """Collect the requests that workers are asked, in order."""
    requests: list[Request] = []
    original = WorkerProcess.ask

    def ask(worker: WorkerProcess, request: Request, timeout_seconds: float) -> dict[str, Any]:
        requests.append(request)
        return original(worker, request, timeout_seconds)

    with mock.patch.object(WorkerProcess, "ask", ask):
        yield requests


def plain_loop(requests: Sequence[Request]) -> tuple[Timings, float]:
    """The same requests in a process that keeps nothing between them: (timings, wall seconds)."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered, log = (Path(folder) / name for name in ("requests.json", "timings.json", "stderr.log"))
        asked.write_text(json.dumps(requests), encoding="utf-8")
        started = time.perf_counter()
        with log.open("wb") as stderr:  # what a worker's libraries say goes to a file too
            command = [sys.executable, __file__, "--child", str(asked), str(answered)]
            child = subprocess.run(command, stderr=stderr, env=environment_of())
        seconds = time.perf_counter() - started
        if child.returncode:
            raise SystemExit(f"the plain loop ended with status {child.returncode}:\n{log.read_text()[-2000:]}")
        timings = json.loads(answered.read_text(encoding="utf-8"))
    return [(cell, check, s) for cell, check, s in timings], seconds


def _child(asked: Path, answered: Path) -> None:
    """Body of the plain loop's process: a new session, and so a new group, for every request."""
    from compat.worker.__main__ import _Session

    timings: Timings = []
    for request in json.loads(asked.read_text(encoding="utf-8")):
        started = time.perf_counter()
        session = _Session(request["threads"])
        session.check(request)
        session._drop()
        timings.append((_cell(request), request["check"], time.perf_counter() - started))
    answered.write_text(json.dumps(timings), encoding="utf-8")


def _cell(request: Request) -> str:
    group = request["group"]
    return "/".join((group["row"]["name"], group["dtype"], request["attention"]["name"], group["quantization"]["name"]))


def _tasks(requests: Sequence[Request]) -> list[tuple[str, str]]:
    return [(_cell(r), r["check"]) for r in requests]


# -- figures -----------------------------------------------------------------------------------------------------


def overhead(run: Run, wall_seconds: float) -> dict[str, float]:
    """Wall seconds of a run over the seconds that its workers spent in the stack under test."""
    model = float(run.run.settings["model_seconds"])
    return {"wall_seconds": wall_seconds, "model_seconds": model, "ratio": wall_seconds / model}


def measure(cells: Sequence[str], cache: Path, repeats: int) -> dict[str, Any]:
    """Run both sides `repeats` times in alternation, and state medians over the repeats."""
    harness(cells, cache, ("load",))  # writes the probes' checkpoints, so that neither side pays for that
    overheads: list[dict[str, float]] = []
    own: list[dict[tuple[str, str], float]] = []
    plain: list[dict[tuple[str, str], float]] = []
    walls: list[tuple[float, float]] = []
    requests: list[Request] = []
    for repeat in range(repeats):
        run, seconds, asked = harness(cells, cache)
        if requests and _tasks(asked) != _tasks(requests):
            raise SystemExit("the work changed between repeats: was compat edited meanwhile?")
        requests = asked
        _say(f"repeat {repeat + 1}/{repeats}: harness {seconds:.1f} s for {len(requests)} checks")
        timings, plain_seconds = plain_loop(requests)
        _say(f"repeat {repeat + 1}/{repeats}: plain loop {plain_seconds:.1f} s")
        overheads.append(overhead(run, seconds))
        walls.append((seconds, plain_seconds))
        own.append({(cell.id, check.name): check.seconds for cell in run.cells for check in cell.checks})
        plain.append({(cell, check): s for cell, check, s in timings})
    return {
        "started": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "machine": {"cpu": run.environment.cpu, "packages": run.environment.packages, "device": run.run.device,
                    "gpus": [gpu.name for gpu in run.environment.gpus]},
        "work": {"patterns": list(cells), "cells": len({_cell(r) for r in requests}), "checks": len(requests),
                 "repeats": repeats},
        "overhead": min(overheads, key=lambda o: abs(o["ratio"] - statistics.median(x["ratio"] for x in overheads))),
        "overhead_ratios": [o["ratio"] for o in overheads],
        "per_check": _per_check(own, plain, walls),
    }  # fmt: skip


def _per_check(
    own: Sequence[dict[tuple[str, str], float]],
    plain: Sequence[dict[tuple[str, str], float]],
    walls: Sequence[tuple[float, float]],
) -> dict[str, dict[str, float]]:
    """Mean seconds a check on both sides, the ratio of these, and the median over cells of each cell's own ratio.

    `all` is the wall time with the start of the process, over the number of checks.
    """
    table: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(check for _, check in plain[0]):
        keys = [key for key in plain[0] if key[1] == name]
        table[name] = _row(
            len(keys),
            statistics.median(statistics.fmean(seconds[k] for k in keys) for seconds in own),
            statistics.median(statistics.fmean(seconds[k] for k in keys) for seconds in plain),
            _pairs(own, plain, keys),
        )
    count = len(plain[0])
    table["all"] = _row(
        count,
        statistics.median(seconds / count for seconds, _ in walls),
        statistics.median(seconds / count for _, seconds in walls),
        _pairs(own, plain, list(plain[0])),
    )
    return table


def _pairs(
    own: Sequence[dict[tuple[str, str], float]],
    plain: Sequence[dict[tuple[str, str], float]],
    keys: Sequence[tuple[str, str]],
) -> float:
    return statistics.median(theirs[k] / ours[k] for ours, theirs in zip(own, plain, strict=True) for k in keys)


def _row(checks: int, harness_seconds: float, plain_seconds: float, median_ratio: float) -> dict[str, float]:
    return {
        "checks": checks,
        "harness_seconds": harness_seconds,
        "plain_seconds": plain_seconds,
        "ratio": plain_seconds / harness_seconds,
        "median_ratio": median_ratio,
    }


# -- front -------------------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(data: dict[str, Any]) -> None:
    cost = data["overhead"]
    print(
        f"wall / model calls: {cost['ratio']:.2f} (aim <= {OVERHEAD_AIM}): {cost['wall_seconds']:.1f} s over "
        f"{cost['model_seconds']:.1f} s"
    )
    if "per_check" in data:
        rows = [
            [
                name,
                int(r["checks"]),
                1e3 * r["harness_seconds"],
                1e3 * r["plain_seconds"],
                r["ratio"],
                r["median_ratio"],
            ]
            for name, r in data["per_check"].items()
        ]
        head = ["check", "asked", "harness ms", "plain loop ms", f"ratio (aim >= {RATIO_AIM:g})", "median of cells"]
        print(tabulate(rows, headers=head, floatfmt=(".0f", ".0f", ".1f", ".1f", ".2f", ".2f")))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cells", nargs="+", metavar="PATTERN", help="ids of the default matrix, with wildcards")
    parser.add_argument("--quick", action="store_true", help="few cells, one repeat")
    parser.add_argument("--repeats", type=int, metavar="N", help="default: 3, or 1 with --quick")
    parser.add_argument("--cache", type=Path, help="folder for probe checkpoints (default: a temporary one)")
    parser.add_argument("--run", type=Path, metavar="RUN", help="state the overhead of a stored run instead")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        _child(*arguments.child)
        return 0
    if arguments.run:
        run = read_run(arguments.run)
        data: dict[str, Any] = {"run": run.run.id, "overhead": overhead(run, run.summary.seconds)}
    else:
        cells = arguments.cells or (QUICK_CELLS if arguments.quick else CELLS)
        repeats = arguments.repeats or (1 if arguments.quick else 3)
        with tempfile.TemporaryDirectory() as folder:
            data = measure(cells, arguments.cache or Path(folder), repeats)
    _show(data)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
