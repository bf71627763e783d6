"""speed: prefill and decode against eager attention, interleaved in one process.

Candidate and eager alternate in ABBA order, so that drift cancels; a sample pairs neighbours. What is sent home are the
raw paired seconds and token counts; compat.stats turns them into a median ratio with an interval. Decode is timed over
cache lengths that both sides have walked before; what a length never seen costs (a kernel that plans or compiles for
each one) is measured apart.
"""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Callable
from typing import Any

import torch

from compat.worker.calls import under_test
from compat.worker.group import Group, Loaded
from compat.worker.inputs import unpadded
from compat.worker.report import Report

ROUNDS = 3
"""ABBA rounds, two pairs each; fewer (at least LEAST_ROUNDS) where they would take longer than BUDGET_SECONDS."""

LEAST_ROUNDS = 2
BUDGET_SECONDS = 0.15

PREFILL_LENGTH = 128
PREFILL_BATCH = 2
DECODE_STEPS = 2
"""Single-token steps in one sample."""

WARMUP = 2
"""Prefill calls before timing; one where a call alone takes the whole budget."""


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    candidate = group.loaded(attention)
    sides = [candidate] if attention["name"] == "eager" else [candidate, group.eager]
    vision = group.task == "image-classification"
    inputs = unpadded(group.source.rows(900, [PREFILL_LENGTH] * PREFILL_BATCH), group.device, group.dtype)
    tokens = PREFILL_BATCH if vision else PREFILL_BATCH * PREFILL_LENGTH
    with under_test("speed"):
        _prefill(report, group, sides, inputs, tokens, "images/s" if vision else "tokens/s")
        if group.task == "causal-lm":
            _decode(report, group, sides, inputs["input_ids"])
            _new_lengths(report, group, candidate)
    return report


def _prefill(
    report: Report, group: Group, sides: list[Loaded], inputs: dict[str, torch.Tensor], tokens: int, unit: str
) -> None:
    extra = {"use_cache": False} if group.task == "causal-lm" else {}

    def forward(side: Loaded) -> Callable[[], None]:
        return lambda: side.forward(**inputs, **extra) and None

    work = [forward(side) for side in sides]
    warm = 0.0
    for side, call in zip(sides, work, strict=True):
        for _ in range(WARMUP):
            warm = timed(call, group.device, side)
            if warm > BUDGET_SECONDS:
                break
    _record(report, "prefill", tokens, unit, _interleaved(group, sides, work, _rounds(warm)))


def _rounds(sample_seconds: float) -> int:
    return max(LEAST_ROUNDS, min(ROUNDS, int(BUDGET_SECONDS / (4 * max(sample_seconds, 1e-9)))))


class _Steps:
    """Single-token steps on a growing cache; the prefill that fills it is not timed."""

    def __init__(self, loaded: Loaded, ids: torch.Tensor) -> None:
        self.loaded, self.token = loaded, ids[:, -1:]
        self.cache = loaded.forward(input_ids=ids, use_cache=True).past_key_values

    def __call__(self, steps: int = DECODE_STEPS) -> None:
        for _ in range(steps):
            output = self.loaded.forward(input_ids=self.token, past_key_values=self.cache, use_cache=True)
            self.cache = output.past_key_values


def _decode(report: Report, group: Group, sides: list[Loaded], ids: torch.Tensor) -> None:
    """Walk every cache length once untimed on each side, then time the same lengths."""
    first = [timed(_Steps(side, ids), group.device, side) for side in sides]
    rounds = _rounds(max(first))
    for side in sides:
        _Steps(side, ids)(steps=2 * rounds * DECODE_STEPS)
    work = [_Steps(side, ids) for side in sides]
    seconds = _interleaved(group, sides, list(work), rounds)
    _record(report, "decode", PREFILL_BATCH * DECODE_STEPS, "tokens/s", seconds)
    report.facts["step_seconds"] = round(statistics.median(seconds[0]) / DECODE_STEPS, 7)


def _new_lengths(report: Report, group: Group, candidate: Loaded) -> None:
    """The cost of a decode step at a cache length that this process has hardly seen, over that of a warm step.

    The start is drawn from the cell's name: cells with the same shapes do not pay for each other.
    """
    drawn = zlib.crc32(f"{group.spec.key}/{candidate.attention['name']}".encode())
    rows = group.source.rows(901, [40 + 4 * (drawn % 100)] * PREFILL_BATCH)
    steps = _Steps(candidate, unpadded(rows, group.device, group.dtype)["input_ids"])
    fresh = [timed(lambda: steps(steps=1), group.device, candidate) for _ in range(4)]
    warm = report.facts.pop("step_seconds")
    report.measure("decode_new_length_cost", [x / warm for x in fresh], unit="of a warm step", method="median")


def _interleaved(
    group: Group, sides: list[Loaded], work: list[Callable[[], None]], rounds: int
) -> tuple[list[float], ...]:
    """Seconds of each side's samples, in ABBA order; of one side alone when there is one."""
    seconds: tuple[list[float], ...] = tuple([] for _ in sides)
    for _ in range(rounds):
        for side in (0, 1, 1, 0) if len(sides) == 2 else (0, 0):
            seconds[side].append(timed(work[side], group.device, sides[side]))
    return seconds


def _record(report: Report, phase: str, tokens: int, unit: str, seconds: tuple[list[float], ...]) -> None:
    report.measure(f"{phase}_rate", [tokens / s for s in seconds[0]], unit=unit, better="higher", method="median")
    if len(seconds) == 2:
        report.facts[f"{phase}_seconds"] = [round(s, 7) for s in seconds[0]]
        report.facts[f"{phase}_baseline_seconds"] = [round(s, 7) for s in seconds[1]]


def timed(work: Callable[[], None], device: torch.device, loaded: Loaded) -> float:
    """Seconds of one call: device events on a GPU, a monotonic clock on a CPU."""
    loaded.activate()
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
