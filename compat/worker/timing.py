"""The timing engine: one comparison of two sides, interleaved in one process.

In: sides (what to call, and what to do before a call that is not timed) and a budget. Out: a `Timing`: raw seconds of
each side, paired by index, and what a reader needs in order to doubt them. A comparison warms both sides up until their
rate settles, then alternates them in rounds A B B A, so that drift cancels, and stops when the interval of the median
ratio is tight enough or the budget is spent. Nothing is judged here.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from compat.speed.rounds import ORDER, alternate
from compat.worker.ceilings import Canary

MOST_ROUNDS = 400
LEAST_SAMPLE_SECONDS = 5e-4
"""A sample is as many calls as take this long: the clock and the engine's own steps cost microseconds."""

SETTLED = 0.05
"""Warm-up ends when the medians of the last three calls and of the three before differ by less."""

WARM_SHARE = 0.5
"""Most of the budget that one side's warm-up may take."""


@dataclass
class Side:
    """One of the things compared: `call` is timed; `before` and `refill` run before it and are not. `around` holds
    while all of them run."""

    call: Callable[[], Any]
    before: Callable[[], None] = lambda: None
    refill: Callable[[], None] = lambda: None
    """Calls into the model that `call` needs, such as the prompt of a decode step: no cost of the engine."""
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass
class Timing:
    """What a comparison measured. Seconds are of one call of each side; the first side is the candidate."""

    seconds: tuple[list[float], ...]
    first_seconds: tuple[float, ...]
    """Of the very first call: it compiles, plans and allocates."""
    calls: int
    """Calls in one sample; a sample's seconds are divided by them."""
    stopped: str
    """`tight`, `budget`, `rounds`."""
    warm_calls: int = 0
    warm_seconds: float = 0.0
    timed_seconds: float = 0.0
    refill_seconds: float = 0.0
    wall_seconds: float = 0.0
    host_share: float | None = None
    """On a GPU: the candidate's median share of a sample in which the host was still launching. Near 1 the host, and
    not the device, sets the pace."""
    contention: float | None = None
    """On a CPU, with one thread: the share of the timed seconds in which it did not run although it had work. (Among
    several threads some wait for others.)"""
    rates: tuple[float, ...] = ()
    """Of a fixed piece of work before and after, against the best that this process has seen."""

    @property
    def overhead(self) -> float:
        """Share of the wall time that was spent in no call into the model: neither timed, nor warm-up, nor refill."""
        return 1 - (self.timed_seconds + self.warm_seconds + self.refill_seconds) / self.wall_seconds


class Clock:
    """Times calls on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.timed = self.ran = self.refilled = 0.0
        self.host: list[float] = []
        if device.type == "cuda":
            self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample(self, side: Side, calls: int = 1) -> float:
        """Seconds of one of `calls` calls: device events on a GPU, a monotonic clock on a CPU."""
        with side.around():
            side.before()
            started = time.perf_counter()
            side.refill()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.refilled += time.perf_counter() - started
            if self.device.type == "cuda":
                seconds = self._on_device(side, calls)
            else:
                started, ran = time.perf_counter(), time.thread_time()
                for _ in range(calls):
                    side.call()
                seconds = time.perf_counter() - started
                self.ran += time.thread_time() - ran
        self.timed += seconds
        return seconds / calls

    @property
    def contention(self) -> float | None:
        """The share of the timed seconds in which this thread did not run: on a CPU, with one thread."""
        if self.device.type != "cpu" or torch.get_num_threads() != 1 or not self.timed:
            return None
        return round(max(0.0, 1 - self.ran / self.timed), 4)

    def _on_device(self, side: Side, calls: int) -> float:
        torch.cuda.synchronize(self.device)
        started = time.perf_counter()
        self._start.record()
        for _ in range(calls):
            side.call()
        self._end.record()
        launched = time.perf_counter() - started
        self._end.synchronize()
        seconds = float(self._start.elapsed_time(self._end)) / 1e3
        self.host.append(min(1.0, launched / seconds) if seconds > 0 else 1.0)
        return seconds


def compare(
    sides: Sequence[Side],
    device: torch.device,
    budget_seconds: float,
    canary: Canary | None = None,
    least_warm: int = 1,
) -> Timing:
    """Time one side alone, or candidate and baseline against each other, after at least `least_warm` calls of each.
    Raises what a call raises."""
    began = time.perf_counter()
    rates = [canary.last] if canary else []
    clocks = [Clock(device) for _ in sides]
    warm = [warm_up(s, c, WARM_SHARE * budget_seconds, least_warm) for s, c in zip(sides, clocks, strict=True)]
    settled = min(statistics.median(w[-3:]) for w in warm)
    calls = max(1, int(LEAST_SAMPLE_SECONDS / max(settled, 1e-9)))
    clock = Clock(device)
    with steady():
        seconds, stopped = alternate(lambda i: clock.sample(sides[i], calls), len(sides), budget_seconds, MOST_ROUNDS)
    if canary:
        rates.append(canary())
    own_host = [h for h, i in zip(clock.host, ORDER[len(sides)] * MOST_ROUNDS, strict=False) if i == 0]
    return Timing(
        seconds=seconds,
        first_seconds=tuple(w[0] for w in warm),
        calls=calls,
        stopped=stopped,
        warm_calls=sum(len(w) for w in warm),
        warm_seconds=sum(sum(w) for w in warm),
        timed_seconds=clock.timed,
        refill_seconds=clock.refilled + sum(c.refilled for c in clocks),
        wall_seconds=time.perf_counter() - began,
        host_share=round(statistics.median(own_host), 3) if own_host else None,
        contention=clock.contention,
        rates=tuple(round(r, 4) for r in rates),
    )


def warm_up(side: Side, clock: Clock, budget_seconds: float, least: int = 1) -> list[float]:
    """Call `side` until its rate settles; seconds of each call. At least `least` times, and twice unless the first call
    alone spends the budget; then the budget ends it too."""
    seconds: list[float] = []
    while True:
        seconds.append(clock.sample(side))
        if len(seconds) < least:
            continue
        if len(seconds) >= 6:
            last, before = statistics.median(seconds[-3:]), statistics.median(seconds[-6:-3])
            if abs(last - before) <= SETTLED * before:
                return seconds
        if sum(seconds) >= budget_seconds and (len(seconds) > 1 or seconds[0] > 2 * budget_seconds):
            return seconds


@contextmanager
def steady() -> Iterator[None]:
    """Keep Python's cyclic collector out of the samples."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
