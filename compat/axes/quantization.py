"""Weight quantization schemes. To add one, add an entry here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from compat.axes.registry import Registry


@dataclass(frozen=True)
class Quantization:
    """A scheme: the library, its configuration arguments, and its own arithmetic of bytes.

    `bits` a weight as it lies in memory, plus `overhead_bytes` of statistics for each weight, plus `overhead_scales`
    numbers in the cell's dtype for each weight. The value "cell" among the arguments stands for the cell's dtype.
    """

    name: str
    library: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    bits: float | None = None
    overhead_bytes: float = 0.0
    overhead_scales: float = 0.0

    def overhead(self, dtype_bytes: int) -> float:
        """Bytes of statistics for each weight in a cell whose dtype takes `dtype_bytes`."""
        return self.overhead_bytes + self.overhead_scales * dtype_bytes


def _four_bit(name: str, kind: str, double: bool, **more: Any) -> Quantization:
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
            **more,
        },
        bits=4,
        overhead_bytes=(1 / 64 + 4 / (64 * 256)) if double else 4 / 64,
    )


ATTENTION_PROJECTIONS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "qkv_proj", "query_key_value", "c_attn", "query", "key",
    "value", "q_lin", "k_lin", "v_lin", "out_lin",
)  # fmt: skip
"""What families call the projections of their attention, where nothing else is called so."""

HEADS = ("lm_head", "cls", "vocab_projector", "classifier")
"""What families call their output head: a list of modules to skip takes the place of the library's own, which has the
head."""

QUANTIZATIONS = Registry(
    "quantization",
    (
        Quantization("none"),
        Quantization("bnb-int8", "bitsandbytes", {"load_in_8bit": True}, bits=8),
        _four_bit("bnb-fp4", "fp4", double=False),
        _four_bit("bnb-nf4", "nf4", double=False),
        _four_bit("bnb-nf4-dq", "nf4", double=True),
        # options of bitsandbytes: no column is an outlier; modules left alone; another dtype for products; another one
        # for the bytes that hold the codes
        Quantization("bnb-int8-t0", "bitsandbytes", {"load_in_8bit": True, "llm_int8_threshold": 0.0}, bits=8),
        Quantization(
            "bnb-int8-skip-attention",
            "bitsandbytes",
            {"load_in_8bit": True, "llm_int8_skip_modules": [*ATTENTION_PROJECTIONS, *HEADS]},
            bits=8,
        ),
        _four_bit("bnb-nf4-fp32compute", "nf4", double=False, bnb_4bit_compute_dtype="float32"),
        _four_bit("bnb-nf4-bf16storage", "nf4", double=False, bnb_4bit_quant_storage="bfloat16"),
        # torchao: one fp32 scale a row (and a zero point of a byte), or for 4 bits one scale in the cell's dtype and a
        # byte of zero point for each group; 4-bit codes take a byte each
        Quantization("torchao-int8", "torchao", {"config": "Int8WeightOnlyConfig"}, bits=8),
        Quantization("torchao-int8-dynamic", "torchao", {"config": "Int8DynamicActivationInt8WeightConfig"}, bits=8),
        Quantization(
            "torchao-int4",
            "torchao",
            {"config": "IntxWeightOnlyConfig", "bits": 4, "group": 64},
            bits=8,
            overhead_bytes=1 / 64,
            overhead_scales=1 / 64,
        ),
        Quantization("torchao-float8", "torchao", {"config": "Float8WeightOnlyConfig"}, bits=8),
        # quanto: one scale a row in the cell's dtype; for 4 bits a scale and a shift for each group of 128
        Quantization("quanto-int8", "optimum-quanto", {"weights": "int8"}, bits=8),
        Quantization("quanto-int4", "optimum-quanto", {"weights": "int4"}, bits=4, overhead_scales=2 / 128),
        Quantization("quanto-float8", "optimum-quanto", {"weights": "float8"}, bits=8),
    ),
)
