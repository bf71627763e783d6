"""`compat speed` as a user types it, and how a grid and a baseline reach the worker."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from compat import cli, store
from compat.builtin import matrix_path
from compat.cli import main
from compat.commands import run as commands
from compat.execute.local import Configuration, LocalEngine
from compat.exit_codes import NOTHING, OK, USAGE
from compat.matrix import MatrixError, read_matrix
from compat.plan import make_plan
from compat.records import Check, Measurement, Outcome, Run
from compat.session import Options, Session, SessionError, prepare
from compat.speed.settings import Item, SpeedOptions, SpeedSettings

from ..execute.running import command
from ..matrix_files import TINY, write

MATRIX = TINY.replace('["opt", "llama"]', '["llama"]').replace(
    '["load", "agreement", "memory"]', '["load", "agreement", "speed", "memory"]'
)
"""Two cells, eager and sdpa, one check more than `compat speed` asks."""

ASKED = ("--device", "cpu", "--grid", "16,2x32@0.3", "--budget", "0.02", "--baseline", "sdpa")


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    return write(tmp_path, MATRIX)


# -- without a worker --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--grid", "4*256"], "'4*256' is no point like 4x2048@0.3 (rows x tokens @ padding share); nearest: '4x256'"),
        (["--grid", "4x256@30"], "nearest: '4x256@0.3'"),
        (["--grid", ","], "',' holds no point"),
        (["--batch", "1,0"], "'0' is not a whole number above 0"),
        (["--padding", "1"], "'1' is not a share of at least 0 and below 1"),
        (["--budget", "0"], "'0' is not a number of seconds above 0"),
        (["--baseline", "spda"], "nearest: 'sdpa'"),
        (["--baseline", "*/bf61/sdpa/none"], "unknown dtype 'bf61'; nearest: 'bf16'"),
        (["--checks", "load"], "--checks"),
        (["--workers", "2"], "--workers"),
    ],
)
def test_wrong_words_are_usage_errors_that_say_what_would_be_right(
    arguments: list[str], says: str, matrix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["speed", str(matrix), "--device", "cpu", *arguments])
    assert ended.value.code == USAGE
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--baseline", "*/bf16/sdpa/none"], USAGE, "nearest valid: 'llama/fp32/sdpa/none'"),
        (["--grid", "256@0.3"], USAGE, "--grid: 1x256@0.3 cannot be: the longest row has no padding"),
        (["--cells", "nothing/*"], NOTHING, "nothing/*"),
    ],
)
def test_what_a_matrix_does_not_have_is_named(
    arguments: list[str], code: int, says: str, matrix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["speed", str(matrix), "--device", "cpu", *arguments]) == code
    assert says in capsys.readouterr().err


def test_without_a_matrix_its_own_is_taken_and_has_a_grid(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed", "--device", "cpu", "--cells", "nothing/*"]) == NOTHING
    assert "speed.toml" in capsys.readouterr().err
    for device in ("cpu", "cuda"):
        matrix = read_matrix(matrix_path("speed"), device)
        assert len(matrix.settings.speed.points) > 1
        assert any("speed" in c.checks for c in matrix.cells)


def test_cells_without_a_speed_check_are_not_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed", str(write(tmp_path, TINY)), "--device", "cpu"]) == NOTHING
    assert "no cell with a speed check" in capsys.readouterr().err


def test_a_baseline_of_the_matrix_is_checked_against_its_cells(tmp_path: Path) -> None:
    path = write(tmp_path, MATRIX + '[speed]\nbaseline = "*/bf16/*/none"\n')
    with pytest.raises(MatrixError, match=r"matrix\.toml: speed\.baseline: .*; nearest valid: 'llama/fp32/"):
        prepare(Options(matrix=path, device="cpu", out=tmp_path / "run"))


def _engine(path: Path, settings: SpeedSettings, **more: object) -> LocalEngine:
    matrix = read_matrix(path, "cpu")
    named = {c.id: next(o for o in matrix.cells if o.attention == "sdpa") for c in matrix.cells}
    own = Configuration(("cpu",), path.parent, path.parent, matrix.models, speed=settings, baselines=named, **more)  # type: ignore[arg-type]
    return LocalEngine(make_plan(matrix.cells), own, lambda cell, check: None)


def test_a_worker_gets_what_is_set_and_the_whole_baseline(matrix: Path) -> None:
    settings = SpeedOptions(items=(Item(64, 4, 0.3),), budget_seconds=2.0).over(SpeedSettings())
    engine = _engine(matrix, settings)
    cell = read_matrix(matrix, "cpu").cells[0]
    sent = json.loads(json.dumps(engine._speed(cell, "cpu")))
    assert (sent["points"], sent["budget_seconds"], sent["extras"]) == ([[4, 64, 0.3]], 2.0, True)
    baseline = sent["baseline"]
    assert (baseline["cell"], baseline["attention"]["name"]) == ("llama/fp32/sdpa/none", "sdpa")
    assert (baseline["group"]["key"], baseline["group"]["dtype"]) == ("llama/fp32/none", "fp32")


def test_a_grid_has_the_time_that_it_needs_and_an_explicit_limit_stands(matrix: Path) -> None:
    cell = read_matrix(matrix, "cpu").cells[0]
    grid = SpeedOptions(items=(Item(64),), batches=(1, 2), budget_seconds=9.0).over(SpeedSettings())
    plain = _engine(matrix, SpeedSettings())
    assert _engine(matrix, grid)._timeout(cell, "speed") >= plain._timeout(cell, "speed") + 2 * 2 * 9.0
    assert _engine(matrix, grid)._timeout(cell, "load") == plain._timeout(cell, "load")
    assert _engine(matrix, grid, timeout_seconds=7.0)._timeout(cell, "speed") == 7.0


def _prepared(path: Path, folder: Path, asked: SpeedOptions, resume: bool = False) -> Session:
    where = {"resume": folder} if resume else {"out": folder}
    options = Options(matrix=path, device="cpu", checks=commands.SPEED_CHECKS, speed=asked, workers=1, **where)  # type: ignore[arg-type]
    return prepare(options)


def test_resuming_refuses_other_settings(matrix: Path, tmp_path: Path) -> None:
    asked = SpeedOptions(items=(Item(64),), budget_seconds=1.0)
    _prepared(matrix, tmp_path / "run", asked).journal.close()
    _prepared(matrix, tmp_path / "run", asked, resume=True).journal.close()
    for other in (
        SpeedOptions(items=(Item(128),), budget_seconds=1.0),
        SpeedOptions(items=(Item(64),), budget_seconds=2.0),
        SpeedOptions(items=(Item(64),), budget_seconds=1.0, baseline="*/*/sdpa/*"),
    ):
        with pytest.raises(SessionError, match=r"cannot be resumed: it was started with speed .*points=1x64@0"):
            _prepared(matrix, tmp_path / "run", other, resume=True)


def test_the_command_that_continues_an_interrupted_run_asks_for_the_same(matrix: Path, tmp_path: Path) -> None:
    words = ["speed", str(matrix), "--cells", "llama/*", *ASKED, "--seed", "3", "--out", str(tmp_path / "run")]
    arguments = cli._parser().parse_args(words)
    asked = SpeedOptions(items=arguments.grid, budget_seconds=arguments.budget, baseline=arguments.baseline)
    options = commands._options(arguments, checks=commands.SPEED_CHECKS, workers=1, speed=asked)
    session = prepare(options)
    session.journal.close()
    again = shlex.split(commands._again(arguments, session, tmp_path / "run"))
    parsed = cli._parser().parse_args(again[1:])
    resumed = SpeedOptions(items=parsed.grid, budget_seconds=parsed.budget, baseline=parsed.baseline)
    prepare(commands._options(parsed, checks=commands.SPEED_CHECKS, workers=1, speed=resumed)).journal.close()


@pytest.mark.parametrize(
    ("measured", "says"),
    [
        ([("prefill_speedup", 1.25), ("decode_speedup", 0.9)], "prefill 1.25x, decode 0.90x"),
        ([("prefill_speedup", 2.5), ("prefill_speedup", 1.0)], "prefill 1.00x to 2.50x at 2 points"),
        ([("prefill_rate", 12345.0), ("decode_speedup", None)], "prefill 12,345/s"),
        ([("prefill_rate", 9.0), ("decode_rate", 8.0), ("decode_contention", 0.5)], "prefill 9/s, decode 8/s ?"),
        ([], ""),
    ],
)
def test_progress_shows_what_was_timed(measured: list[tuple[str, float | None]], says: str) -> None:
    from compat.progress import timed_figures

    figures = tuple(Measurement(name=n, unit="x", value=v) for n, v in measured)
    assert timed_figures(Check(name="speed", outcome=Outcome.PASS, measurements=figures)) == says


# -- with a worker -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory, probe_cache: Path) -> tuple[Run, str]:
    """A stored run of `compat speed`, and what it said on stderr."""
    folder = tmp_path_factory.mktemp("speed")
    done = command("speed", write(folder, MATRIX), *ASKED, "--out", folder / "run", "--cache", probe_cache)
    assert done.returncode == OK, done.stderr
    return store.read_run(folder / "run"), done.stderr


def test_only_what_belongs_to_speed_is_asked_of_one_worker(timed: tuple[Run, str]) -> None:
    run, said = timed
    assert [[c.name for c in cell.checks] for cell in run.cells] == [["load", "speed", "memory"]] * 2
    assert run.run.settings["lanes"] == ["cpu"]
    assert run.run.settings["speed"] == {
        "points": [[1, 16, 0.0], [2, 32, 0.3]], "budget_seconds": 0.02, "baseline": "*/*/sdpa/*", "extras": True,
    }  # fmt: skip
    assert "1/2" in said
    assert "llama/fp32/sdpa/none: " in said


def test_every_point_is_measured_against_the_baseline(timed: tuple[Run, str]) -> None:
    run, _ = timed
    grid = {(1, 16, 0.0), (2, 32, 0.3)}
    for cell in run.cells:
        check = cell.check("speed")
        assert check is not None
        assert check.evidence.facts["baseline"] == "llama/fp32/sdpa/none"
        for phase in ("prefill", "decode"):
            rates = {(m.at["batch"], m.at["length"], m.at["padding"]) for m in check.measured(f"{phase}_rate")}
            assert rates == grid
            compared = {(m.at["batch"], m.at["length"], m.at["padding"]) for m in check.measured(f"{phase}_speedup")}
            assert compared == (grid if cell.axes["attention"] == "eager" else set()), "a cell is not its own baseline"


def test_the_repro_of_a_speed_check_asks_for_the_same_grid(timed: tuple[Run, str]) -> None:
    run, _ = timed
    check = run.cells[0].check("speed")
    assert check is not None
    words = shlex.split(check.evidence.repro)
    assert words[:2] == ["compat", "speed"]
    parsed = cli._parser().parse_args(words[1:])
    asked = SpeedOptions(parsed.grid, parsed.batch, parsed.padding, parsed.budget, parsed.baseline)
    assert asked.over(SpeedSettings()).stored() == run.run.settings["speed"]
    assert parsed.cells == [run.cells[0].id]


def test_two_environments_are_timed_against_each_other(tmp_path: Path, probe_cache: Path) -> None:
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    other.chmod(0o755)
    arguments = ("--device", "cpu", "--cells", "llama/fp32/sdpa/none", "--grid", "2x32", "--budget", "0.1",
                 "--cache", probe_cache, "--out", tmp_path / "run", "-q")  # fmt: skip
    done = command("speed", "default", "--against", other, *arguments)
    assert done.returncode == OK, done.stderr
    check = store.read_run(tmp_path / "run").cells[0].check("speed")
    assert check is not None
    assert "transformers" in check.evidence.facts["baseline"]
    speedup = check.measurement("prefill_speedup")
    assert speedup is not None
    assert len(speedup.values) >= 6
    assert "transformers" in done.stdout


@pytest.mark.parametrize(("given", "said"), [("/no/such/python", "no program"), (".", "folder")])
def test_an_environment_that_is_none_is_a_usage_error(given: str, said: str) -> None:
    done = command("speed", "default", "--against", given)
    assert done.returncode == USAGE
    assert said in done.stderr
