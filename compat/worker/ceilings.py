"""What the device can do at most, measured beside the model: a large copy and a large matrix product.

In: a device and a dtype. Out: bytes and FLOP a second, kept for the life of the process; and a canary, a small fixed
piece of work whose rate falls when the device is throttled or shared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cache

import torch

COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 28}
"""Far beyond every cache."""

PRODUCT_SIZE = {"cuda": 8192, "cpu": 1024}
"""Rows and columns of both factors."""

REPEATS = 5
"""Each is done so often. Of a ceiling the best counts, of a canary the median."""


@cache
def ceilings(device: torch.device, dtype: torch.dtype, threads: int) -> dict[str, float]:
    """`copy_bytes_per_second` (read and written) and `matmul_flops_per_second` in `dtype`; on a CPU with `threads`."""
    found = {
        "copy_bytes_per_second": 2 * COPY_BYTES[device.type] / _copy_seconds(device),
        "matmul_flops_per_second": 2 * PRODUCT_SIZE[device.type] ** 3 / _product_seconds(device, dtype),
    }
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def _copy_seconds(device: torch.device) -> float:
    source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return min(_seconds(lambda: target.copy_(source), device))


def _product_seconds(device: torch.device, dtype: torch.dtype) -> float:
    size = PRODUCT_SIZE[device.type]
    factor = torch.randn(size, size, device=device).to(dtype)
    return min(_seconds(lambda: factor @ factor, device))


class Canary:
    """The rate of a fixed product, and on a GPU of a fixed copy, against the best that this object has seen: 1.0 is as
    good. On a CPU a copy tells more of what the model before it left in the caches than of the machine.

    Calling it measures; `last` is what the call before found.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gpu = device.type == "cuda"
        size, dtype = (4096, torch.bfloat16) if gpu else (320, torch.float32)
        factor = torch.randn(size, size, device=device).to(dtype)
        self._work: list[Callable[[], object]] = [lambda: factor @ factor]
        if gpu:
            source = torch.ones(1 << 28, dtype=torch.uint8, device=device)
            target = torch.empty_like(source)
            self._work.append(lambda: target.copy_(source))
        self._best = [float("inf")] * len(self._work)
        self.last = 0.0
        self()

    def __call__(self) -> float:
        """Share of the best rate, the worst of them."""
        now = [statistics.median(_seconds(work, self.device)) for work in self._work]
        self._best = [min(a, b) for a, b in zip(self._best, now, strict=True)]
        self.last = min(best / own for best, own in zip(self._best, now, strict=True))
        return self.last


@cache
def canary(device: torch.device, threads: int) -> Canary:
    """The canary of this process on `device`; on a CPU with `threads`."""
    return Canary(device)


def _seconds(work: Callable[[], object], device: torch.device) -> list[float]:
    """Seconds of each of REPEATS calls, after one that does not count."""
    work()
    seconds = []
    for _ in range(REPEATS):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds
