"""What each quantized layer says of itself against what was asked of its library.

In: a group, a model that it loaded, and what its linears held then. Out: the layers that differ, and how.
"""

from __future__ import annotations

from typing import Any

import torch

from compat.worker import dequantize, quantizers
from compat.worker.affine import Affine
from compat.worker.dequantize import Stored
from compat.worker.group import Group
from compat.worker.load import quantized_modules

BLOCKSIZE = 64
THRESHOLD = 6.0
"""What bitsandbytes does where nothing is asked: 64 weights share a scale; columns of an activation with a magnitude of
6 or more are outliers (LLM.int8(), section 3.2)."""

QUANTO_GROUP = 128
"""Weights of a 4-bit matrix that share a scale in quanto."""


def differences(group: Group, model: Any, held: dict[str, Stored | Affine]) -> list[str]:
    """`path: what` for each layer that differs from what was asked for."""
    modules = quantized_modules(model)
    found = [f"{path}: quantized, and it should not be" for path in held if f"{path}.weight" not in group.quantizable]
    for path, own in held.items():
        module = modules.get(path)
        if module is None:
            found.append(f"{path}: no longer quantized")
            continue
        if isinstance(own, Affine):
            wanted, seen = _affine(group, own)
        elif own.kind == "int8":
            wanted, seen = _eight_bit(group, module)
        else:
            wanted, seen = _four_bit(group, module, own)
        apart = [f"{k} {seen[k]}, asked for {wanted[k]}" for k in wanted if seen[k] != wanted[k]]
        if apart:
            found.append(f"{path}: {'; '.join(apart)}")
    return found


def _affine(group: Group, own: Affine) -> tuple[dict[str, Any], dict[str, Any]]:
    asked, library = group.spec.quantization["arguments"], group.spec.quantization["library"]
    if library == "torchao":
        name = str(asked["config"])
        kind = "torchao-float8" if name.startswith("Float8") else f"torchao-int{asked.get('bits', 8)}"
        dynamic, size = "Dynamic" in name, asked.get("group", own.shape[1])
    else:
        kind, dynamic = f"quanto-{asked.get('weights', '')}", False
        size = QUANTO_GROUP if own.bits == 4 and own.shape[1] % QUANTO_GROUP == 0 else own.blocksize
    wanted = {"kind": kind, "rounds activations": dynamic, "group": size, "weight dtype": group.dtype}
    seen = {
        "kind": own.kind, "rounds activations": own.dynamic, "group": own.blocksize, "weight dtype": own.dtype,
    }  # fmt: skip
    return wanted, seen


def _eight_bit(group: Group, module: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    asked = group.spec.quantization["arguments"]
    wanted = {
        "kind": "int8" if asked.get("load_in_8bit") else "4-bit",
        "threshold": asked.get("llm_int8_threshold", THRESHOLD),
        "fp16 weights": False,
    }
    seen = {
        "kind": "int8",
        "threshold": module.state.threshold,
        "fp16 weights": bool(module.state.has_fp16_weights),
    }
    return wanted, seen


def _four_bit(group: Group, module: Any, own: Stored) -> tuple[dict[str, Any], dict[str, Any]]:
    asked = group.spec.quantization["arguments"]
    stored_as = getattr(torch, asked.get("bnb_4bit_quant_storage", "uint8"))
    wanted = {
        "kind": asked.get("bnb_4bit_quant_type", "fp4") if asked.get("load_in_4bit") else "int8",
        "double": bool(asked.get("bnb_4bit_use_double_quant", False)),
        "block": BLOCKSIZE,
        "nested block": dequantize.NESTED_BLOCK if own.nested else None,
        "compute dtype": quantizers.compute_dtype(group.spec.quantization, group.dtype),
        "weight dtype": group.dtype,
        "storage": stored_as,
    }
    seen = {
        "kind": own.kind,
        "double": own.nested is not None,
        "block": own.blocksize,
        "nested block": own.nested.blocksize if own.nested else None,
        "compute dtype": module.compute_dtype,
        "weight dtype": own.dtype,
        "storage": own.storage,
    }
    return wanted, seen
