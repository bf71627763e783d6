"""Weight quantization schemes. To add one, add an entry here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from compat.axes.registry import Registry


@dataclass(frozen=True)
class Quantization:
    """A scheme: the library, its configuration arguments, and its own arithmetic of bytes.

    `bits` a weight, plus `overhead_bytes` of statistics for each weight. The value "cell" stands for the cell's dtype.
    """

    name: str
    library: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    bits: float | None = None
    overhead_bytes: float = 0.0


def _four_bit(name: str, kind: str, double: bool) -> Quantization:
    """4 bits a weight; one fp32 absmax for each block of 64, or with double quantization one byte for each block and
    one fp32 for each 256 blocks (QLoRA, https://arxiv.org/abs/2305.14314, section 3)."""
    return Quantization(
        name,
        "bitsandbytes",
        {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": kind,
            "bnb_4bit_use_double_quant": double,
            "bnb_4bit_compute_dtype": "cell",
        },
        bits=4,
        overhead_bytes=(1 / 64 + 4 / (64 * 256)) if double else 4 / 64,
    )


QUANTIZATIONS = Registry(
    "quantization",
    (
        Quantization("none"),
        Quantization("bnb-int8", "bitsandbytes", {"load_in_8bit": True}, bits=8),
        _four_bit("bnb-fp4", "fp4", double=False),
        _four_bit("bnb-nf4", "nf4", double=False),
        _four_bit("bnb-nf4-dq", "nf4", double=True),
    ),
)
