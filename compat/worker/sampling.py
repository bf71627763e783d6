"""One side of a comparison whose other side runs in another process: open it, take samples, close it.

In: requests of the parent (compat.execute.paired), which alternates two workers. Out: seconds.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from compat.worker.calls import under_test
from compat.worker.ceilings import canary
from compat.worker.checks import speed
from compat.worker.group import Group
from compat.worker.stepping import Point, batch
from compat.worker.timing import WARM_SHARE, Clock, Side, steady, warm_up

SAMPLE_SECONDS = 5e-3
"""A sample is as many calls as take this long: asking another process for one takes half a millisecond."""


class Sampler:
    """What is open in this process."""

    def __init__(self) -> None:
        self._side: Side | None = None
        self._clock = Clock(torch.device("cpu"))
        self._cores: set[int] = set()

    def open(self, group: Group, attention: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
        """Load, prepare and warm up one phase of one point. Raises StackError, Unavailable.

        A point that the model cannot be asked for is answered with why, as `left_out`.

        `request`: `phase`, `point` [batch, length, padding], `budget_seconds`, `window` (0: choose one),
        `core` (on which to compute until `close`, where one thread does on a CPU; null: on any).
        """
        loaded = group.loaded(attention)
        size, length, padding = request["point"]
        point = Point(int(size), int(length), float(padding))
        why = speed.does_not_apply(loaded.model, point)
        if why:
            return {"left_out": why}
        self._stay_on(request["core"], group.device)
        window, least = int(request["window"]), 1
        with under_test("forward"):
            if request["phase"] == "decode":
                window = window or speed.decode_window(group, loaded, point)
                least = window // speed.DECODE_STEPS
                side = speed.decode_side(group, loaded, point, window)
                tokens, unit, steps = point.batch * speed.DECODE_STEPS, "tokens", speed.DECODE_STEPS
            else:
                side = speed.prefill_side(group, loaded, point)
                tokens, unit, steps = batch(group, loaded.model, point, speed.SEED).tokens, speed.unit(group), 0
            warm = warm_up(side, Clock(group.device), WARM_SHARE * float(request["budget_seconds"]), least)
        self._side, self._clock = side, Clock(group.device)
        calls = max(1, round(SAMPLE_SECONDS / max(min(warm[-3:]), 1e-9)))
        return {"warm": warm, "window": window, "calls": calls, "tokens": tokens, "unit": unit, "steps": steps}

    def sample(self, calls: int) -> dict[str, Any]:
        """Seconds of one of `calls` calls of what is open, after one that is not counted: while the other process had
        its turn, this one's part of the caches went. Raises StackError."""
        assert self._side is not None
        with steady():
            Clock(self._clock.device).sample(self._side)
            return {"seconds": self._clock.sample(self._side, calls)}

    def close(self) -> dict[str, Any]:
        """Let go of it; what the samples met."""
        clock, self._side = self._clock, None
        rate = round(canary(clock.device, torch.get_num_threads())(), 4)
        if self._cores:
            os.sched_setaffinity(0, self._cores)
            self._cores = set()
        return {"contention": clock.contention, "rate": rate}

    def _stay_on(self, core: int | None, device: torch.device) -> None:
        alone = device.type == "cpu" and torch.get_num_threads() == 1
        if core is None or not alone or self._cores or not hasattr(os, "sched_setaffinity"):
            return
        cores = os.sched_getaffinity(0)
        if core in cores:
            os.sched_setaffinity(0, {core})
            self._cores = cores
