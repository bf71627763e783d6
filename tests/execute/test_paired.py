"""Two workers that take turns on one device."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compat.builtin import matrices_folder
from compat.execute.local import check_request, group_spec
from compat.execute.paired import paired_answer, stack_name
from compat.execute.worker_process import WorkerProcess
from compat.judge import judge
from compat.matrix import read_matrix
from compat.plan import LoadGroup
from compat.records import Outcome
from compat.rules import context_of

MODELS = read_matrix(matrices_folder() / "default-cpu.toml", "cpu").models


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[tuple[WorkerProcess, WorkerProcess]]:
    """A worker of this environment, and one as another environment's Python would be started."""
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    other.chmod(0o755)
    pair = WorkerProcess(tmp_path / "a.log"), WorkerProcess(tmp_path / "b.log", python=str(other))
    yield pair
    for worker in pair:
        worker.close()


def _request(cache: Path, model: str = "gpt2", **speed: Any) -> dict[str, Any]:
    group = LoadGroup(f"{model}/fp32/none", model, "fp32", "none", ())
    spec = {**group_spec(group, MODELS[model], "cpu", cache, 0, "standard"), "speed": speed}
    return check_request("speed", spec, "sdpa", 1)


def test_the_same_stack_in_two_processes_is_not_told_apart(
    workers: tuple[WorkerProcess, WorkerProcess], probe_cache: Path
) -> None:
    request = _request(probe_cache, points=[[2, 64, 0.3]], budget_seconds=0.4)
    answer = paired_answer(*workers, (request, request), 120)
    assert answer["status"] == "ok"
    check = judge("speed", answer, context_of({"model": "gpt2", "dtype": "fp32", "attention": "sdpa",
                                               "quantization": "none"}, "cpu", MODELS["gpt2"]))  # fmt: skip
    assert check.outcome in (Outcome.PASS, Outcome.INCONCLUSIVE), "a busy machine may make it inconclusive, never wrong"
    for phase in ("prefill", "decode"):
        speedup = check.measurement(f"{phase}_speedup")
        assert speedup is not None
        assert speedup.ci95 is not None
        assert len(speedup.values) >= 6
        if check.outcome is Outcome.PASS:
            assert speedup.ci95[0] < 1.1, "one stack is not faster than itself"
            assert speedup.ci95[1] > 0.9
        assert speedup.at == {"batch": 2, "length": 64, "padding": 0.3}
    assert "transformers" in answer["facts"]["baseline"]
    assert workers[0].environment == workers[1].environment


def test_a_stack_that_cannot_load_the_model_leaves_nothing_to_compare_with(
    workers: tuple[WorkerProcess, WorkerProcess], probe_cache: Path
) -> None:
    good, bad = _request(probe_cache), _request(probe_cache)
    bad["group"] = bad["group"] | {"key": "other", "row": bad["group"]["row"] | {"type": "no-such-type", "name": "x"}}
    answer = paired_answer(*workers, (good, bad), 120)
    assert answer["status"] == "no_yardstick"
    assert "the other stack" in answer["reason"]
    assert paired_answer(*workers, (bad, good), 120)["status"] == "raised", "the candidate's own failure stays its own"


def test_a_point_that_the_model_does_not_have_is_left_out_and_the_other_is_measured(
    workers: tuple[WorkerProcess, WorkerProcess], probe_cache: Path
) -> None:
    request = _request(probe_cache, points=[[2, 32, 0.0], [2, 100000, 0.0]], budget_seconds=0.1)
    facts = paired_answer(*workers, (request, request), 120)["facts"]
    assert {p["length"] for p in facts["points"]} == {32}
    assert set(facts["left_out"]) == {"2x100000@0 prefill", "2x100000@0 decode"}


def test_a_stack_is_named_by_what_often_differs() -> None:
    assert (
        stack_name({"python": "3.11.7", "packages": {"torch": "2.13.0", "numpy": "2"}}) == "Python 3.11.7, torch 2.13.0"
    )
    assert stack_name({}) == "Python ?"
