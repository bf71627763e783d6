"""`compat run --expect` with real workers, and the codes that commands end with around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from compat.cli import main
from compat.exit_codes import FINDINGS, INTERRUPTED, NOTHING, OK, USAGE
from compat.store import read_run

from ..matrix_files import write

MATRIX = """
title = "falcon"

[axes]
model = ["falcon"]
dtype = ["fp32"]
attention = ["eager", "sdpa"]
quantization = ["none"]
checks = ["load"]
"""

KNOWN = """
[[expect]]
cells = "falcon/*/sdpa/*"
checks = ["load"]
outcome = "degraded"
reason = "the switch is ignored"
"""


def test_a_run_counts_what_nobody_expects_and_a_baseline_accepts_it(
    tmp_path: Path, probe_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    matrix = write(tmp_path, MATRIX)
    base = ["--device", "cpu", "--cache", str(probe_cache), "--quiet", "--workers", "1"]
    assert main(["run", str(matrix), *base, "--expect", "--out", "a"]) == USAGE
    assert "no expectations" in capsys.readouterr().err
    assert not (tmp_path / "a").exists(), "nothing half-written"
    write(tmp_path, KNOWN.replace("degraded", "fail"), "e.toml")
    command = ["run", str(matrix), *base, "--expectations", "e.toml", "--out", "a"]
    assert main(command) == FINDINGS, "a degraded load where a failure is expected"
    out = capsys.readouterr().out
    assert "0 failures expected, 1 unexpected" in out
    assert "$ compat baseline update a --out e.toml" in out
    (again,) = [k for c in read_run(tmp_path / "a").cells for k in c.checks if k.attempts > 1]
    assert again.outcome.value == "degraded"
    assert "flaky" not in again.reason
    assert main(["baseline", "update", "a", "--out", "e.toml"]) == OK
    assert "+ falcon/fp32/sdpa/none: load degraded" in capsys.readouterr().out
    assert main(["expect", "a", "--expectations", "e.toml"]) == OK
    assert main(["expect", "a"]) == FINDINGS, "no file: nothing is expected"
    (tmp_path / "expectations").mkdir()
    (tmp_path / "expectations" / "matrix.toml").write_text(KNOWN, encoding="utf-8")
    assert main(["expect", "a"]) == OK, "the file beside the run's matrix"
    assert main(["expect", "a", "--expectations", "absent.toml"]) == USAGE
    assert main(["expect", "absent"]) == USAGE
    assert main(["diff", "a", "a"]) == OK


def test_the_help_names_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == OK
    said = " ".join(capsys.readouterr().out.split())
    for code, meaning in ((OK, "done"), (FINDINGS, "--fail-on"), (INTERRUPTED, "interrupted"), (3, "harness"),
                          (USAGE, "usage"), (NOTHING, "nothing to run")):  # fmt: skip
        assert f"{code} " in said
        assert meaning in said


def test_an_interrupted_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("compat.store.find_run", interrupted)
    assert main(["diff", "a", "b"]) == INTERRUPTED
    assert "interrupted" in capsys.readouterr().err
