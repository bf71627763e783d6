"""Batches of a grid point, and single-token steps on a cache, as the speed check times them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from compat.worker import stack_api
from compat.worker.group import Group, Loaded
from compat.worker.inputs import CLASSIFYING, Rows, padded, unpadded

WINDOW = (8, 64)
"""Fewest and most steps after which a cache starts again from the prompt, so that both sides walk the same cache
lengths again and again."""


@dataclass(frozen=True)
class Point:
    """One point of a grid: `batch` rows, the longest of `length` tokens, a `padding` share of pads."""

    batch: int
    length: int
    padding: float = 0.0

    @property
    def name(self) -> str:
        """E.g. `4x2048@0.3`."""
        return f"{self.batch}x{self.length}@{self.padding:g}"

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row: evenly spread from `length` down, so that their mean leaves `padding` pads; where the
        shortest would vanish, one full row and the others alike."""
        real = round(self.batch * self.length * (1 - self.padding))
        if self.batch == 1 or not self.padding:
            return [max(1, real // self.batch)] * self.batch
        if self.padding <= 0.45:
            step = 2 * self.padding * self.length / (self.batch - 1)
            return [max(1, round(self.length - i * step)) for i in range(self.batch)]
        other = max(1, (real - self.length) // (self.batch - 1))
        return [self.length, *[other] * (self.batch - 1)]


@dataclass(frozen=True)
class Batch:
    """Forward arguments of a point, and how many of its positions are real."""

    arguments: dict[str, torch.Tensor]
    tokens: int
    lengths: tuple[int, ...] = ()


def batch(group: Group, model: Any, point: Point, seed: int) -> Batch:
    """The inputs of `point` from `seed`, left-padded for models that generate, as `generate` gives them."""
    if group.task in (*CLASSIFYING, "speech-seq2seq"):
        rows = group.source.rows(seed, [point.length] * point.batch)
        return Batch(unpadded(rows, group.device, group.dtype), point.batch)
    rows = group.source.rows(seed, point.lengths)
    lengths = tuple(len(r) for r in rows.tokens)
    tokens = sum(lengths) + sum(len(d) for d in rows.decoder or ())
    if not point.padding:
        return Batch(unpadded(rows, group.device, group.dtype), tokens, lengths)
    side = "left" if group.task in stack_api.CAUSAL_TASKS else "right"
    arguments = padded(rows, side, model, group.device, group.source.pad, width=point.length).arguments
    return Batch(arguments | _images(group, rows), tokens, lengths)


def _images(group: Group, rows: Rows) -> dict[str, torch.Tensor]:
    if rows.images is None:
        return {}
    return {"pixel_values": rows.images.to(device=group.device, dtype=group.dtype)}


class Steps:
    """Single-token steps on a growing cache; the prefill that fills it, and starting again, are not timed."""

    def __init__(self, loaded: Loaded, prompt: Batch, steps: int, window: int = WINDOW[0]) -> None:
        self.loaded, self.steps, self.window = loaded, steps, window
        self.prompt = prompt.arguments
        ids = self.prompt["input_ids"]
        self.width = int(ids.shape[1])
        self.token = ids[:, -1:]
        room = (ids.shape[0], window + steps)
        mask = self.prompt.get("attention_mask")
        self.mask = None if mask is None else torch.cat([mask, mask.new_ones(room)], dim=1)
        self.next = None if mask is None else mask.sum(dim=1, keepdim=True)
        self.positions = mask is not None and stack_api.accepts(loaded.model, "position_ids")
        self.name = stack_api.cache_argument(loaded.model)
        self.cache: Any = None
        self.done = 0

    def refill(self) -> None:
        """A cache with room for the next sample: cropped back to the prompt, or filled anew where it cannot be."""
        if self.cache is not None and self.done + self.steps <= self.window:
            return
        if self.cache is None or not self._cropped():
            self.cache = None
            output = self.loaded.model(**self.prompt, use_cache=True, **last_logits(self.loaded.model))
            self.cache = getattr(output, self.name)
        self.done = 0

    def _cropped(self) -> bool:
        if not hasattr(self.cache, "crop") or not stack_api.rolls_back(self.loaded.model):
            return False
        if any(t.shape[-2] != self.width + self.done for pair in stack_api.cache_tensors(self.cache) for t in pair):
            return False  # a window has rolled: what it let go does not come back
        self.cache.crop(-self.done)  # a length in place of a difference is refused since transformers 5
        return True

    def __call__(self) -> None:
        """`steps` tokens, one after the other."""
        for _ in range(self.steps):
            arguments: dict[str, Any] = {"input_ids": self.token, self.name: self.cache, "use_cache": True}
            if self.mask is not None and self.next is not None:
                arguments["attention_mask"] = self.mask[:, : self.width + self.done + 1]
                if self.positions:
                    arguments["position_ids"] = self.next + self.done
            self.cache = getattr(self.loaded.model(**arguments), self.name)
            self.done += 1


def cacheless(model: Any) -> dict[str, bool]:
    """What a plain forward is asked, so that it fills no cache, where the class can be asked."""
    return {"use_cache": False} if stack_api.accepts(model, "use_cache") else {}


def last_logits(model: Any) -> dict[str, int]:
    """What `generate` asks of a prefill: logits of the last position only, where the class can."""
    return {"logits_to_keep": 1} if stack_api.accepts(model, "logits_to_keep") else {}
