"""One attention call by itself: what the backend attains, apart from the rest of the model.

In: a loaded model and a batch. Out: the call that its first attention layer makes, ready to be repeated, and what it
has to compute and move at least, counted over real tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from compat.worker import stack_api
from compat.worker.group import Loaded
from compat.worker.stepping import Batch


@dataclass(frozen=True)
class AttentionCall:
    """A captured call. `flops`: two multiply-adds of head_dim for each pair of a real query and a key that it may see;
    `bytes`: queries, keys, values and output of real tokens, each moved once."""

    again: Callable[[], Any]
    flops: int
    bytes: int


class _Enough(Exception):
    """The first attention call was captured."""


def captured(loaded: Loaded, batch: Batch, extra: dict[str, Any], causal: bool) -> AttentionCall | None:
    """The first attention call of a forward of `batch`; None where the family does not look its attention up in the
    library's registry. Call it inside `under_test` and the backend's own context."""
    caught: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def first(*arguments: Any, **more: Any) -> Any:
            caught.append((function, arguments, more))
            raise _Enough

        return first

    with stack_api.wrapped_attention(wrap) as able:
        if not able:
            return None
        with contextlib.suppress(_Enough):
            loaded.model(**batch.arguments, **extra)
    if not caught:
        return None
    function, arguments, more = caught[0]
    tensors = [a for a in arguments if isinstance(a, torch.Tensor) and a.dim() == 4][:3]
    if len(tensors) < 3:
        return None
    query, key, _ = tensors
    heads, head_dim = int(query.shape[1]), int(query.shape[-1])
    rows = batch.lengths or (int(query.shape[2]),) * int(query.shape[0])
    window = more.get("sliding_window") or None
    pairs = sum(_pairs(n, causal, window) for n in rows)
    moved = sum(rows) * head_dim * (2 * heads + 2 * int(key.shape[1])) * query.element_size()
    return AttentionCall(lambda: function(*arguments, **more), 4 * heads * head_dim * pairs, moved)


def _pairs(length: int, causal: bool, window: int | None) -> int:
    """Pairs of a query and a key that it may see, in one row."""
    if not causal:
        return length * length
    if window is None or window >= length:
        return length * (length + 1) // 2
    return window * (window + 1) // 2 + (length - window) * window
