"""Our own account of what a call allocates: storages that operators return, while they live and what stays.

In: a call under a dispatch mode. Out: the most bytes alive at once, and the bytes still alive once the caller has let
go of the result. Needs no allocator's counters, so it works on a CPU; it sees what operators return, not what a kernel
takes inside.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Allocations(TorchDispatchMode):
    """Follows the storages of every tensor that an operator returns inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in _tensors((args, kwargs or {}))}
        result = func(*args, **(kwargs or {}))
        added = False
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in given and key not in self._alive and tensor.device.type != "meta":
                self._alive[key] = (StorageWeakRef(storage), storage.nbytes())
                added = True
        if added:
            self.peak_bytes = max(self.peak_bytes, self.bytes_alive())
        return result

    def bytes_alive(self) -> int:
        """Bytes of the followed storages that are still in use."""
        self._alive = {key: own for key, own in self._alive.items() if not own[0].expired()}
        return sum(size for _, size in self._alive.values())

    def left(self, known: set[int]) -> int:
        """Bytes still in use outside `known` (storages by `_cdata`); cycles are collected first where there are any."""
        if self._outside(known):
            gc.collect()
            self.bytes_alive()
        return self._outside(known)

    def _outside(self, known: set[int]) -> int:
        self.bytes_alive()
        return sum(size for key, (_, size) in self._alive.items() if key not in known)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for inner in value for tensor in _tensors(inner)]
    return []
