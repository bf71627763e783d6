"""Stored figures of clean runs: what is normal for a cell, and what the reference answers.

In: runs of a stack that is believed to be right. Out: `bands-DEVICE.json` (cell -> check -> measurement -> the worst
figure of those runs) and `answers.json` (model -> dtype -> the fp64 answer on one fixed input), each with the stack
that it was measured on. compat.judge reads them: a row of the criteria with `band = true` bounds a figure by its
multiple.

A figure holds for a model whose row is what it was (`Model.digest`): a matrix that changes a probe gets no band.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from compat.records import Outcome, Run

FOLDER = Path(__file__).parent

Bands = Mapping[str, Mapping[str, float]]
"""Check -> measurement -> figure."""


@cache
def _read(name: str) -> Mapping[str, Any]:
    path = FOLDER / name
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content


def bands(device: str, cell: str, model: str, digest: str) -> Bands:
    """The stored figures of a cell; {} where there are none for this very model."""
    stored = _read(f"bands-{device}.json")
    if not digest or stored.get("models", {}).get(model) != digest:
        return {}
    found: Bands = stored["cells"].get(cell, {})
    return found


def answer(model: str, dtype: str, digest: str) -> tuple[float, ...]:
    """The stored answer of a model in a dtype (see compat.worker.checks.agreement.answer); () where there is none."""
    return tuple(_of_model(model, digest).get("answers", {}).get(dtype, ()))


def outputs(model: str, digest: str) -> Mapping[str, list[float]]:
    """What a model's fp32 form returns when it is asked for everything (see compat.worker.checks.agreement.outputs); {}
    where nothing is stored."""
    found: Mapping[str, list[float]] = _of_model(model, digest).get("outputs", {})
    return found


def _of_model(model: str, digest: str) -> Mapping[str, Any]:
    """What answers.json holds of this very model; {} where it holds nothing."""
    stored: Mapping[str, Any] = _read("answers.json").get("models", {}).get(model, {})
    return stored if digest and stored.get("digest") == digest else {}


def collect(runs: Iterable[Run], wanted: Collection[tuple[str, str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(bands, answers) as they are stored, from runs of one device: the worst figure over the runs of each `wanted`
    (check, measurement), of checks that passed or were degraded (a known defect has no clean figure).

    Raises ValueError for runs of different devices or packages, and for runs that do not say what their models were.
    """
    runs = list(runs)
    if len({(r.run.device, r.run.stack.sha256) for r in runs}) != 1:
        raise ValueError("the runs are of different devices or packages: a band is of one of each")
    cells: dict[str, dict[str, dict[str, float]]] = {}
    models: dict[str, str] = {}
    answers: dict[str, Any] = {}
    for run in runs:
        for cell in run.cells:
            model = cell.axes["model"]
            digest = run.run.settings.get("models", {}).get(model, {}).get("digest")
            if digest is None:
                raise ValueError(f"run {run.run.id} does not say what {model!r} was: it cannot be calibrated from")
            for check in cell.checks:
                clean = check.outcome in (Outcome.PASS, Outcome.DEGRADED)
                for measured in check.measurements:
                    if not clean or (check.name, measured.name) not in wanted or measured.value is None:
                        continue
                    figures = cells.setdefault(cell.id, {}).setdefault(check.name, {})
                    figures[measured.name] = max(measured.value, figures.get(measured.name, measured.value))
                    models[model] = digest
                given = check.evidence.facts.get("answer")
                if given:
                    own = answers.setdefault(model, {"digest": digest, "answers": {}})
                    own["answers"][cell.axes["dtype"]] = given
                    if "outputs" in check.evidence.facts:
                        own["outputs"] = check.evidence.facts["outputs"]
    environment = runs[0].environment
    about = {
        "packages": dict(environment.packages),
        "device": runs[0].run.device,
        "on": [g.name for g in environment.gpus] or [environment.cpu],
        "runs": len(runs),
    }
    return {**about, "models": models, "cells": cells}, {**about, "models": answers}


def added(stored: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """`found` (bands or answers, as from `collect`) put into what is stored: its models replace those of the same name,
    the others stay as they are. Raises ValueError where device or packages are not the same."""
    for key in ("device", "packages"):
        if stored.get(key) != found[key]:
            raise ValueError(f"what is stored has other {key}: calibrate from runs of everything instead")
    models = {**stored["models"], **found["models"]}
    content = {**stored, "models": models}
    if "cells" in found:
        kept = {c: figures for c, figures in stored["cells"].items() if c.split("/")[0] not in found["models"]}
        content["cells"] = {**kept, **found["cells"]}
    return content


def text(content: dict[str, Any]) -> str:
    """What `collect` found as JSON, one cell or model a line: a new calibration reads as a change of lines."""
    parts = []
    for key, value in content.items():
        if key in ("cells", "models") and isinstance(value, dict):
            rows = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(value.items()))
            parts.append(f"{json.dumps(key)}: {{\n{rows}\n }}")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(parts) + "\n}\n"
