"""`compat explain` on stored runs: what it tells, what it writes, and how its scripts end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from compat import cli
from compat.exit_codes import FINDINGS, NOTHING, OK, USAGE
from compat.records import Outcome, Run
from compat.store import read_run, write_run
from compat.stored import reproducer

CPU = Path(__file__).parents[2] / "reports" / "cpu"
FALCON = "falcon/bf16/sdpa/none"


@pytest.fixture(scope="module")
def stored() -> Run:
    """The published run of a CPU."""
    return read_run(CPU)


@pytest.fixture
def small(stored: Run, tmp_path: Path) -> Path:
    """A few cells of it, in a folder that nothing else is beside."""
    wanted = ("falcon/", "llama/bf16/", "gemma2/bf16/", "qwen2_moe/bf16/sdpa/bnb-fp4")
    cells = tuple(c for c in stored.cells if c.id.startswith(wanted))
    folder = tmp_path / "runs" / "today"
    folder.mkdir(parents=True)
    write_run(msgspec.structs.replace(stored, cells=cells), folder)
    return folder


def told(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """What `compat explain` prints, its lines joined."""
    assert cli.main(["explain", *map(str, words)]) == OK
    return " ".join(capsys.readouterr().out.split())


def test_a_failing_cell_is_told_whole(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, small, FALCON)
    assert text.startswith(f"{FALCON}: degraded")
    assert "model falcon FalconForCausalLM" in text
    assert "finding switch-ignored: set_attn_implementation ignored: asked for sdpa, stayed eager" in text
    assert "cache_over_arithmetic 2 <= 1.05 degraded" in text
    assert "bound of cache_over_arithmetic: 2 x key/value heads x head_dim" in text, "a bound has its source"
    assert "passed: agreement, padding, generation" in text
    assert "$ compat run matrices/default.toml --device cpu --cells falcon/bf16/sdpa/none --checks cache" in text
    assert f"$ compat explain {small} {FALCON} --check cache --script falcon_bf16_sdpa_none--cache.py $" in text
    assert "other runs: none was found beside this one" in text


def test_a_pattern_that_fits_one_cell_is_enough(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, small, "falcon/bf16/sdpa-m*/none").startswith("falcon/bf16/sdpa-math/none: degraded")


def test_one_check_is_told_with_every_row_and_its_source(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, small, FALCON, "--check", "agreement")
    assert "agreement: pass" in text
    assert "bound of compared_elements: a comparison over nothing says nothing" in text
    assert "cache: degraded" not in text


def test_a_refusal_is_named_with_its_row(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, small, "gemma2/bf16/sdpa/none")
    assert "load: unsupported" in text
    assert "recognised as: row attention-not-declared of compat/refusals.toml" in text
    assert "raised: " in text


def test_what_was_raised_and_is_no_refusal_says_so(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, small, "qwen2_moe/bf16/sdpa/bnb-fp4", "--check", "load")
    assert "recognised as: nothing that compat/refusals.toml knows" in text
    assert "smallest failing call: one forward of 1 row of 1 token" in text
    assert "| AssertionError: N must be divisible by block_n" in text


def test_a_cell_that_was_left_out_has_its_reason(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "why: flex_attention compiles" in told(capsys, small, "llama/bf16/flex_attention/none")


def test_a_clean_cell_is_short(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, small, "llama/bf16/sdpa/none")
    assert "Checks passed: load, agreement" in text
    assert "$ compat run matrices/default.toml --device cpu --cells llama/bf16/sdpa/none" in text
    assert "--checks" not in text


def test_history_is_of_the_runs_beside_or_of_those_named(
    stored: Run, small: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cell = next(c for c in stored.cells if c.id == FALCON)
    good = msgspec.structs.replace(
        cell,
        outcome=Outcome.PASS,
        checks=tuple(msgspec.structs.replace(c, outcome=Outcome.PASS, reason="") for c in cell.checks),
    )
    info = msgspec.structs.replace(stored.run, id="before", started="2026-01-01T00:00:00Z")
    earlier = msgspec.structs.replace(stored, run=info, cells=(good,))
    for folder in (small.parent / "old", tmp_path / "elsewhere" / "old"):
        folder.mkdir(parents=True)
        write_run(earlier, folder)
    text = told(capsys, small, FALCON)
    assert "2026-01-01T00:00:00Z pass" in text
    assert f"last change on cpu: pass before, degraded since run {stored.run.id}" in text
    assert "load: pass to degraded, cache: pass to degraded, dispatch: pass to degraded" in text
    (small.parent / "old" / "run.json").write_bytes(b"{")
    assert cli.main(["explain", str(small), FALCON]) == OK
    assert "left out of the history" in capsys.readouterr().err
    assert "pass before" in told(capsys, small, FALCON, "--history", tmp_path / "elsewhere" / "old")
    assert cli.main(["explain", str(small), FALCON, "--history", str(tmp_path / "none")]) == USAGE


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["falcon/bf16/sdpaa/none"], "nearest: 'falcon/bf16/sdpa/none'"),
        (["falcon/bf16/sd*/none"], "fits 3 cells: 'falcon/bf16/sdpa/none'"),
        ([FALCON, "--check", "speeed"], "nearest: 'speed'"),
        (["llama/bf16/flex_attention/none", "--check", "load"], "no check 'load' in this run"),
    ],
)
def test_what_cannot_be_meant_is_answered_with_the_nearest(
    words: list[str], said: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(["explain", str(small), *words])
    except SystemExit as end:
        code = int(str(end.code))
    assert code == USAGE
    assert said in capsys.readouterr().err


def test_what_has_no_script_writes_nothing(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--script", "--issue"):
        path = tmp_path / "x"
        assert cli.main(["explain", str(small), "llama/bf16/sdpa/none", option, str(path)]) == NOTHING
        assert "no script shows any check (pass)" in capsys.readouterr().err
        assert not path.exists()
    assert cli.main(["explain", str(small), FALCON, "--script", str(tmp_path / "no" / "folder")]) == USAGE
    assert "No such file" in capsys.readouterr().err


def test_the_script_and_the_text_for_an_issue_are_written_and_true(
    small: Path, stored: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Falcon takes set_attn_implementation("sdpa") and stays on eager (transformers 5.23)."""
    script, issue, page = tmp_path / "s.py", tmp_path / "i.md", tmp_path / "p.md"
    words = ["explain", str(small), FALCON, "--check", "load", "--script", str(script), "--issue", str(issue)]
    code = cli.main([*words, "--try", "--format", "markdown", "--out", str(page)])
    out = capsys.readouterr()
    if "does not show here" in out.out:
        assert code == FINDINGS
        assert not issue.exists(), "no issue of what the installed packages do not have"
        pytest.skip("this stack has not the defect")
    assert code == OK
    assert "exit code 1, the defect shows here too" in out.out
    cell = next(c for c in stored.cells if c.id == FALCON)
    assert script.read_text(encoding="utf-8") == reproducer(stored, cell, cell.checks[0])
    text = issue.read_text(encoding="utf-8")
    assert text.startswith("# falcon (bf16, sdpa): set&#95;attn&#95;implementation ignored")
    assert "**Expected:** set&#95;attn&#95;implementation switches" in text
    assert script.read_text(encoding="utf-8").rstrip() in text
    assert "\nthe defect shows\n" in text
    assert page.read_text(encoding="utf-8").startswith(f"# `{FALCON}: degraded`\n")
    assert str(script) in page.read_text(encoding="utf-8")


def test_the_script_of_what_is_mended_ends_with_0_and_no_issue_is_written(
    stored: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that is as asked, in a run that says that it was not."""
    cell = next(c for c in stored.cells if c.id == FALCON)
    llama = next(c for c in stored.cells if c.id == "llama/bf16/sdpa/none")
    wrong = msgspec.structs.replace(llama, outcome=cell.outcome, checks=(cell.checks[0],))
    write_run(msgspec.structs.replace(stored, cells=(wrong,)), tmp_path)
    issue, script = tmp_path / "i.md", tmp_path / "s.py"
    words = ["explain", str(tmp_path), llama.id, "--script", str(script), "--issue", str(issue), "--try"]
    assert cli.main(words) == FINDINGS
    out = capsys.readouterr()
    assert "exit code 0, the defect does not show here" in out.out
    assert "was not written" in out.err
    assert not issue.exists()
    assert subprocess.run([sys.executable, str(script)], capture_output=True, timeout=300).returncode == 0


def test_without_a_try_the_output_is_said_to_be_the_runs(small: Path, tmp_path: Path) -> None:
    issue = tmp_path / "i.md"
    words = ["explain", str(small), "qwen2_moe/bf16/sdpa/bnb-fp4", "--issue", str(issue), "--out", str(tmp_path / "o")]
    assert cli.main(words) == OK
    text = issue.read_text(encoding="utf-8")
    assert "(the script was not run for this text)" in text
    assert "AssertionError: N must be divisible by block_n" in text
    assert "the call returns, or raises an error that says what is not supported" in text
