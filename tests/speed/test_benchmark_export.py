"""Speed checks as results of pytest-benchmark: what is stored, what is not, and that its own tools read it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.records import (
    Cell,
    Check,
    Environment,
    Evidence,
    Gpu,
    Measurement,
    Outcome,
    Run,
    RunInfo,
    cell_outcome,
    summarize,
)
from compat.speed.benchmark_export import sampled
from compat.speed.figures import figures

AXES = {"model": "llama", "dtype": "bf16", "attention": "sdpa", "quantization": "none"}
SECONDS = st.lists(st.floats(1e-5, 10.0), min_size=1, max_size=12)
POINTS = st.lists(
    st.tuples(
        st.sampled_from(["prefill", "decode"]), st.integers(1, 8), st.integers(1, 8192), st.sampled_from([0, 0.3])
    ),
    min_size=1,
    max_size=6,
    unique=True,
)


def _point(phase: str, batch: int, length: int, padding: float, seconds: list[float], **more: Any) -> dict[str, Any]:
    at = {"phase": phase, "batch": batch, "length": length, "padding": padding}
    return {**at, "tokens": batch * length, "unit": "tokens", "seconds": seconds, "calls": 1, **more}


def _cell(points: list[dict[str, Any]], outcome: Outcome = Outcome.PASS, *others: Check) -> Cell:
    facts = {"points": points, "baseline": "llama/bf16/eager/none"}
    speed = Check(
        name="speed", outcome=outcome, reason="why", measurements=figures(facts), evidence=Evidence(facts=facts)
    )
    checks = (*others, speed)
    return Cell(id="/".join(AXES.values()), axes=AXES, outcome=cell_outcome(checks), checks=checks)


def _run(*cells: Cell) -> Run:
    info = RunInfo(id="run", started="2026-01-01T00:00:00Z", device="cuda")
    return Run(run=info, environment=Environment(gpus=(Gpu(name="A GPU"),)), cells=cells, summary=summarize(cells, 1.0))


@given(POINTS, SECONDS, st.sampled_from([Outcome.PASS, Outcome.DEGRADED]))
def test_every_phase_and_point_is_stored_once_with_its_own_seconds(
    points: list[tuple[str, int, int, float]], seconds: list[float], outcome: Outcome
) -> None:
    made = [_point(*p, [s * (i + 1) for s in seconds]) for i, p in enumerate(points)]
    cell = _cell(made, outcome)
    found, why_not = sampled(_run(cell), cell)
    stored = {(f.params["phase"], f.params["batch"], f.params["length"], f.params["padding"]): f.seconds for f in found}
    doubtful = [p for p in points if p not in stored]
    assert len(why_not) == len(doubtful)
    assert stored == {p: tuple(m["seconds"]) for p, m in zip(points, made, strict=True) if p in stored}
    assert len({f.name for f in found}) == len(found) == len({f.fullname for f in found})


def test_a_stored_point_says_what_it_is() -> None:
    point = _point("decode", 4, 2048, 0.3, [0.010] * 8, baseline_seconds=[0.020] * 8, stopped="tight", calls=3)
    load = Check(name="load", outcome=Outcome.PASS, evidence=Evidence(kernels={"aten::_flash": 2}))
    cell = _cell([point], Outcome.PASS, load)
    (found,), why_not = sampled(_run(cell), cell)
    assert not why_not
    assert found.name == "speed[llama/bf16/sdpa/none] decode 4x2048@0.3"
    assert found.group == "llama/bf16 decode 4x2048@0.3", "backends of one model stand in one table"
    assert found.calls == 3
    assert found.extra_info == {
        "cell": "llama/bf16/sdpa/none", "outcome": "pass", "device": "A GPU", "tokens": 4 * 2048,
        "kernels": ["aten::_flash"], "baseline": "llama/bf16/eager/none", "speedup": 2.0, "speedup_ci95": [2.0, 2.0],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (_cell([_point("prefill", 2, 64, 0, [0.01] * 8)], Outcome.FAIL), "speed is fail: why"),
        (_cell([_point("prefill", 2, 64, 0, [0.01] * 8)], Outcome.INCONCLUSIVE), "speed is inconclusive: why"),
        (_cell([]), "nothing was timed"),
        (
            _cell([_point("prefill", 2, 64, 0, [0.01] * 8)], Outcome.PASS, Check(name="cache", outcome=Outcome.FAIL)),
            "cache is fail, so its speed is not compared",
        ),
    ],
)
def test_what_cannot_be_believed_is_not_stored(cell: Cell, says: str) -> None:
    assert sampled(_run(cell), cell) == ([], [says])


def test_of_an_inconclusive_cell_the_certain_points_are_stored() -> None:
    shared = _point("prefill", 2, 64, 0, [0.01] * 8, contention=0.5)
    cell = _cell([shared, _point("prefill", 2, 128, 0, [0.02] * 8, contention=0.0)], Outcome.INCONCLUSIVE)
    (found,), why_not = sampled(_run(cell), cell)
    assert found.params["length"] == 128
    assert why_not == ["prefill_contention at 2x64@0 0.5 of the time, pass <= 0.2"]


def test_a_measurement_at_another_point_casts_no_doubt() -> None:
    cell = _cell([_point("prefill", 2, 64, 0, [0.01] * 8)])
    speed = cell.checks[0]
    at = {"batch": 2, "length": 65, "padding": 0.0}
    elsewhere = Measurement(name="prefill_contention", unit="of the time", value=0.9, at=at)
    check = Check(name="speed", outcome=Outcome.PASS, measurements=(elsewhere,), evidence=speed.evidence)
    other = Cell(id=cell.id, axes=cell.axes, outcome=Outcome.PASS, checks=(check,))
    assert len(sampled(_run(other), other)[0]) == 1


# -- in real pytest processes ------------------------------------------------------------------------------------

MATRIX = """
title = "benchmarks"
checks = ["load", "speed"]

[axes]
model = ["llama"]
dtype = ["fp32"]
attention = ["eager", "sdpa"]
quantization = ["none"]

[speed]
lengths = [16]
batches = [2]
budget_seconds = 0.02
"""

QUIET_MACHINE = """
import compat.judge
import compat.speed.benchmark_export
whole = compat.judge.criteria()
own = type(whole)(**{**whole.__dict__, "rules": tuple(r for r in whole.rules if r.check != "speed" or r.required)})
compat.judge.criteria = compat.speed.benchmark_export.criteria = lambda: own
"""
"""A conftest that judges no rate and has no guards against noise: what is asked here is what is stored, and another
process on this machine must not fail it."""

SUITE = ("--pyargs", "compat.suites", "--compat-matrix=m.toml", "-p", "no:cacheprovider")
NAMES = {
    f"speed[llama/fp32/{attention}/none] {phase} 2x16@0"
    for attention in ("eager", "sdpa")
    for phase in ("prefill", "decode")
}


@pytest.fixture
def project(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    (pytester.path / "m.toml").write_text(MATRIX, encoding="utf-8")
    (pytester.path / "conftest.py").write_text(QUIET_MACHINE, encoding="utf-8")
    monkeypatch.setenv("COMPAT_CACHE", str(tmp_path_factory.getbasetemp() / "checkpoints"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):  # these sessions are no workers of ours
        monkeypatch.delenv(name, raising=False)
    return pytester.path


def _tool(project: Path, *arguments: str) -> str:
    command = [str(Path(sysconfig.get_path("scripts")) / "pytest-benchmark"), *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_runs_are_saved_compared_and_plotted_by_pytest_benchmark(project: Path, pytester: pytest.Pytester) -> None:
    options = (*SUITE, "-p", "conftest", "--compat-benchmark", "--compat-workers=1")
    first = pytester.runpytest_subprocess(
        *options, "--compat-out=a", "--benchmark-save=first", "--benchmark-json=a.json"
    )
    first.assert_outcomes(passed=4)
    first.stdout.fnmatch_lines(["4 handed to pytest-benchmark"])
    stored = json.loads((project / "a.json").read_text(encoding="utf-8"))
    assert {b["name"] for b in stored["benchmarks"]} == NAMES
    facts = {
        c["id"]: next(k for k in c["checks"] if k["name"] == "speed")["evidence"]["facts"]
        for c in json.loads((project / "a" / "run.json").read_text(encoding="utf-8"))["cells"]
    }
    for benchmark in stored["benchmarks"]:
        points = facts[benchmark["extra_info"]["cell"]]["points"]
        (point,) = [p for p in points if p["phase"] == benchmark["params"]["phase"]]
        assert benchmark["stats"]["data"] == point["seconds"], "the samples are those that the worker measured"
    assert stored["compat"]["run"]
    assert stored["machine_info"]["device"]["type"] == "cpu"

    second = pytester.runpytest_subprocess(
        *options, "--compat-out=b", "--benchmark-only", "--benchmark-save=second", "--benchmark-compare",
    )  # fmt: skip
    second.assert_outcomes(passed=2, skipped=2)
    second.stdout.fnmatch_lines(["*(0001_first)*", "*benchmark 'llama/fp32 prefill 2x16@0': 4 tests*"])

    table = _tool(project, "compare", "--csv=all", "--columns=median")
    for name in NAMES:
        assert f"{name} (0001_first)" in table
        assert f"{name} (0002_second)" in table
    assert len((project / "all.csv").read_text(encoding="utf-8").splitlines()) == 1 + 2 * len(NAMES)
    # not imported here: it brings a second importlib.metadata, which pytester would take back by half
    if importlib.util.find_spec("pygal") is None:
        pytest.skip("pytest-benchmark draws with pygal")
    _tool(project, "compare", "--histogram=plots/it")
    pictures = sorted(p.name for p in (project / "plots").iterdir())
    assert len(pictures) == 2
    assert "0002_second" in (project / "plots" / pictures[0]).read_text(encoding="utf-8")


def test_what_is_skipped_is_not_run(project: Path, pytester: pytest.Pytester) -> None:
    """--benchmark-only without compat's benchmarks leaves nothing to do: no worker is started."""
    result = pytester.runpytest_subprocess(*SUITE, "--compat-out=out", "--benchmark-only")
    result.assert_outcomes(skipped=4)
    assert not (project / "out").exists()
    result = pytester.runpytest_subprocess(
        *SUITE, "--compat-out=out", "--compat-benchmark", "--benchmark-skip", "-k", "speed"
    )
    result.assert_outcomes(skipped=2, deselected=2)
    result.stdout.fnmatch_lines(["0 handed to pytest-benchmark: no speed test ran"])
    assert not (project / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("-p", "no:benchmark"), "--compat-benchmark needs the plugin pytest-benchmark"),
        (("-n", "2"), "do not run under pytest-xdist*--compat-workers"),
    ],
)
def test_what_cannot_be_has_a_clear_error(
    options: tuple[str, ...], says: str, project: Path, pytester: pytest.Pytester
) -> None:
    result = pytester.runpytest_subprocess(*SUITE, "--compat-benchmark", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{says}*"])


def test_disabled_benchmarks_are_said_to_be(project: Path, pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(
        *SUITE, "--compat-benchmark", "--benchmark-disable", "--benchmark-json=none.json", "-k", "nothing"
    )
    result.stdout.fnmatch_lines(["none handed to pytest-benchmark: it is disabled (--benchmark-disable)"])
    assert not (project / "none.json").exists()


def test_without_the_flag_nothing_of_pytest_benchmark_is_touched() -> None:
    code = "import sys, compat.plugin; sys.exit('compat.speed.benchmark_export' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
