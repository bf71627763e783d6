"""The axes of a cell: one registry a file, one entry a value. Pure data; nothing here imports torch."""

from compat.axes.attention import ATTENTION, Attention
from compat.axes.dtype import DTYPES, Dtype
from compat.axes.quantization import QUANTIZATIONS, Quantization
from compat.axes.registry import Registry, nearest

AXES = ("model", "dtype", "attention", "quantization")
"""The four main axes, in the order of a cell's id."""

__all__ = [
    "ATTENTION",
    "AXES",
    "DTYPES",
    "QUANTIZATIONS",
    "Attention",
    "Dtype",
    "Quantization",
    "Registry",
    "nearest",
]
