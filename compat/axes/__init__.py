"""The axes of a cell: one registry a file, one entry a value. Pure data; nothing here imports torch."""

from collections.abc import Mapping

from compat.axes.attention import ATTENTION, Attention
from compat.axes.dtype import DTYPES, Dtype
from compat.axes.mode import MODES, PLAIN, Mode, mode_of
from compat.axes.quantization import QUANTIZATIONS, Quantization
from compat.axes.registry import Registry, nearest

AXES = ("model", "dtype", "attention", "quantization")
"""The four main axes, in the order of a cell's id."""

ALL_AXES = (*AXES, "mode")
"""With the axis that has a default, which is left out of ids and of stored axes."""


def axes_of(identity: str) -> dict[str, str]:
    """Axis -> value, as a cell with this id stores them: four parts, or five where its mode is not plain. Raises
    ValueError."""
    parts = identity.split("/")
    if len(parts) not in (len(AXES), len(ALL_AXES)) or parts[len(AXES) :] == [PLAIN]:
        raise ValueError(f"{identity!r} is no cell's id: MODEL/DTYPE/ATTENTION/QUANTIZATION, and /MODE if not {PLAIN}")
    return dict(zip(ALL_AXES, parts, strict=False))


def identity_of(axes: Mapping[str, str]) -> str:
    """The id of the cell with these axes, in whatever order they come: stored ones are sorted by name."""
    return "/".join(axes[name] for name in ALL_AXES if name in axes)


__all__ = [
    "ALL_AXES",
    "ATTENTION",
    "AXES",
    "DTYPES",
    "MODES",
    "PLAIN",
    "QUANTIZATIONS",
    "Attention",
    "Dtype",
    "Mode",
    "Quantization",
    "Registry",
    "axes_of",
    "identity_of",
    "mode_of",
    "nearest",
]
