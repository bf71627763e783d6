"""The state of a batch that is fed piece by piece through a cache, and what is done to the cache between the pieces.

In: steps of a `decode` case (compat.worker.cases). Out: the row that each slot follows, the columns fed so far, the
cache. Scripts carry the same text (compat.reproduce).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Feeding:
    """A batch on its way."""

    slots: list[int]
    """The row that each slot follows."""
    cache: Any = None
    """None: only slots and columns are kept (or the model has not made one yet)."""
    at: int = 0
    """Columns fed so far."""
    kept: tuple[list[int], Any, int] | None = None

    def act(self, step: list[Any], device: torch.device | str = "cpu") -> None:
        """A step that feeds nothing: ["reorder", order] or ["select", slots], by which slot i goes on with what slot
        order[i] has seen and with its row; ["repeat", times], copies side by side; ["crop", columns], which are fed
        again; ["reset"]; ["copy"], to go on with a copy of the cache, and ["back"], with what was copied."""
        name, cache = step[0], self.cache
        if name == "copy":
            self.kept = (list(self.slots), cache, self.at)
            self.cache = copy.deepcopy(cache)
        elif name == "back":
            assert self.kept is not None
            self.slots, self.cache, self.at = self.kept
        elif name in ("reorder", "select"):
            self.slots = [self.slots[i] for i in step[1]]
            if cache is not None:
                change = cache.reorder_cache if name == "reorder" else cache.batch_select_indices
                change(torch.tensor(step[1], device=device))
        elif name == "repeat":
            self.slots = [slot for slot in self.slots for _ in range(step[1])]
            if cache is not None:
                cache.batch_repeat_interleave(step[1])
        elif name == "crop":
            self.at -= step[1]
            if cache is not None:
                cache.crop(-step[1])
        else:
            self.at = 0
            if cache is not None:
                cache.reset()
