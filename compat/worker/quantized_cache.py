"""A cache that stores keys and values as 8-bit floats, against the same rounding of our own.

What it keeps is compared number by number: keys and values as the model makes them go through the cache's own layers,
in three parts with the rows reordered between, and must come back as our arithmetic says: a scale for each tensor, set
by the first part (its largest magnitude becomes 448, the largest e4m3 number), three bits of mantissa, rounded to even.
Magnitudes beyond the first part's are left out: what becomes of them is the format's weakness, and counted beside it.

The e4m3 format: https://arxiv.org/abs/2209.05433, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from compat.worker import stack_api
from compat.worker.caches import Walk
from compat.worker.calls import StackError, under_test
from compat.worker.group import Group, Loaded
from compat.worker.inputs import Rows

LARGEST = 448.0
"""The largest number of the format."""

MANTISSA_BITS = 3
SMALLEST_EXPONENT = -6


@dataclass
class Compared:
    """Numbers that came back otherwise than by our rounding, of how many, and how many lie beyond the scale."""

    differing: int = 0
    compared: int = 0
    beyond: int = 0


def run(group: Group, loaded: Loaded, rows: Rows, first: int) -> Compared | str:
    """Compare what a quantized cache gives back with our own rounding, its scale set by `first` tokens; or say why
    there is none. Raises StackError."""
    if group.task != "causal-lm":
        return "not for encoder-decoder models"
    try:
        with under_test("cache"):
            cache = stack_api.quantized_cache(loaded.model.config)
    except StackError as error:  # families with windows are refused
        return str(error.original)[:200]
    if cache is None:
        return "this stack has no cache of 8-bit floats"
    plain = Walk(loaded, rows, [0, 1], cache=stack_api.dynamic_cache(loaded.model.config), masked=False)
    plain.step(first + 4)
    result = Compared()
    for layer, tensors in zip(cache.layers, stack_api.cache_tensors(plain.cache), strict=True):
        if not tensors:
            continue
        for own, theirs in zip(tensors, _through(layer, tensors, first), strict=True):
            expected, inside = rounded(own, own[:, :, :first])
            result.compared += int(inside.sum())
            result.beyond += int((~inside).sum())
            result.differing += int((expected.to(own.dtype) != theirs)[inside].sum())
    return result


def _through(layer: Any, tensors: list[torch.Tensor], first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (batch, heads, positions, width) as `layer` gives them back for the last of three parts; before
    it the rows change places, and change back afterwards."""
    keys, values = tensors
    order = torch.arange(keys.shape[0], device=keys.device).flip(0)
    with under_test("cache"):
        layer.update(keys[:, :, :first], values[:, :, :first])
        layer.update(keys[:, :, first:-1], values[:, :, first:-1])
        layer.reorder_cache(order)
        back = layer.update(keys[order, :, -1:], values[order, :, -1:])
    return back[0][order], back[1][order]


def rounded(x: torch.Tensor, first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` as e4m3 numbers under one scale, which `first` sets, and back, in fp32; and where it lies inside the
    scale."""
    scale = first.float().abs().max() / LARGEST
    scaled = x.float() / scale
    exponent = torch.frexp(scaled).exponent.sub(1).clamp_min(SMALLEST_EXPONENT)
    step = torch.exp2((exponent - MANTISSA_BITS).float())
    return torch.round(scaled / step) * step * scale, scaled.abs() <= LARGEST
