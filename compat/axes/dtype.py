"""Floating point types that models are loaded in. To add one, add an entry here and in `worker/load.py`."""

from __future__ import annotations

from dataclasses import dataclass

from compat.axes.registry import Registry


@dataclass(frozen=True)
class Dtype:
    """A dtype: its short name in ids, torch's name, machine epsilon and bytes an element."""

    name: str
    torch_name: str
    eps: float
    bytes: int


DTYPES = Registry(
    "dtype",
    (
        Dtype("fp32", "float32", 2.0**-23, 4),
        Dtype("fp16", "float16", 2.0**-10, 2),
        Dtype("bf16", "bfloat16", 2.0**-7, 2),
    ),
)
