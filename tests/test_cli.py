"""The `compat` command as a user types it: exit codes, messages, interruptions, full disks, closed pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compat import store
from compat.cli import main
from compat.exit_codes import FINDINGS, INTERNAL, INTERRUPTED, NOTHING, OK, USAGE
from compat.matrix import CellSpec, read_matrix
from compat.records import Outcome, Run
from compat.store import read_journal, read_run

from .execute.running import alive, command, environment, outcomes, start, wait_until, written_pid
from .matrix_files import TINY, write

AT_AGREEMENT = "sdpa:65"
UNDER_WAY = ("opt/fp32/sdpa/none", "agreement")

ABSENT = """
title = "Nothing that loads"
checks = ["load", "agreement"]

[axes]
model = ["torn"]
dtype = ["fp32"]
attention = ["eager"]
quantization = ["none"]
"""


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    """A matrix whose only model is a folder without a checkpoint: it fails within a second."""
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text("{", encoding="ascii")
    write(tmp_path, '[models.torn]\nsource = "folder"\npath = "torn"\ntask = "causal-lm"\n', "models.toml")
    return write(tmp_path, ABSENT)


# -- without a worker --------------------------------------------------------------------------------------------


def test_list_says_what_would_run_and_why_the_rest_would_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "default", "--device", "cpu"]) == OK
    out = capsys.readouterr().out
    assert "device cpu: as asked" in out
    assert "flex_attention compiles for" in out, "a cell that is left out is told with its reason"
    assert "min with one worker" in out


def test_list_ids_gives_one_cell_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write(tmp_path, TINY)
    assert main(["list", str(path), "--device", "cpu", "--ids"]) == OK
    assert capsys.readouterr().out.split() == [c.id for c in read_matrix(path, "cpu").cells]
    assert main(["list", str(path), "--device", "cpu", "--ids", "--cells", "llama/*", "*/eager/*"]) == OK
    assert len(capsys.readouterr().out.split()) == 3


@pytest.mark.parametrize("arguments", [["list", "default"], ["report", "absent"], ["--help"]])
def test_a_command_that_runs_nothing_does_not_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom compat.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "print(heavy, file=sys.stderr)\nsys.exit(len(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"imported {done.stderr.splitlines()[-1]}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list", "default", "--checks", "agrement"], "unknown check 'agrement'; nearest: 'agreement'"),
        (["run", "default", "--fail-on", "fial"], "unknown outcome 'fial'; nearest: 'fail'"),
        (["run", "default", "--fail-on", "pass"], "unknown outcome 'pass'"),
        (["run", "default", "--workers", "0"], "'0' is not a whole number above 0"),
        (["run", "default", "--timeout", "-1"], "'-1' is not a number of seconds above 0"),
        (["run", "default", "--timeout", "nan"], "'nan' is not a number of seconds above 0"),
        (["run", "default", "--memory-limit", "8X"], "'8X' is not a size such as 8G"),
        (["run", "default", "--memory-limit", "0"], "'0' is not a size such as 8G"),
        (["run", "default", "--device", "tpu"], "'tpu'"),
        (["run", "default", "--no-such-flag"], "--no-such-flag"),
        (["rnu", "default"], "'rnu'"),
        (["run"], "MATRIX"),
    ],
)
def test_wrong_arguments_are_usage_errors_that_say_what_would_be_right(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == USAGE
    assert says in capsys.readouterr().err


def test_a_number_that_is_too_large_for_a_size_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "default", "--memory-limit", "inf"])
    assert ended.value.code == USAGE


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list", "defualt.toml"], "No such file or directory; nearest valid: 'default.toml'"),
        (["report", "absent"], "absent: No such file"),
        (["report", "default.toml"], "default.toml: not a stored run"),
        (["report", "x", "--format", "markdwon"], "unknown format 'markdwon'; nearest: 'markdown'"),
        (["run", "default.toml", "--resume", "absent"], "absent/cells.jsonl: No such file"),
        (["run", "default.toml", "--out", "default.toml/x"], "cannot be written"),
    ],
)
def test_wrong_files_are_usage_errors_that_name_them(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, TINY, "default.toml")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == USAGE
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["list", "run"])
def test_nothing_selected_has_an_exit_code_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "default", "--device", "cpu", "--cells", "nothing/*"]) == NOTHING
    assert "nothing/*" in capsys.readouterr().err


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == USAGE
    assert "COMMAND" in capsys.readouterr().out


def test_default_works_from_any_folder(tmp_path: Path) -> None:
    done = command("list", "default", "--device", "cpu", "--ids", cwd=tmp_path)
    assert done.returncode == OK, done.stderr
    assert "llama/bf16/sdpa/none" in done.stdout.split()
    assert not list(tmp_path.iterdir()), "listing writes nothing"


@pytest.mark.parametrize("arguments", [
    pytest.param(["list", "default", "--ids"], id="more than a buffer"),
    pytest.param(["list", "default", "--ids", "--cells", "llama/fp32/sdpa/*"], id="less than a buffer"),
])  # fmt: skip
def test_a_reader_that_has_left_is_no_error(arguments: list[str]) -> None:
    """`compat list default --ids | head -1`, with the reader gone before the first byte."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([sys.executable, "-m", "compat", *arguments], env=environment(), stdout=writer,
                              stderr=subprocess.PIPE, text=True, check=False)  # fmt: skip
    finally:
        os.close(writer)
    assert "Traceback" not in done.stderr
    assert "BrokenPipeError" not in done.stderr, done.stderr
    assert done.returncode == OK


def test_an_exception_of_ours_is_not_mistaken_for_a_finding() -> None:
    """Exit code 1 means a result that --fail-on names; the harness's own failures are 3."""
    code = "import compat.store, compat.cli\ndef broken(where): raise RuntimeError('ours')\n" \
           "compat.store.read_run = broken\nraise SystemExit(compat.cli.main(['report', 'x']))"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert "ours" in done.stderr
    assert done.returncode == INTERNAL


# -- with a worker -----------------------------------------------------------------------------------------------


def test_findings_count_only_when_asked_for(torn: Path, probe_cache: Path, tmp_path: Path) -> None:
    done = command("run", torn, "--device", "cpu", "--out", tmp_path / "run", "--cache", probe_cache, "-q",
                   "--fail-on", "fail,crash")  # fmt: skip
    assert done.returncode == FINDINGS, done.stderr
    stored = read_run(tmp_path / "run")
    assert stored.cells[0].outcome == Outcome.FAIL
    assert "load raised" in stored.cells[0].reason
    assert "torn" in done.stdout
    for name in ("run.json", "report.md", "report.html", "cells.jsonl"):
        assert (tmp_path / "run" / name).stat().st_size, f"{name} was not written"
    assert done.stderr == "", "-q is silent"


def test_a_run_that_found_failures_is_done(torn: Path, probe_cache: Path, tmp_path: Path) -> None:
    done = command("run", torn, "--device", "cpu", "--out", tmp_path / "run", "--cache", probe_cache)
    assert done.returncode == OK, done.stderr
    assert "1/1" in done.stderr, "progress goes to stderr, one line a load group"
    again = command("run", torn, "--device", "cpu", "--out", tmp_path / "run", "--cache", probe_cache)
    assert again.returncode == USAGE
    assert "already holds a run: continue it with --resume" in again.stderr


def _interrupted(tmp_path: Path, cache: Path, sent: signal.Signals) -> tuple[subprocess.CompletedProcess[str], int]:
    """A run whose worker hangs in one check, ended there by `sent`; and the worker's pid."""
    marker = tmp_path / "marker"
    arguments = ("run", write(tmp_path, TINY), "--device", "cpu", "--out", tmp_path / "run", "--cache", cache)
    process = start(*arguments, env=environment("hang", AT_AGREEMENT, marker))
    pid = written_pid(marker)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err), pid


def _resumed(tmp_path: Path, cache: Path, clean: Run) -> Run:
    """Continue the run without the fault: it must end as one that was never interrupted."""
    done = command("run", tmp_path / "matrix.toml", "--device", "cpu", "--resume", tmp_path / "run", "--cache", cache)
    assert done.returncode == OK, done.stderr
    stored = read_run(tmp_path / "run")
    assert stored.run.complete
    assert outcomes(stored) == outcomes(clean)
    _, lines = read_journal(tmp_path / "run")
    tasks = [(line.cell, line.check.name) for line in lines]
    assert len(tasks) == len(set(tasks)) == len(outcomes(clean)), "a check that had its answer was asked again"
    return stored


@pytest.mark.parametrize("sent", [signal.SIGINT])
def test_an_interrupted_run_keeps_its_results_and_resumes(
    tmp_path: Path, probe_cache: Path, clean: Run, sent: signal.Signals
) -> None:
    done, pid = _interrupted(tmp_path, probe_cache, sent)
    assert done.returncode == INTERRUPTED, done.stderr
    assert "Traceback" not in done.stderr
    assert "--resume" in done.stderr
    assert not alive(pid), "the worker outlived the command"
    partial = read_run(tmp_path / "run")
    assert not partial.run.complete
    assert set(outcomes(partial)) == set(outcomes(clean)), "every planned check appears"
    unanswered = {task for task, outcome in outcomes(partial).items() if outcome == Outcome.NOT_RUN}
    assert UNDER_WAY in unanswered
    assert ("opt/fp32/eager/none", "memory") not in unanswered
    reasons = {(cell.id, check.name): check.reason for cell in partial.cells for check in cell.checks}
    assert {reasons[task] for task in unanswered} == {"interrupted"}
    assert "interrupted" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8").lower()
    resumed = _resumed(tmp_path, probe_cache, clean)
    assert resumed.run.id == partial.run.id


def test_a_killed_run_leaves_no_worker_and_resumes(tmp_path: Path, probe_cache: Path, clean: Run) -> None:
    done, pid = _interrupted(tmp_path, probe_cache, signal.SIGKILL)
    try:
        assert done.returncode == -signal.SIGKILL
        partial = read_run(tmp_path / "run")
        assert not partial.run.complete
        assert UNDER_WAY not in {(line.cell, line.check.name) for line in read_journal(tmp_path / "run")[1]}
        assert outcomes(partial)["opt/fp32/eager/none", "agreement"] == Outcome.PASS
        _resumed(tmp_path, probe_cache, clean)
    finally:
        orphan = alive(pid)
        if orphan:
            os.kill(pid, signal.SIGKILL)
    assert not orphan, "a worker that was busy when the run was killed outlives it"


def test_an_idle_worker_ends_with_its_parent(tmp_path: Path) -> None:
    """Its requests come from a pipe; when the parent dies, the pipe ends, and so does the worker."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from compat.execute.worker_process import WorkerProcess\n"
        f"worker = WorkerProcess(Path({str(tmp_path / 'log')!r}))\nworker.start()\n"
        "print(worker.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    wait_until(lambda: not alive(pid), "the worker of a killed parent ended")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--cells", "*/eager/*"], "another selection of cells or checks"),
        (["--checks", "load"], "another selection of cells or checks"),
        (["--seed", "5"], "started with seed"),
    ],
)  # fmt: skip
def test_a_run_is_resumed_only_as_it_was_started(
    tmp_path: Path, change: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = _unfinished(tmp_path)
    assert main(["run", str(matrix), "--device", "cpu", "--resume", str(tmp_path / "run"), *change]) == USAGE
    assert says in capsys.readouterr().err


def test_a_run_of_a_changed_matrix_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = _unfinished(tmp_path)
    write(tmp_path, TINY + "# a comment\n")
    assert main(["run", str(matrix), "--device", "cpu", "--resume", str(tmp_path / "run")]) == USAGE
    assert "has changed since" in capsys.readouterr().err


def _unfinished(folder: Path) -> Path:
    """A matrix, and a run of it that ended before its first result."""
    from compat.session import Options, prepare

    text = TINY.replace('["opt", "llama"]', '["llama"]').replace(
        '["load", "agreement", "memory"]', '["load", "memory"]'
    )
    matrix = write(folder, text)
    prepare(Options(matrix=matrix, device="cpu", out=folder / "run")).journal.close()
    return matrix


def test_a_run_of_another_stack_is_not_resumed(tmp_path: Path, probe_cache: Path) -> None:
    """Upgrading torch between the two halves of a run must not give one run of a stack that never was."""
    from compat.records import Environment, StackIdentity
    from compat.session import Options, SessionError, prepare

    matrix = _unfinished(tmp_path)
    journal = store.Journal(tmp_path / "run", None)
    other = Environment(fingerprint="0123456789abcdef", packages={"torch": "2.5.0"})
    journal.add(store.Seen(environment=other, stack=StackIdentity(name="current", sha256="0")))
    journal.close()
    session = prepare(Options(matrix=matrix, device="cpu", resume=tmp_path / "run", cache=probe_cache))
    with pytest.raises(SessionError, match=r"stack|environment"):
        session.execute()


@pytest.fixture(params=["12k", "24k"], ids=["no room for the journal", "no room for run.json"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system that takes the header of a journal and not all of its results, or all of them and not run.json."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small tmpfs (root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_costs_no_result(small_disk: Path, tmp_path: Path, probe_cache: Path, clean: Run) -> None:
    rescue = tmp_path / "temporary"
    rescue.mkdir()
    done = command("run", write(tmp_path, TINY), "--device", "cpu", "--out", small_disk / "run", "--cache", probe_cache,
                   env=environment() | {"TMPDIR": str(rescue)})  # fmt: skip
    assert done.returncode == INTERNAL, done.stderr
    assert "Traceback" not in done.stderr
    (folder,) = rescue.glob("compat-rescued-*")
    assert str(folder) in done.stderr, "the user must be told where the results are"
    stored = read_run(folder)
    assert outcomes(stored) == outcomes(clean)
    assert stored.run.complete
    assert (folder / "report.html").stat().st_size
    _, lines = read_journal(small_disk / "run")
    kept = {(line.cell, line.check.name): line.check.outcome for line in lines}
    assert kept.items() <= outcomes(clean).items(), "the journal holds whole lines only"
    assert not (small_disk / "run" / "run.json").exists()
    assert "No space left on device" in done.stderr


def test_a_disk_that_fills_up_with_the_reports_costs_no_result(tmp_path: Path, probe_cache: Path, clean: Run) -> None:
    """/dev/full in the place of a report's temporary file is refused as a full disk refuses it."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom compat.cli import main\n"
        "folder = Path(sys.argv[1])\nfolder.mkdir()\n"
        "(folder / f'.report.html.{os.getpid()}').symlink_to('/dev/full')\n"
        "raise SystemExit(main(['run', sys.argv[2], '--device', 'cpu', '--out', sys.argv[1], '--cache', sys.argv[3]]))"
    )
    out = tmp_path / "run"
    text = TINY.replace('["opt", "llama"]', '["llama"]').replace('["load", "agreement", "memory"]', '["load"]')
    env = environment() | {"TMPDIR": str(tmp_path)}
    words = [sys.executable, "-c", code, str(out), str(write(tmp_path, text)), str(probe_cache)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert read_run(out).run.complete, "run.json was written before the reports"
    assert done.returncode == INTERNAL


# -- report ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(clean: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stored run."""
    folder = tmp_path_factory.mktemp("stored")
    store.write_run(clean, folder)
    return folder


@pytest.mark.parametrize("form", ["terminal", "markdown", "html", "json"])
def test_a_stored_run_is_rendered_in_every_format(
    stored: Path, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(stored), "--format", form]) == OK
    printed = capsys.readouterr().out
    assert "llama" in printed
    assert main(["report", str(stored / "run.json"), "--format", form, "--out", str(tmp_path / "out")]) == OK
    assert (tmp_path / "out").read_text(encoding="utf-8").strip()[:200] == printed.strip()[:200]


def test_judging_again_by_the_same_criteria_changes_no_outcome(clean: Run) -> None:
    from compat.stored import rejudged

    again = rejudged(clean)
    assert outcomes(again) == outcomes(clean)
    assert again.cells == clean.cells


def test_a_report_that_cannot_be_written_is_a_usage_error(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(stored), "--format", "html", "--out", "/proc/nowhere/report.html"]) == USAGE
    assert "/proc/nowhere/report.html" in capsys.readouterr().err


def test_the_repro_of_a_check_asks_that_check_of_that_cell(clean: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """The words of the shell command, given to `list` in place of `run`, select just that."""
    import shlex

    check = clean.cells[1].checks[1]
    words = shlex.split(check.evidence.repro)
    assert words[:2] == ["compat", "run"]
    path = write(tmp_path, TINY)
    assert main(["list", str(path), *words[3:]]) == OK
    assert "1 cells, 1 checks" in capsys.readouterr().out


def test_an_excluded_cell_is_stored_with_its_reason(tmp_path: Path) -> None:
    from compat.session import Options, prepare

    text = TINY + '\n[[exclude]]\nmodel = ["opt"]\nreason = "left out for a test"\n'
    session = prepare(Options(matrix=write(tmp_path, text), device="cpu", out=tmp_path / "run"))
    left_out: tuple[CellSpec, ...] = session.plan.left_out
    run_, _ = session.finish()
    assert {c.id for c in run_.cells if c.reason == "left out for a test"} == {c.id for c in left_out}
    assert len(left_out) == 2


def test_list_models_says_what_is_declared_beside_what_was_measured(
    capsys: pytest.CaptureFixture[str], clean: Run, tmp_path: Path
) -> None:
    store.write_run(clean, tmp_path)
    model = clean.cells[0].axes["model"]
    words = ["list", "--models", "--device", "cpu", "--cells", f"{model}/*", "--run", str(tmp_path), "--format=json"]
    assert main(words) == OK
    data = json.loads(capsys.readouterr().out)
    assert data["run"] == clean.run.id
    (row,) = data["models"]
    assert row["model"] == model
    assert row["declares"]["sdpa"] is True
    assert row["measured"]["eager"] == "works"
    assert row["differences"] == []
    load = clean.cells[0].check("load")
    assert load is not None
    assert load.evidence.facts["declares"] == row["declares"], "the run stores what its classes declare"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["list"], "the following arguments are required: MATRIX"),
        (["list", "--models", "--format", "markdow"], "unknown value 'markdow'; nearest: 'markdown'"),
        (["list", "--models", "--run", "no/such/run"], "no/such/run"),
        (["list", "--models", "--ids"], "not allowed with"),
        (["list", "--models", "--stack", "curent"], "nearest"),
    ],
)
def test_list_models_names_what_is_wrong(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(words)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == USAGE
    assert says in capsys.readouterr().err


def test_list_models_of_nothing_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--models", "--device", "cpu", "--cells", "no/such/cell/*"]) == NOTHING
    assert "nothing selected" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "list", "list --models"])
def test_a_pattern_that_fits_nothing_beside_others_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*command.split(), *([] if "--models" in command else ["default"]), "--device", "cpu"]
    assert main([*words, "--cells", "llama/fp32/eager/none", "lama/*"]) == USAGE
    assert "fits lama/*; 'lama': nearest: 'llama'" in capsys.readouterr().err
