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

from compat.axes import ATTENTION, DTYPES, MODES, QUANTIZATIONS
from compat.device import detect, memory_bytes, no_room
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
    mode = MODES[cell.mode]
    if mode.needs and not _installed(mode.needs):
        return f"{mode.needs} is not installed"
    gpus = detect().count if mode.gpus and device == "cuda" else 0
    if mode.gpus > gpus:
        return f"{cell.mode} needs {mode.gpus} GPUs, and there are {gpus}"
    weights = weights_bytes(cell, model)
    if weights and (reason := no_room(weights, _memory(device), device)):
        return reason
    return _model_missing(model)


@cache
def _memory(device: str) -> int | None:
    return memory_bytes(device)


def weights_bytes(cell: CellSpec, model: Model) -> int | None:
    """Bytes of a shape's weights in `cell` by the scheme's arithmetic; None where its row does not count them.

    What a weight-only scheme covers takes its bits and statistics, everything else the size of the dtype. Buffers, and
    what an architecture keeps in fp32, are left out: the worker's own arithmetic (worker/load.py) has them.
    """
    if not model.shape or "parameters" not in model.row:
        return None
    scheme, size = QUANTIZATIONS[cell.quantization], DTYPES[cell.dtype].bytes
    total, covered = int(model.row["parameters"]), int(model.row.get("linear_parameters", 0))
    if not scheme.bits:
        return total * size
    return round(covered * (scheme.bits / 8 + scheme.overhead(size))) + (total - covered) * size


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
    """Expected wall seconds of one worker for `cells`, from the measured means in costs.toml; those of a shape hold for
    a billion parameters, and its speed for one point of the grid."""
    costs = _costs()[matrix.device]
    points = max(1, len(matrix.settings.speed.points))

    def seconds(cell: CellSpec, model: Model, check: str) -> float:
        size = int(model.row.get("parameters", 1e9)) / 1e9 if model.shape else 1.0
        asked = points if model.shape and check == "speed" else 1
        return size * asked * costs.get(_kind(cell, model), {}).get(check, 0.0)

    return sum(seconds(cell, matrix.models[cell.model], check) for cell in cells for check in cell.checks)


def not_estimated(matrix: Matrix, cells: tuple[CellSpec, ...]) -> int:
    """How many of `cells` are of a kind whose seconds were never measured on this type of device."""
    known = _costs()[matrix.device]
    return sum(_kind(cell, matrix.models[cell.model]) not in known for cell in cells)


@cache
def _costs() -> dict[str, dict[str, dict[str, float]]]:
    text = (Path(__file__).parent / "costs.toml").read_text(encoding="utf-8")
    costs: dict[str, dict[str, dict[str, float]]] = tomllib.loads(text)
    return costs


def _kind(cell: CellSpec, model: Model) -> str:
    if MODES[cell.mode].family == "compile":
        return "compiled"
    return "shape" if model.shape else "real" if model.real else "probe"
