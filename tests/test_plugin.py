"""The pytest plugin, with the real suites in real pytest processes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from compat.render import render
from compat.store import read_run

MATRIX = """
title = "plugin"

[axes]
model = ["llama", "gemma2", "falcon"]
dtype = ["fp32"]
attention = ["eager", "sdpa"]
quantization = ["none"]
checks = ["load", "memory"]
"""

SUITE = ("--pyargs", "compat.suites", "--compat-matrix=m.toml", "-p", "no:cacheprovider")


@pytest.fixture
def project(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a small matrix, and checkpoints that all tests of this module share."""
    (pytester.path / "m.toml").write_text(MATRIX, encoding="utf-8")
    monkeypatch.setenv("COMPAT_CACHE", str(tmp_path_factory.getbasetemp() / "checkpoints"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return pytester.path


def test_collecting_lists_the_plan_in_order_and_starts_nothing(project: Path, pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(*SUITE, "--co", "-q")
    names = [line.split("::")[1] for line in result.outlines if "::" in line]
    assert names[:4] == [
        "test_load[llama/fp32/eager/none]",
        "test_memory[llama/fp32/eager/none]",
        "test_load[llama/fp32/sdpa/none]",
        "test_memory[llama/fp32/sdpa/none]",
    ]
    assert len(names) == 12
    assert not (project / "compat-runs").exists()


def test_collecting_does_not_import_torch(project: Path, pytester: pytest.Pytester) -> None:
    (project / "conftest.py").write_text(
        "import sys\ndef pytest_unconfigure(config):\n    print('torch loaded:', 'torch' in sys.modules)\n"
    )
    result = pytester.runpytest_subprocess(
        *SUITE, "--co", "-q", f"--confcutdir={project}", f"--rootdir={project}", "-p", "conftest"
    )
    result.stdout.fnmatch_lines(["torch loaded: False"])


def test_outcomes_become_passed_failed_and_skipped(project: Path, pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(*SUITE, "--compat-out=out", "--junitxml=junit.xml", "-rs")
    # gemma2 does not declare sdpa; falcon's switch to sdpa is ignored
    result.assert_outcomes(passed=9, failed=1, skipped=2)
    result.stdout.fnmatch_lines(
        ["*falcon/fp32/sdpa/none: load is degraded: set_attn_implementation ignored*", "*compat*"]
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    run = read_run(project / "out")
    assert run.run.complete
    assert {c.id: c.outcome.value for c in run.cells} == {
        "llama/fp32/eager/none": "pass",
        "llama/fp32/sdpa/none": "pass",
        "gemma2/fp32/eager/none": "pass",
        "gemma2/fp32/sdpa/none": "unsupported",
        "falcon/fp32/eager/none": "pass",
        "falcon/fp32/sdpa/none": "degraded",
    }
    assert (project / "out" / "report.html").stat().st_size > 10_000
    case = next(
        c
        for c in ET.parse(project / "junit.xml").iter("testcase")
        if c.get("name") == "test_load[llama/fp32/sdpa/none]"
    )
    properties = {p.get("name"): p.get("value") for p in case.iter("property")}
    assert properties == {
        "model": "llama", "dtype": "fp32", "attention": "sdpa", "quantization": "none", "check": "load",
        "run": run.run.id, "outcome": "pass",
    }  # fmt: skip
    ours = {c.get("name"): c for c in ET.fromstring(render(run, "junit")).iter("testcase")}
    for case in ET.parse(project / "junit.xml").iter("testcase"):
        own = ours.pop(case.get("name"))
        place = own.get("classname") or ""
        assert place.endswith(case.get("classname") or "?"), "pytest counts from its rootdir or from the package"
        assert [c.tag for c in own] == [c.tag for c in case], "a stored run makes of a test what pytest makes of it"
        assert {p.get("name"): p.get("value") for p in own.iter("property")} == {
            p.get("name"): p.get("value") for p in case.iter("property")
        }
    assert not ours


def test_k_selects_and_x_stops(project: Path, pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(*SUITE, "--compat-out=out", "-x", "-k", "falcon")
    result.assert_outcomes(passed=2, failed=1, deselected=8)
    run = read_run(project / "out")
    assert [c.id for c in run.cells] == ["falcon/fp32/eager/none", "falcon/fp32/sdpa/none"]
    assert [check.name for cell in run.cells for check in cell.checks] == ["load", "memory"] * 2


def test_xdist_is_refused_with_what_to_use(project: Path, pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(*SUITE, "-n", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*do not run under pytest-xdist*--compat-workers*"])


def test_a_matrix_that_cannot_be_used_is_a_usage_error(project: Path, pytester: pytest.Pytester) -> None:
    (project / "m.toml").write_text(MATRIX.replace('"gemma2"', '"gema2"'), encoding="utf-8")
    result = pytester.runpytest_subprocess(*SUITE)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    output = "\n".join(result.outlines + result.errlines)
    assert "axes.model: unknown value 'gema2'; nearest valid: 'gemma2'" in output


def test_other_suites_are_left_alone(project: Path, pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_own():\n    assert 1 + 1 == 2\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    assert "compat:" not in "\n".join(result.outlines)
    assert not (project / "compat-runs").exists()


def test_every_check_has_a_test_function() -> None:
    from compat.checks import CHECKS
    from compat.suites import test_matrix

    asked = {name.removeprefix("test_") for name in vars(test_matrix) if name.startswith("test_")}
    assert asked == set(CHECKS.names)


KNOWN = """
[[expect]]
cells = "falcon/*/sdpa/*"
checks = ["load"]
outcome = "degraded"
reason = "the switch is ignored"
issue = "https://example.org/1"

[[expect]]
cells = "falcon/*/eager/*"
checks = ["load"]
outcome = "fail"
reason = "it did once"
"""


def test_what_is_expected_to_fail_is_xfailed_and_a_strict_pass_fails(project: Path, pytester: pytest.Pytester) -> None:
    (project / "known.toml").write_text(KNOWN, encoding="utf-8")
    chosen = (*SUITE, "--compat-cells=falcon/*", "--compat-expectations=known.toml", "--compat-shard=1/1", "-rxX")
    result = pytester.runpytest_subprocess(*chosen, "--compat-strict", "--compat-out=out")
    result.assert_outcomes(passed=2, failed=1, xfailed=1)
    result.stdout.fnmatch_lines(["*degraded: the switch is ignored (https://example.org/1)*"])
    result.stdout.fnmatch_lines(["*passes, though *known.toml: expect*1* expects a failure: it did once*"])
    assert {c.id: c.outcome.value for c in read_run(project / "out").cells} == {
        "falcon/fp32/eager/none": "pass",
        "falcon/fp32/sdpa/none": "degraded",
    }, "outcomes stay facts"


def test_a_shard_that_is_none_is_a_usage_error(project: Path, pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(*SUITE, "--compat-shard=4/3", "--co")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--compat-shard: '4/3' is no part such as 1/3" in "\n".join(result.outlines + result.errlines)
    result = pytester.runpytest_subprocess(*SUITE, "--compat-shard=2/3", "--co", "-q")
    names = [line for line in result.outlines if "::" in line]
    assert len(names) == 4, "one of three load groups: two cells, two checks"
