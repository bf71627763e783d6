"""A speed check whose baseline is the same cell in another environment: two workers take turns on one device.

In: two workers, and the request of a speed check for each. Out: an answer as a worker gives it, its points compared
by the rule of compat.speed.rounds: rounds A B B A until the interval is tight or the budget is spent. So "the new
stack is 4% slower" is a paired measurement, not two runs an hour apart.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from compat.execute.worker_process import WorkerProcess
from compat.speed.rounds import alternate, short

MOST_ROUNDS = 200
BUDGET_SECONDS = 1.0
POINTS: tuple[tuple[int, int, float], ...] = ((2, 128, 0.0),)
"""Where the matrix asks for nothing else."""

Answer = dict[str, Any]


class _Ended(Exception):
    """A worker gave something other than `ok`; the check ends with `answer`."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.get("reason", ""))
        self.answer = answer


def paired_answer(
    candidate: WorkerProcess, baseline: WorkerProcess, requests: Sequence[Answer], timeout_seconds: float
) -> Answer:
    """Ask both workers for samples in turn; `requests` are the check requests of candidate and baseline."""
    started = time.monotonic()
    asked = requests[0]["group"].get("speed", {})
    budget = float(asked.get("budget_seconds") or BUDGET_SECONDS)
    points = [tuple(p) for p in asked.get("points") or POINTS]
    phases = ("prefill", "decode") if requests[0]["group"]["row"]["task"] == "causal-lm" else ("prefill",)
    both = _Both((candidate, baseline), requests, timeout_seconds)
    found: list[Answer] = []
    left_out: dict[str, str] = {}
    try:
        for size, length, padding in points:
            for phase in phases:
                try:
                    found.append(_compared(both, phase, (size, length, padding), budget))
                except _LeftOut as reason:
                    left_out[f"{size}x{length}@{padding:g} {phase}"] = str(reason)
    except _Ended as ended:
        return {**ended.answer, "seconds": round(time.monotonic() - started, 3)}
    facts = {"points": found, "left_out": left_out, "baseline": stack_name(baseline.environment or {})}
    return {
        "status": "ok",
        "measurements": [],
        "facts": facts,
        "kernels": {},
        "seed": requests[0]["group"]["seed"],
        "seconds": round(time.monotonic() - started, 3),
        "model_seconds": 0.0,
    }


def stack_name(environment: Mapping[str, Any]) -> str:
    """A stack in a few words: what most often differs."""
    packages = environment.get("packages", {})
    named = [f"{n} {packages[n]}" for n in ("torch", "transformers", "bitsandbytes", "flash-attn") if n in packages]
    return ", ".join([f"Python {environment.get('python', '?')}", *named])


class _LeftOut(Exception):
    """A point that one of the sides cannot be asked for; the others can."""


class _Both:
    """The two workers, asked one after the other."""

    def __init__(self, workers: Sequence[WorkerProcess], requests: Sequence[Answer], timeout_seconds: float) -> None:
        self.workers, self.requests, self.timeout = workers, requests, timeout_seconds

    def ask(self, side: int, do: str, **more: Any) -> Answer:
        """The answer of one side. Raises _Ended: a baseline that does not answer leaves nothing to compare with."""
        answer = self.workers[side].ask({**self.requests[side], "op": "timing", "do": do, **more}, self.timeout)
        if "left_out" in answer:
            raise _LeftOut(answer["left_out"])
        if answer["status"] == "ok":
            return answer
        said = answer.get("exception", {}).get("message") or answer.get("reason", "")
        if answer["status"] == "raised" and "out of memory" in said.lower():
            raise _LeftOut(f"the {('candidate', 'baseline')[side]} does not fit: {said}"[:200])
        if side == 0:
            raise _Ended(answer)
        raise _Ended({"status": "no_yardstick", "reason": f"the other stack: {answer['status']}: {said}"[:300]})


def _core() -> int | None:
    """The core on which both sides are timed where one thread computes: two cores of one machine are not equally fast,
    nor equally busy. (32 comparisons of a stack with itself on two cores: 5 stated a difference, 0 on one core.)"""
    return max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _compared(both: _Both, phase: str, point: Sequence[float], budget: float) -> Answer:
    """One phase of one point, as the speed check reports it."""
    began = time.perf_counter()
    window, opened = 0, []
    for side in (0, 1):
        asked = {"phase": phase, "point": list(point), "budget_seconds": budget, "window": window, "core": _core()}
        opened.append(both.ask(side, "open", **asked))
        window = opened[0]["window"]
    calls = max(o["calls"] for o in opened)

    def sample(side: int) -> float:
        return float(both.ask(side, "sample", calls=calls)["seconds"])

    seconds, stopped = alternate(sample, 2, budget, MOST_ROUNDS)
    closed = [both.ask(side, "close") for side in (0, 1)]
    timed = sum(map(sum, seconds)) * calls + sum(sum(o["warm"]) for o in opened)
    lost = [c["contention"] for c in closed if c["contention"] is not None]
    entry = {
        "phase": phase,
        "batch": int(point[0]),
        "length": int(point[1]),
        "padding": float(point[2]),
        "seconds": [short(s) for s in seconds[0]],
        "baseline_seconds": [short(s) for s in seconds[1]],
        "tokens": opened[0]["tokens"],
        "unit": opened[0]["unit"],
        "first_seconds": short(opened[0]["warm"][0]),
        "calls": calls,
        "stopped": stopped,
        "warm_calls": sum(len(o["warm"]) for o in opened),
        "overhead": round(1 - timed / (time.perf_counter() - began), 4),
        "contention": max(lost) if lost else None,
        "rates": [c["rate"] for c in closed],
    }
    return entry | ({"steps": opened[0]["steps"]} if opened[0]["steps"] else {})
