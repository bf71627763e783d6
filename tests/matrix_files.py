"""Matrix files for tests: small ones as text, and hypothesis strategies for any that is valid."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from compat.axes import ATTENTION, DTYPES, QUANTIZATIONS
from compat.checks import CHECKS
from compat.matrix import CellSpec

MODELS = ("llama", "opt", "bert", "t5", "vit", "minilm-l6")
"""Some of compat's own models, one of each task and a real one."""

TINY = """
title = "Tiny"
checks = ["load", "agreement", "memory"]

[axes]
model = ["opt", "llama"]
dtype = ["fp32"]
attention = ["eager", "sdpa"]
quantization = ["none"]
"""


def write(folder: Path, text: str, name: str = "matrix.toml") -> Path:
    """`text` as a matrix file in `folder`."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def _some(values: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=4, unique=True)


AXES = st.fixed_dictionaries(
    {
        "model": _some(MODELS),
        "dtype": _some(DTYPES.names),
        "attention": _some(ATTENTION.names),
        "quantization": _some(QUANTIZATIONS.names),
    }
)
"""The axes of a block."""

CELL = st.builds(
    CellSpec,
    model=st.sampled_from(MODELS),
    dtype=st.sampled_from(DTYPES.names),
    attention=st.sampled_from(ATTENTION.names),
    quantization=st.sampled_from(QUANTIZATIONS.names),
    checks=st.lists(st.sampled_from(CHECKS.names), min_size=1, unique=True).map(
        lambda names: tuple(sorted(names, key=CHECKS.names.index))
    ),
    excluded=st.sampled_from(["", "", "", "left out for a reason"]),
)

CELLS = st.lists(CELL, max_size=24, unique_by=lambda cell: cell.id)
"""Expanded cells in any order, ids unique as `read_matrix` makes them."""


def block(name: str, axes: dict[str, list[str]], extra: str = "") -> str:
    """A TOML table (`axes`) or array entry (`[include]`) of axis values."""
    lines = [f"{axis} = {values!r}".replace("'", '"') for axis, values in axes.items()]
    return "\n".join([f"[{name}]", *lines, extra, ""])
