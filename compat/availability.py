"""What can be said of a cell before anything runs: which package, file or device it would miss.

In: cells and models. Out: a reason, or "". Only names of installed distributions and files are looked at; a run asks
the stack itself.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tomllib
from functools import cache
from pathlib import Path

from compat.axes import ATTENTION, QUANTIZATIONS
from compat.matrix import CellSpec, Matrix, Model

_NEEDS = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3", "flash_attention_4": "flash-attn-4"}
_CUDA_ONLY = ("sdpa-efficient", "sdpa-cudnn", *_NEEDS)


@cache
def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def missing(cell: CellSpec, model: Model, device: str) -> str:
    """Why `cell` is expected not to run here, or ""."""
    implementation = ATTENTION[cell.attention].implementation
    if implementation in _NEEDS and not _installed(_NEEDS[implementation]):
        return f"{_NEEDS[implementation]} is not installed"
    if device == "cpu" and cell.attention in _CUDA_ONLY:
        return f"{cell.attention} has no CPU kernel"
    library = QUANTIZATIONS[cell.quantization].library
    if library and not _installed(library):
        return f"{library} is not installed"
    return _model_missing(model)


def _model_missing(model: Model) -> str:
    row = model.row
    if row["source"] == "package" and not _installed(row["distribution"]):
        return f"{row['distribution']} is not installed"
    if row["source"] == "folder" and not Path(row["path"]).is_dir():
        return f"the folder {row['path']} does not exist"
    if row["source"] == "hub":
        return f"the hub decides whether {row['repo']} is to be had"
    return ""


def estimate_seconds(matrix: Matrix, cells: tuple[CellSpec, ...]) -> float:
    """Expected wall seconds of one worker for `cells`, from the measured means in costs.toml."""
    costs = tomllib.loads((Path(__file__).parent / "costs.toml").read_text(encoding="utf-8"))[matrix.device]
    kind = {name: "real" if model.real else "probe" for name, model in matrix.models.items()}
    return float(sum(costs[kind[cell.model]].get(check, 0.0) for cell in cells for check in cell.checks))
