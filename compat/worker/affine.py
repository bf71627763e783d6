"""The weights of a linear that torchao or quanto quantized, from what it stores and the formats' own definitions.

In: such a linear. Out: `Affine`, its codes and scales; from it the weight in fp32, and figures of how well the codes
stand for the checkpoint's weight. No function of torchao or quanto takes part.

A weight is (code - zero) * scale, or code * scale + offset, with one scale for each group of a row
(https://arxiv.org/abs/1712.05877, section 2.1). What a scale is made of is the library's choice:

- torchao, signed integers of b bits: the group's largest magnitude / ((2^b - 1) / 2), and a zero of 0.
- torchao and quanto, float8: the row's largest magnitude / 448, the largest value of e4m3
  (https://arxiv.org/abs/2209.05433, table 1).
- quanto, int8: the row's largest magnitude / 127.
- quanto, int4: (largest - least) / 15, and an offset that puts code 0 at the least.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from compat.worker.weight_figures import SLACK, Figures, losses

TORCHAO = {"Int8Tensor": 8, "IntxUnpackedToInt8Tensor": 4, "Float8Tensor": 0}
"""Class of a torchao weight -> bits of its integer codes, 0 for float8; the second says its bits itself."""

QUANTO = ("WeightQBytesTensor", "WeightQBitsTensor", "TinyGemmWeightQBitsTensor")
"""Classes of a quanto weight whose layout is known here."""


@dataclass(frozen=True)
class Affine:
    """What one quantized linear holds."""

    kind: str
    """`torchao-int8`, `torchao-int4`, `torchao-float8`, `quanto-int8`, `quanto-int4` or `quanto-float8`."""
    shape: tuple[int, int]
    """(out_features, in_features)."""
    codes: torch.Tensor
    """(out, in), int8 or uint8; of float8 the bytes."""
    scale: torch.Tensor
    """(out, groups), in the dtype that it is stored in."""
    blocksize: int
    """Weights that share a scale."""
    zero: torch.Tensor | None = None
    """(out, groups): subtracted from the code."""
    offset: torch.Tensor | None = None
    """(out, groups): added to code times scale."""
    dynamic: bool = False
    """Whether activations are rounded to 8 bits too."""
    dtype: torch.dtype | None = None
    """What the layer says it dequantizes to."""
    nested: None = None
    """No format here stores its scales in codes."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by name."""
        found = {"codes": self.codes, "scale": self.scale, "zero": self.zero, "offset": self.offset}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @property
    def bits(self) -> int:
        """Of an integer code; 0 for float8."""
        return {"int8": 8, "int4": 4}.get(self.kind.partition("-")[2], 0)


def is_affine(module: Any) -> bool:
    """Whether the weight of `module` is one of torchao's or quanto's."""
    weight = module._parameters.get("weight") if isinstance(module, torch.nn.Module) else None
    home = type(weight).__module__.split(".")[0]
    return isinstance(module, torch.nn.Linear) and (home == "torchao" or type(weight).__module__.startswith("optimum."))


def affine_stored(module: Any) -> Affine:
    """What `module` (see is_affine) holds. Raises ValueError for a layout that is not known here."""
    weight = module.weight
    name = type(weight).__name__
    if name in TORCHAO:
        return _torchao(weight, name)
    if name in QUANTO:
        return _quanto(weight, name)
    raise ValueError(f"the layout of {type(weight).__module__}.{name} is not known here")


def code_storage(module: Any) -> torch.Tensor:
    """The tensor of `module` (see is_affine) that a product has to read: its codes as they lie in memory."""
    weight = module.weight
    inner = getattr(weight, "qdata", None)
    inner = weight._data if inner is None else inner
    found: torch.Tensor = getattr(inner, "_data", inner)
    return found


def _torchao(weight: Any, name: str) -> Affine:
    rows, columns = (int(n) for n in weight.qdata.shape)
    bits = TORCHAO[name]
    if name == "IntxUnpackedToInt8Tensor":
        bits = int(str(weight.target_dtype).rpartition("int")[2])
    block = list(weight.block_size or (1, columns))
    if block[0] != 1:
        raise ValueError(f"scales shared by {block[0]} rows are not known here")
    scale = weight.scale.reshape(rows, -1)
    zero = getattr(weight, "zero_point", None)
    return Affine(
        f"torchao-int{bits}" if bits else "torchao-float8",
        (rows, columns),
        weight.qdata if bits else weight.qdata.view(torch.uint8),
        scale,
        int(block[1]),
        zero=None if zero is None else zero.reshape(rows, -1),
        dynamic=getattr(weight, "act_quant_kwargs", None) is not None,
        dtype=weight.dtype,
    )


def _quanto(weight: Any, name: str) -> Affine:
    rows, columns = (int(n) for n in weight.shape)
    kind = str(weight._qtype.name).removeprefix("q")
    kind = f"quanto-{'float8' if kind.startswith('float8') else kind}"
    if name == "WeightQBytesTensor":
        codes = weight._data.view(torch.uint8) if "float8" in kind else weight._data
        return Affine(kind, (rows, columns), codes, weight._scale.reshape(rows, 1), columns, dtype=weight.dtype)
    size = int(weight._group_size)
    groups = columns // size
    if name == "TinyGemmWeightQBitsTensor":
        codes = _unpacked_by_product(weight._data._data, rows, columns)
        both = weight._scale_shift.transpose(0, 1)  # (groups, out, 2): scale, and the value of the middle code
        scale, middle = both[..., 0], both[..., 1]
        return Affine(kind, (rows, columns), codes, scale, size, torch.full_like(scale, 8), middle, dtype=weight.dtype)
    if kind != "quanto-int4" or weight._axis != 0:
        raise ValueError(f"{kind} along axis {weight._axis} is not known here")
    packed = weight._data._data  # two codes a byte, the first half of the rows in the low bits
    codes = torch.cat([packed & 15, packed >> 4], 0)[: rows * groups].reshape(rows, columns)
    scale, shift = (part.reshape(rows, groups) for part in (weight._scale, weight._shift))
    return Affine(kind, (rows, columns), codes, scale, size, offset=-shift, dtype=weight.dtype)


def _unpacked_by_product(packed: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Codes 0 to 15, uint8 (rows, columns), out of the layout of torch's 4-bit product, which no one documents: the
    product of an identity matrix with scales of one is exact in bf16. Raises what torch raises."""
    one = torch.eye(columns, dtype=torch.bfloat16, device=packed.device)
    plain = torch.zeros((columns // 32, rows, 2), dtype=torch.bfloat16, device=packed.device)
    plain[..., 0] = 1.0
    on_cpu = packed.device.type == "cpu"
    product = torch.ops.aten._weight_int4pack_mm_for_cpu if on_cpu else torch.ops.aten._weight_int4pack_mm
    return (product(one, packed, 32, plain).t() + 8).to(torch.uint8).contiguous()


@cache
def float8_table() -> torch.Tensor:
    """The values of the 256 codes of e4m3 (sign, four bits of exponent with a bias of 7, three of mantissa; no
    infinities, all ones is NaN), fp32."""
    values = []
    for code in range(256):
        sign, exponent, mantissa = (-1 if code >> 7 else 1), (code >> 3) & 15, code & 7
        size = (1 + mantissa / 8) * 2.0 ** (exponent - 7) if exponent else mantissa / 8 * 2.0**-6
        values.append(math.nan if code & 127 == 127 else sign * size)
    return torch.tensor(values, dtype=torch.float32)


def code_values(held: Affine) -> torch.Tensor:
    """What the codes stand for before they are scaled, fp32 (out, groups, group): less their zero."""
    rows, groups = held.scale.shape
    codes = held.codes.float() if held.bits else float8_table().to(held.codes.device)[held.codes.long()]
    split = codes.reshape(rows, groups, held.blocksize)
    return split if held.zero is None else split - held.zero.float()[..., None]


def affine_weight(held: Affine) -> torch.Tensor:
    """The weight, fp32, shape (out_features, in_features). Raises RuntimeError where the parts do not fit together."""
    weight = code_values(held) * held.scale.float()[..., None]
    if held.offset is not None:
        weight = weight + held.offset.float()[..., None]
    return weight.reshape(held.shape)


def affine_figures(held: Affine, found: torch.Tensor, rounded: torch.Tensor, master: torch.Tensor) -> Figures:
    """Judge `held`, whose weight is `found`, by the weight that was quantized (`rounded`) and by the checkpoint's own
    (`master`). All fp32, on one device, (out_features, in_features)."""
    wrong = _statistics_apart(held, rounded)
    return losses(found, master, rounded, held.blocksize, _codes_apart(held, rounded), wrong, 0.0)


def _statistics_apart(held: Affine, rounded: torch.Tensor) -> float:
    """The largest distance of a scale or an offset from what the format makes of `rounded` in the weight's dtype,
    relative to the scale."""
    rows, groups = held.scale.shape
    split = rounded.reshape(rows, groups, held.blocksize)
    stored_as = held.dtype or held.scale.dtype
    largest = split.abs().amax(-1)
    if held.kind == "quanto-int4":
        low, high = (getattr(split, f"a{end}")(-1).to(stored_as) for end in ("min", "max"))
        scale = (high - low) / 15
        middle = low if held.zero is None else low + 8 * scale
        apart = (held.offset.float().to(low.device) - middle.float()).abs() if held.offset is not None else largest
    else:
        divisor = (2**held.bits - 1) / 2 if held.bits else 448.0
        divisor = 127.0 if held.kind == "quanto-int8" else divisor
        scale = (largest.to(stored_as) / divisor).to(stored_as)
        apart = torch.zeros_like(largest)
    present = largest > 0
    if not bool(present.any()):
        return 0.0
    unit = scale.float().clamp_min(1e-30)
    off = torch.maximum((held.scale.float().to(unit.device) - unit).abs(), apart) / unit
    return float(off[present].max())


def _codes_apart(held: Affine, rounded: torch.Tensor) -> int:
    """Codes that are not the nearest to their weight by the scale that is stored, but for what computing the quotient
    in the scale's dtype may move it."""
    rows, groups = held.scale.shape
    split = rounded.reshape(rows, groups, held.blocksize)
    scale = held.scale.float().to(split.device)[..., None].clamp_min(1e-30)
    offset = 0.0 if held.offset is None else held.offset.float().to(split.device)[..., None]
    wanted = (split - offset) / scale
    own = code_values(held).to(split.device)
    moved = SLACK * wanted.abs().clamp_min(1.0) + torch.finfo(held.scale.dtype).eps * _quotient_size(held, wanted)
    if held.bits:
        half = torch.full_like(own, 0.5)
    else:
        exponent = torch.floor(torch.log2(torch.maximum(own.abs(), wanted.abs()).clamp(2.0**-6, 448.0)))
        half = 2.0 ** (exponent - 4)
    beyond = (wanted - own).abs() > half + moved
    return int((beyond | ~torch.isfinite(own)).sum())


def _quotient_size(held: Affine, wanted: torch.Tensor) -> torch.Tensor:
    """The magnitude of the numbers whose rounding moves a quotient: counted from the least where the format does."""
    return wanted.abs() if held.offset is None else wanted.abs().clamp_min(16.0)


def dynamic_product(x: torch.Tensor, held: Affine) -> torch.Tensor:
    """x W^T with rows of `x` (rows, in) rounded to 8 bits by their largest magnitude / 127.5, without rounding of the
    result; fp64 (rows, out)."""
    low = x.double()
    scale = (low.abs().amax(-1, keepdim=True) / 127.5).clamp_min(torch.finfo(torch.float32).eps)
    codes = (low / scale).round().clamp(-128, 127)
    weight = affine_weight(held).double().to(x.device)
    return (codes @ weight.t()) * scale
