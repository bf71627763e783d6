"""speed: prefill and decode against eager attention, interleaved in one process.

Candidate and eager alternate in ABBA order, so that drift cancels; a sample pairs neighbours. What is sent home are the
raw paired seconds and token counts; compat.stats turns them into a median ratio with an interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from compat.worker.calls import under_test
from compat.worker.group import Group, Loaded
from compat.worker.inputs import unpadded
from compat.worker.report import Report

ROUNDS = 5
"""ABBA rounds, two pairs each; fewer (at least LEAST_ROUNDS) where they would take longer than BUDGET_SECONDS."""

LEAST_ROUNDS = 2
BUDGET_SECONDS = 0.25

PREFILL_LENGTH = 128
PREFILL_BATCH = 2
DECODE_STEPS = 4
WARMUP = 2
"""Calls before timing; one where a call alone takes the whole budget."""


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    candidate = group.loaded(attention)
    baseline = candidate if attention["name"] == "eager" else group.eager
    vision = group.task == "image-classification"
    rows = group.source.rows(900, [PREFILL_LENGTH] * PREFILL_BATCH)
    inputs = unpadded(rows, group.device, group.dtype)
    tokens = PREFILL_BATCH if vision else PREFILL_BATCH * PREFILL_LENGTH
    extra = {"use_cache": False} if group.task == "causal-lm" else {}
    prefill = [_Prefill(x, inputs, extra) for x in (candidate, baseline)]
    _measure(report, group, "prefill", tokens, "images/s" if vision else "tokens/s", prefill)
    if group.task == "causal-lm":
        decode = [_Decode(x, inputs) for x in (candidate, baseline)]
        _measure(report, group, "decode", PREFILL_BATCH * DECODE_STEPS, "tokens/s", decode)
    return report


class _Prefill:
    def __init__(self, loaded: Loaded, inputs: dict[str, torch.Tensor], extra: dict[str, Any]) -> None:
        self.loaded, self.inputs, self.extra = loaded, inputs, extra

    def __call__(self) -> None:
        self.loaded.forward(**self.inputs, **self.extra)


class _Decode:
    """Single-token steps on a growing cache; the prefill that fills it is not timed."""

    def __init__(self, loaded: Loaded, inputs: dict[str, torch.Tensor]) -> None:
        self.loaded = loaded
        self.token = inputs["input_ids"][:, -1:]
        self.cache = loaded.forward(input_ids=inputs["input_ids"], use_cache=True).past_key_values

    def __call__(self) -> None:
        for _ in range(DECODE_STEPS):
            output = self.loaded.forward(input_ids=self.token, past_key_values=self.cache, use_cache=True)
            self.cache = output.past_key_values


def _measure(report: Report, group: Group, phase: str, tokens: int, unit: str, pair: list[Any]) -> None:
    candidate, baseline = pair
    seconds: tuple[list[float], list[float]] = ([], [])
    with under_test("speed"):
        alone = candidate.loaded is baseline.loaded
        for work in pair[:1] if alone else pair:
            for _ in range(WARMUP):
                warm = timed(work, group.device, work.loaded)
                if warm > BUDGET_SECONDS:
                    break
        rounds = max(LEAST_ROUNDS, min(ROUNDS, int(BUDGET_SECONDS / (4 * max(warm, 1e-9)))))
        for _ in range(rounds):
            for side in (0, 0) if alone else (0, 1, 1, 0):
                seconds[side].append(timed(pair[side], group.device, pair[side].loaded))
    report.measure(f"{phase}_rate", [tokens / s for s in seconds[0]], unit=unit, better="higher", method="median")
    if candidate.loaded is not baseline.loaded:
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
