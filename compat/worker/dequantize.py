"""The weights of a quantized linear, from what it stores and the formats' own definitions.

In: a linear of bitsandbytes (of torchao and quanto: affine.py). Out: `Stored`, its codes and statistics as they lie in
memory before the first forward (which repacks 4-bit codes for CPU kernels); from it the weight in fp32, and `Figures`
of how well the codes stand for the checkpoint's weight. No function of bitsandbytes takes part: a fault in one of them
must show.

- int8 (LLM.int8(), https://arxiv.org/abs/2208.07339, section 2): a row of the weight is codes * scale / 127, the scale
  being the row's largest magnitude; the codes are the nearest integers.
- nf4 (QLoRA, https://arxiv.org/abs/2305.14314, appendix E) and fp4 (sign, two bits of exponent, one of mantissa): codes
  of 16 values in [-1, 1], two in a byte with the first in the high half, times the largest magnitude of their block.
- Double quantization (QLoRA, section 3): the blocks' magnitudes less their mean are stored themselves in 8 bits, in
  blocks of 256, with the dynamic code of https://arxiv.org/abs/2110.02861, section 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from compat.worker import affine
from compat.worker.affine import Affine
from compat.worker.weight_figures import SLACK, Figures, blocks, losses

NESTED_BLOCK = 256
"""Magnitudes that share a scale in double quantization."""

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

_FP4 = (0.0, 0.0625 / 12, 8 / 12, 12 / 12, 4 / 12, 6 / 12, 2 / 12, 3 / 12)
"""By the three bits below the sign. bitsandbytes numbers the exponents in an order of its own."""


@cache
def table(kind: str) -> torch.Tensor:
    """The values of the codes 0 to 15 of `nf4` or `fp4`, fp32. Raises KeyError for another kind."""
    values = {"nf4": _NF4, "fp4": (*_FP4, *(-v for v in _FP4))}[kind]
    return torch.tensor(values, dtype=torch.float32)


@cache
def dynamic_table() -> torch.Tensor:
    """The 256 values of the signed dynamic 8-bit code, ascending, fp32.

    For each decimal exponent e from 0 to -6 the midpoints of 2 ** (6 + e) equal parts of [0.1, 1], times 10 ** e, with
    either sign; besides 0 and 1.
    """
    values = [0.0, 1.0]
    for exponent in range(-6, 1):
        parts = 2 ** (6 + exponent)
        middles = [0.1 + 0.9 * (i + 0.5) / parts for i in range(parts)]
        values += [sign * m * 10.0**exponent for m in middles for sign in (1, -1)]
    return torch.tensor(sorted(values), dtype=torch.float64).float()


@dataclass(frozen=True)
class Nested:
    """Double quantization: what stands for the magnitudes."""

    codes: torch.Tensor
    scale: torch.Tensor
    offset: float
    table: torch.Tensor | None
    blocksize: int


@dataclass(frozen=True)
class Stored:
    """What one quantized linear holds. Tensors are the module's own, not copies."""

    kind: str
    """`int8`, `nf4` or `fp4`, by what the weight itself says."""
    shape: tuple[int, int]
    """(out_features, in_features)."""
    codes: torch.Tensor
    """int8 (out, in), or bytes of two codes each."""
    scale: torch.Tensor
    """One a row (int8) or a block; empty where `nested` stands for it."""
    blocksize: int
    """Weights that share a scale."""
    table: torch.Tensor | None = None
    """The table of codes that the layer keeps, where it keeps one."""
    nested: Nested | None = None
    dtype: torch.dtype | None = None
    """What the layer says it dequantizes to."""
    storage: torch.dtype | None = None
    """In which dtype the bytes of 4-bit codes are kept."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by name."""
        found = {"codes": self.codes, "scale": self.scale}
        if self.table is not None:
            found["table"] = self.table
        if self.nested is not None:
            found |= {"nested codes": self.nested.codes, "nested scale": self.nested.scale}
            found["nested offset"] = torch.tensor(self.nested.offset)
            if self.nested.table is not None:
                found["nested table"] = self.nested.table
        return found


def is_quantized(module: Any) -> bool:
    """Whether the weight of `module` is stored quantized, by bitsandbytes, torchao or quanto."""
    return type(module).__name__ in ("Linear4bit", "Linear8bitLt") or affine.is_affine(module)


def stored(module: Any) -> Stored | Affine:
    """What `module` holds. Call it before the first forward.

    Raises ValueError for 4-bit codes already repacked and for unknown layouts, AttributeError or TypeError where a part
    is missing.
    """
    if affine.is_affine(module):
        return affine.affine_stored(module)
    weight = module.weight
    if type(module).__name__ == "Linear8bitLt":
        own, state = weight, module.state
        codes = next(c for c in (getattr(own, "CB", None), state.CB, own.data) if c is not None)
        scale = next(s for s in (getattr(own, "SCB", None), state.SCB) if s is not None)
        return Stored("int8", _pair(codes.shape), codes, scale, codes.shape[1])
    state = weight.quant_state
    if getattr(state, "packing_format_for_cpu", False):
        raise ValueError("the 4-bit codes were repacked by a forward: read them before it")
    nested = None
    if state.nested:
        inner = state.state2
        nested = Nested(state.absmax, inner.absmax, float(state.offset), inner.code, int(inner.blocksize))
    codes = weight.data.reshape(-1).view(torch.uint8)
    scale = torch.empty(0) if nested else state.absmax
    kind, shape = str(state.quant_type), _pair(state.shape)
    return Stored(kind, shape, codes, scale, int(state.blocksize), state.code, nested, state.dtype, weight.dtype)


def _pair(shape: Any) -> tuple[int, int]:
    rows, columns = shape
    return int(rows), int(columns)


def scales(held: Stored) -> torch.Tensor:
    """The magnitude that each row (int8) or block is multiplied by, fp32, one dimension."""
    if held.nested is None:
        return held.scale.reshape(-1).float()
    nested = held.nested
    values = dynamic_table().to(nested.codes.device)[nested.codes.reshape(-1).long()]
    coarse = nested.scale.reshape(-1).float().repeat_interleave(nested.blocksize)[: values.numel()]
    return values * coarse + nested.offset


def four_bit_codes(held: Stored) -> torch.Tensor:
    """The codes one by one, int32, one dimension."""
    pairs = held.codes.int()
    count = held.shape[0] * held.shape[1]
    return torch.stack([pairs >> 4, pairs & 15], -1).reshape(-1)[:count]


def dequantize(held: Stored | Affine) -> torch.Tensor:
    """The weight, fp32, shape (out_features, in_features). Raises RuntimeError where the parts do not fit together."""
    if isinstance(held, Affine):
        return affine.affine_weight(held)
    if held.kind == "int8":
        return held.codes.float() * scales(held)[:, None] / 127.0
    values = table(held.kind).to(held.codes.device)[four_bit_codes(held)]
    each = scales(held).repeat_interleave(held.blocksize)
    return (values * each[: values.numel()]).reshape(held.shape)


def figures(held: Stored | Affine, found: torch.Tensor, rounded: torch.Tensor, master: torch.Tensor) -> Figures:
    """Judge `held`, whose weight is `found` (see `dequantize`), by the weight that was quantized (`rounded`: the
    checkpoint's in the dtype it was loaded in) and by the checkpoint's own (`master`). All fp32, on one device,
    (out_features, in_features)."""
    if isinstance(held, Affine):
        return affine.affine_figures(held, found, rounded, master)
    if held.kind == "int8":
        rounded = rounded.half().float()  # the format starts from fp16
    true = blocks(rounded.abs(), held.blocksize).amax(-1)
    safe = true.clamp_min(1e-30)
    own = scales(held).to(true.device)
    excess = ((own - true).abs() - (_expected(held, true) - true).abs()) / safe
    present = true > 0
    wrong = max(0.0, float(excess[present].max())) if bool(present.any()) else 0.0
    return losses(found, master, rounded, held.blocksize, _wrong_codes(held, rounded, safe), wrong, _table_error(held))


def _expected(held: Stored, true: torch.Tensor) -> torch.Tensor:
    """What the format keeps of the magnitudes `true`."""
    if held.nested is None:
        return true
    offset = true.mean()
    apart = blocks(true - offset, NESTED_BLOCK)
    coarse = apart.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    return (_nearest(apart / coarse, dynamic_table().to(true.device)) * coarse).reshape(-1)[: true.numel()] + offset


def _nearest(values: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The nearest of `codes` (any order) to each of `values`."""
    ascending = codes.sort().values
    middles = (ascending[1:] + ascending[:-1]) / 2
    return ascending[torch.bucketize(values, middles)]


def _wrong_codes(held: Stored, rounded: torch.Tensor, scale: torch.Tensor) -> int:
    """`scale` (blocks) is that of `rounded` itself."""
    values = (blocks(rounded, held.blocksize) / scale[:, None]).reshape(-1)[: rounded.numel()]
    if held.kind == "int8":
        distance = (values * 127.0 - held.codes.reshape(-1).to(values.device)).abs()
        return int((distance > 0.5 + 127 * SLACK).sum())
    low, high = (bound.to(values.device)[four_bit_codes(held).to(values.device)] for bound in _bounds(held.kind))
    return int(((values < low) | (values > high)).sum())


@cache
def _bounds(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """For each code, from where to where it is the nearest one."""
    codes = table(kind)
    ascending = codes.unique()
    middles = (ascending[1:] + ascending[:-1]) / 2
    ends = torch.tensor([math.inf])
    rank = torch.searchsorted(ascending, codes)
    return torch.cat([-ends, middles])[rank] - SLACK, torch.cat([middles, ends])[rank] + SLACK


def _table_error(held: Stored) -> float:
    """Over the layer's tables; 1 where one has another length."""
    pairs = [(held.table, table(held.kind))] if held.table is not None else []
    if held.nested is not None and held.nested.table is not None:
        pairs.append((held.nested.table, dynamic_table()))
    worst = 0.0
    for own, defined in pairs:
        same = own.shape == defined.shape
        worst = max(worst, float((own.float().cpu() - defined).abs().max()) if same else 1.0)
    return worst
