"""A fault put into a worker and into a reproducer: what the evidence says, and how the script ends.

`python -m tests.reproduce.proving FAULT SCRIPT` runs a script on a stack that has a fault of compat.faults;
`python -m tests.reproduce.proving --table [FAULT ...]` proves one fault after the other and prints what came of it.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compat import reproduce
from compat.axes import AXES
from compat.builtin import matrix_path
from compat.execute.explaining import explain_request, explained
from compat.execute.local import check_request, group_spec
from compat.judge import broken, context_of, judge
from compat.matrix import CellSpec, read_matrix
from compat.plan import make_plan
from compat.records import Check
from compat.render.evidence import kernels, smallest

ROOT = Path(__file__).parents[2]
SECONDS = 60.0
"""For explaining: a machine that runs other things too must not cut it short."""


@dataclass(frozen=True)
class Proof:
    """What became of one fault in one check of one cell."""

    check: Check
    script: str


def explain_in_process(cell: str, check: str, cache: Path, fault: str = "") -> Proof:
    """Check, judge and explain `cell` in this process, with `fault` in the stack; taken back afterwards."""
    from compat.worker.__main__ import _Session

    models = read_matrix(matrix_path("default"), "cpu").models
    axes = dict(zip(AXES, cell.split("/"), strict=True))
    spec = CellSpec(**axes, checks=(check,))
    (group,) = make_plan([spec]).groups
    model = models[axes["model"]]
    context = context_of(axes, "cpu", model)
    own: dict[str, Any] = group_spec(group, model, "cpu", cache, 0, "standard")
    request = check_request(check, own, spec.attention, 1)
    session = _Session(1)
    try:
        found = judge(check, session.check(request | {"fault": fault}), context)
        limits = broken(found, context)
        asked = explain_request(request, limits, "full") | {"seconds": SECONDS}
        answer = session.explain(asked)
        how = session.group.loaded(request["attention"]).how
    finally:
        session.check({**request, "check": "no check", "fault": ""})  # takes the fault back
    found = explained(found, limits, answer)
    subject = reproduce.Subject(cell, axes, model.row, "cpu", {}, how)
    return Proof(found, reproduce.script(found, subject))


def exit_code(script: Path, fault: str = "") -> int:
    """How `script` ends, on the stack as it is or with `fault` in it."""
    words = [str(script)] if not fault else ["-m", "tests.reproduce.proving", fault, str(script)]
    folder = ROOT if fault else script.parent
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, timeout=300).returncode


def _run_with_fault(fault: str, script: str) -> None:
    import transformers  # noqa: F401  so that the fault finds what it changes

    from compat.faults import catalogue
    from compat.faults.patches import Patches

    catalogue()[fault].apply(Patches())
    runpy.run_path(script, run_name="__main__")


PROVEN = (
    ("sdpa-padding-mask-dropped", "llama/fp32/sdpa/none", "padding"),
    ("sdpa-causal-dropped", "llama/bf16/sdpa/none", "agreement"),
    ("mask-of-wrong-row", "bert/fp32/sdpa/none", "padding"),
    ("sdpa-window-too-wide", "mistral/fp32/sdpa/none", "agreement"),
    ("softcap-dropped", "gemma2/bf16/eager/none", "agreement"),
    ("opt-scaled-twice", "opt/bf16/sdpa/none", "agreement"),
    ("heads-swapped", "gpt2/bf16/sdpa/none", "agreement"),
    ("learned-positions-count-pads", "gpt2/fp32/eager/none", "padding"),
    ("decode-positions-from-cache-length", "llama/fp32/eager/none", "generation"),
    ("cache-crop-keeps-rejected", "llama/fp32/sdpa/none", "cache"),
    ("static-cache-not-reset", "llama/fp32/sdpa/none", "cache"),
    ("cache-reorder-keys-only", "llama/bf16/eager/none", "cache"),
    ("rmsnorm-half-variance", "llama/fp16/eager/none", "agreement"),
    ("probabilities-in-fp8", "llama/bf16/sdpa/none", "agreement"),
    ("dtype-of-checkpoint-wins", "llama/bf16/eager/none", "load"),
    ("loaded-in-training-mode", "gpt2/fp32/eager/none", "load"),
    ("sdpa-math-in-decode", "llama/fp32/sdpa/none", "dispatch"),
    ("codes-swapped", "llama/bf16/eager/bnb-nf4", "quality"),
    ("backward-transposed", "llama/bf16/eager/bnb-nf4", "quality"),
    ("repetition-penalty-counts-pads", "llama/fp32/sdpa/none", "generation"),
    ("mask-dropped-in-backward", "llama/fp32/sdpa/none", "gradient"),
    ("labels-shifted-twice", "llama/fp32/eager/none", "gradient"),
)
"""Fault, cell and check of the table."""


def _table(names: list[str]) -> None:
    """For each fault of PROVEN (or those named): module, call, kernels, how its script ends with and without it."""
    import os

    cache = Path(os.environ["COMPAT_CACHE"]) if "COMPAT_CACHE" in os.environ else Path(tempfile.mkdtemp())
    print("| fault | cell | check | module | smallest call | kernels | with | without |")
    print("|:--|:--|:--|:--|:--|:--|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for fault, cell, check in PROVEN:
            if names and fault not in names:
                continue
            proof = explain_in_process(cell, check, cache, fault)
            evidence, path = proof.check.evidence, Path(folder) / reproduce.file_name(cell, check)
            path.write_text(proof.script, encoding="utf-8")
            ends = (exit_code(path, fault), exit_code(path)) if proof.script else ("-", "-")
            told = (evidence.diverges_at, smallest(evidence), kernels(evidence))
            print("|", " | ".join([fault, cell, check, *(t or "-" for t in told), *map(str, ends)]), "|", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--table"]:
        _table(sys.argv[2:])
    else:
        _run_with_fault(*sys.argv[1:3])
