"""Faults of several classes: the evidence names the module, and the script shows the fault and nothing without it.

A few here; `python -m tests.reproduce.proving --table` proves one of every class.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from compat import cli, exit_codes, reproduce
from compat.axes import AXES
from compat.builtin import matrix_path
from compat.matrix import read_matrix
from compat.reproduce import FOLDER
from compat.store import read_run

from ..execute.running import run
from ..matrix_files import write
from .proving import exit_code, explain_in_process


@pytest.mark.parametrize(
    ("fault", "cell", "check", "module"),
    [
        ("opt-scaled-twice", "opt/bf16/sdpa/none", "agreement", "model.decoder.layers.0.self_attn"),
        ("cache-crop-keeps-rejected", "llama/fp32/sdpa/none", "cache", "model.layers.0.self_attn"),
        ("learned-positions-count-pads", "gpt2/fp32/eager/none", "padding", "transformer.wpe"),
    ],
)
def test_the_module_is_named_and_the_script_tells(
    fault: str, cell: str, check: str, module: str, probe_cache: Path, tmp_path: Path
) -> None:
    proof = explain_in_process(cell, check, probe_cache, fault)
    assert proof.check.evidence.diverges_at == module
    assert proof.check.evidence.minimal["kernels"]
    script = tmp_path / "script.py"
    script.write_text(proof.script, encoding="utf-8")
    assert exit_code(script, fault) == 1
    assert exit_code(script) == 0


def test_what_a_library_raises_is_one_token_and_its_script_waits_for_that_exception(
    probe_cache: Path, tmp_path: Path
) -> None:
    """bitsandbytes 0.50 packs 4-bit weights for a CPU in blocks, and raises for a linear of one output."""
    proof = explain_in_process("qwen2_moe/bf16/eager/bnb-nf4", "load", probe_cache)
    minimal = proof.check.evidence.minimal
    if "block_n" not in proof.check.reason:
        pytest.skip("this stack has not the defect")
    assert minimal["raises"]["type"] == "AssertionError"
    assert (minimal["case"]["kind"], [len(row) for row in minimal["case"]["rows"]]) == ("forward", [1])
    script = tmp_path / "script.py"
    script.write_text(proof.script, encoding="utf-8")
    assert exit_code(script) == 1
    axes = dict(zip(AXES, ("qwen2_moe", "bf16", "eager", "none"), strict=True))
    row = read_matrix(matrix_path("default"), "cpu").models["qwen2_moe"].row
    script.write_text(reproduce.script(proof.check, reproduce.Subject("unquantized", axes, row)), encoding="utf-8")
    assert exit_code(script) == 0


REAL = """
title = "real defects"
checks = ["load"]

[axes]
model = ["falcon"]
dtype = ["fp32"]
attention = ["eager", "sdpa"]
quantization = ["none"]
"""


def test_a_defect_of_the_stack_has_its_script_beside_the_run(
    tmp_path: Path, probe_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Falcon takes set_attn_implementation("sdpa") and stays on eager (transformers 5.23)."""
    matrix = write(tmp_path, REAL)
    stored = run(matrix, tmp_path / "run", probe_cache)
    cell = next(c for c in stored.cells if c.axes["attention"] == "sdpa")
    check = cell.checks[0]
    if "stayed eager" not in check.reason:
        pytest.skip("this stack has not the defect")
    path = tmp_path / "run" / FOLDER / check.evidence.script
    assert subprocess.run([sys.executable, str(path)], capture_output=True, timeout=300).returncode == 1
    assert cli.main(["reproduce", str(tmp_path / "run"), cell.id]) == 0
    assert capsys.readouterr().out == path.read_text(encoding="utf-8")
    assert cli.main(["reproduce", str(tmp_path / "run"), "falcon/fp32/eager/none"]) == exit_codes.NOTHING
    assert cli.main(["reproduce", str(tmp_path / "run"), "falcon/fp32/sdpaa/none"]) == exit_codes.USAGE
    assert read_run(tmp_path / "run") == stored
