"""How well stored codes stand for a weight: the figures of every format.

In: a weight as dequantized, and the weight that was quantized. Out: `Figures`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

LOSSLESS_DB = 300.0
"""Signal-to-noise ratio of a matrix without any error: beyond what fp64 can tell."""

SLACK = 1e-5
"""A code counts as nearest when its distance exceeds the least one by no more, in units of the scale: several times
what dividing by the scale in fp32 may move a value."""


@dataclass(frozen=True)
class Figures:
    """How well the stored codes stand for one weight."""

    codes_differing: int
    """Codes that are not the nearest to their weight."""
    statistics_error: float
    """Largest error of a scale beyond the format's own, relative to the scale."""
    table_error: float
    """Largest distance of a value in the layer's own tables from the format's definition."""
    sqnr_db: float
    """Signal-to-quantization-noise ratio against the weight before any rounding, in dB."""
    mean_error: float
    """Mean absolute error over the weight's root mean square."""
    worst_block: float
    """Largest root mean square error of a block over the block's largest magnitude."""


def losses(
    found: torch.Tensor,
    master: torch.Tensor,
    rounded: torch.Tensor,
    blocksize: int,
    codes_differing: int,
    statistics_error: float,
    table_error: float,
) -> Figures:
    """The figures of the weight `found` against the checkpoint's (`master`), whose blocks' largest magnitudes are those
    of `rounded` (the checkpoint's in the dtype it was loaded in); beside what was counted already. All fp32, on one
    device, (out_features, in_features)."""
    error = found - master
    power = float(master.square().sum(dtype=torch.float64))
    squared = error.square()
    noise = float(squared.sum(dtype=torch.float64))
    true = blocks(rounded.abs(), blocksize).amax(-1)
    noisy = blocks(squared, blocksize).mean(-1).sqrt() / true.clamp_min(1e-30)
    present = true > 0
    return Figures(
        codes_differing=codes_differing,
        statistics_error=statistics_error,
        table_error=table_error,
        sqnr_db=10 * math.log10(power / noise) if noise and power else LOSSLESS_DB,
        mean_error=float(error.abs().mean()) / math.sqrt(power / master.numel()) if power else 0.0,
        worst_block=float(noisy[present].max()) if bool(present.any()) else 0.0,
    )


def blocks(values: torch.Tensor, size: int) -> torch.Tensor:
    """(blocks, size), the last one filled up with zeros."""
    flat = values.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -flat.numel() % size)).reshape(-1, size)
