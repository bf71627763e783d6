"""Load groups of probes, small and quick, and what a check measures in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compat.axes import ATTENTION, PLAIN, QUANTIZATIONS
from compat.builtin import matrices_folder
from compat.execute.local import check_request, group_spec
from compat.matrix import read_matrix
from compat.plan import LoadGroup
from compat.worker.group import Group, Masters
from compat.worker.report import Report
from compat.worker.spec import GroupSpec

MODELS = {
    **read_matrix(matrices_folder() / "distillation.toml", "cpu").models,
    **read_matrix(matrices_folder() / "families.toml", "cpu").models,
    **read_matrix(matrices_folder() / "default-cpu.toml", "cpu").models,
}


def group(
    model: str, dtype: str, cache: Path, quantization: str = "none", depth: str = "standard", mode: str = PLAIN
) -> Group:
    """The load group of a probe of compat's own matrices, seed 0, on the CPU."""
    assert quantization in QUANTIZATIONS.names
    load = LoadGroup(f"{model}/{dtype}/{quantization}/{mode}", model, dtype, quantization, (), mode)
    return Group(GroupSpec(**group_spec(load, MODELS[model], "cpu", cache, 0, depth)), Masters())


def attention(name: str) -> dict[str, Any]:
    """An attention backend as a worker is told of it."""
    assert name in ATTENTION.names
    asked: dict[str, Any] = check_request("load", {}, name, 1)["attention"]
    return asked


def figures(report: Report) -> dict[str, Any]:
    """Measurement -> value."""
    return {m["name"]: m["value"] for m in report.measurements}
