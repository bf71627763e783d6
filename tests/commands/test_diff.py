"""`compat diff` as a user types it: exit codes, messages, formats, names of stored runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from compat import store
from compat.cli import main
from compat.exit_codes import FINDINGS, INTERNAL, NOTHING, OK, USAGE
from compat.records import Outcome, Run
from compat.store import StoreError, find_run

from ..compare.test_diff import A, cell, check, run_of


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with runs in compat-runs/: base, worse, lost, other."""
    stored = {
        "base": run_of(cell(A, check(Outcome.PASS))),
        "worse": run_of(cell(A, check(Outcome.FAIL))),
        "lost": run_of(cell(A, check(Outcome.NOT_RUN))),
        "other": run_of(cell("opt/fp32/eager/none", check(Outcome.PASS))),
    }
    for name, run in stored.items():
        folder = tmp_path / store.RUN_FOLDERS[0] / name
        folder.mkdir(parents=True)
        store.write_run(run, folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["base", "base"], OK),
        (["base", "worse"], FINDINGS),
        (["worse", "base"], OK),
        (["base", "worse", "--fail-on", "coverage"], OK),
        (["base", "lost"], OK),
        (["base", "lost", "--fail-on", "regressed,coverage"], FINDINGS),
        (["lost", "worse"], OK),
        (["lost", "worse", "--fail-on", "new-failures"], FINDINGS),
        (["base", "other"], NOTHING),
    ],
)
def test_exit_codes(runs: Path, arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", *arguments]) == code
    said = capsys.readouterr()
    assert ("nothing comparable" in said.err) == (code == NOTHING)
    assert ("Gate: clean." in said.out) == (code != FINDINGS)


def test_a_fault_of_ours_is_no_finding(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: Run) -> Run:
        raise RuntimeError("a bug")

    monkeypatch.setattr("compat.stored.rejudged", broken)
    assert main(["diff", "base", "worse", "--rejudge"]) == INTERNAL


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bas", "worse"], "bas: no such file or folder, nor a run in compat-runs/ or reports/; nearest: 'base'"),
        (["base", "broken"], "compat-runs/broken/run.json"),
        (["base", "worse", "--fail-on", "regresed"], "unknown gate 'regresed'; nearest: 'regressed'"),
        (["base", "worse", "--least-effect", "0"], "'0' is not a percentage above 0"),
        (["base", "worse", "--format", "pdf"], "'pdf'"),
        (["base"], "HEAD"),
        (["base", "worse", "--out", "no/such/folder/x.md"], "no/such/folder/x.md: No such file"),
    ],
)
def test_what_cannot_be_used_is_a_usage_error_that_says_what_would_be_right(
    runs: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "compat-runs" / "broken").mkdir()
    (runs / "compat-runs" / "broken" / "run.json").write_text('{"schema": 1}', encoding="utf-8")
    try:
        code = main(["diff", *arguments])
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code == USAGE
    assert says in capsys.readouterr().err


def test_formats_and_files(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "base", "worse", "--format", "json"]) == FINDINGS
    page = json.loads(capsys.readouterr().out)
    assert page["schema"] == "compat-diff/1"
    assert page["cells"][0]["kind"] == "regressed"
    assert main(["diff", "base", "worse", "--format", "markdown", "--out", "diff.md"]) == FINDINGS
    assert "**pass → fail** in 1 cell" in (runs / "diff.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == ""


def test_a_run_is_found_by_path_or_by_the_name_of_its_folder(runs: Path) -> None:
    assert find_run("base") == Path("compat-runs/base")
    assert find_run("compat-runs/base/run.json") == Path("compat-runs/base/run.json")
    (runs / "base").mkdir()
    assert find_run("base") == Path("base"), "what is here comes first"
    with pytest.raises(StoreError):
        find_run("../base")


def test_a_run_that_was_killed_is_compared_as_far_as_it_came(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(cell(A, check(Outcome.PASS)))
    partial = msgspec.structs.replace(run, run=msgspec.structs.replace(run.run, complete=False))
    store.write_run(partial, runs / "compat-runs" / "lost")
    assert main(["diff", "base", "lost"]) == OK
    assert "PARTIAL: head did not finish." in capsys.readouterr().out


def test_a_diff_does_not_import_torch(runs: Path) -> None:
    code = (
        "import sys\nfrom compat.cli import main\nmain(['diff', 'base', 'worse'])\n"
        "sys.exit(len({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, check=False)
    assert done.returncode == 0
