"""distillation tells a student from a model that was never taught, and sees what a cell takes from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from compat.judge import judge
from compat.matrix import Model
from compat.records import Outcome
from compat.rules import context_of
from compat.worker.calls import Unavailable
from compat.worker.checks import distillation
from compat.worker.report import Report

from .groups import MODELS, attention, figures, group

STUDENT = "distilbert-student"


def _judged(report: Report, quantization: str = "none", dtype: str = "bf16") -> Any:
    axes = {"model": STUDENT, "dtype": dtype, "attention": "sdpa", "quantization": quantization}
    answer = {"status": "ok", "measurements": report.measurements, "facts": report.facts, "kernels": {}, "seconds": 1.0}
    return judge("distillation", answer, context_of(axes, "cpu", Model(STUDENT, MODELS[STUDENT].row)))


def test_a_student_says_most_of_what_its_teacher_says(probe_cache: Path) -> None:
    report = distillation.run(group(STUDENT, "bf16", probe_cache), attention("sdpa"))
    seen = figures(report)
    assert 0 < seen["kl_share"] < 0.35
    assert seen["top1_agreement"] > 0.4
    assert abs(seen["kl_added"]) < 1e-3
    assert report.facts["teacher"] == "bert-teacher"
    assert seen["student_kl"] == pytest.approx(seen["kl_share"] * seen["uninformed_kl"], rel=1e-4)
    assert _judged(report).outcome is Outcome.PASS


def test_what_quantization_takes_is_told_from_what_running_adds(probe_cache: Path) -> None:
    exact = figures(distillation.run(group(STUDENT, "bf16", probe_cache), attention("sdpa")))
    report = distillation.run(group(STUDENT, "bf16", probe_cache, "bnb-fp4"), attention("sdpa"))
    seen = figures(report)
    assert seen["checkpoint_kl"] == exact["checkpoint_kl"]
    assert seen["kl_lost"] > 10 * abs(exact["kl_lost"])
    assert abs(seen["kl_added"]) < 0.1 * seen["kl_lost"]
    assert _judged(report, "bnb-fp4").outcome is Outcome.PASS
    assert _judged(report, "bnb-int8").outcome is Outcome.DEGRADED, "8 bits may not take as much as 4"


def test_a_model_that_was_never_taught_is_no_student(probe_cache: Path) -> None:
    own = group("distilbert", "bf16", probe_cache)
    own.spec = dataclasses.replace(own.spec, row={**own.row, "teacher": dict(MODELS["bert-teacher"].row)})
    own.row = own.spec.row
    own.__dict__["checkpoint"] = group("distilbert", "bf16", probe_cache).checkpoint
    report = distillation.run(own, attention("sdpa"))
    assert figures(report)["kl_share"] > 1
    result = _judged(report)
    assert result.outcome is Outcome.FAIL
    assert "kl_share" in result.reason


def test_a_layer_that_lost_its_values_is_seen_in_what_running_adds(probe_cache: Path) -> None:
    own = group(STUDENT, "bf16", probe_cache)
    loaded = own.loaded(attention("sdpa"))
    _ = own.reference
    with torch.no_grad():
        loaded.model.get_submodule("distilbert.transformer.layer.1.ffn.lin2").weight.zero_()
    report = distillation.run(own, attention("sdpa"))
    assert figures(report)["kl_added"] > 0.02
    result = _judged(report)
    assert result.outcome is Outcome.FAIL
    assert "kl_added" in result.reason


def test_without_a_teacher_nothing_is_asked(probe_cache: Path) -> None:
    with pytest.raises(Unavailable, match="names no teacher"):
        distillation.run(group("bert", "bf16", probe_cache), attention("sdpa"))


def test_a_teacher_with_other_words_is_refused(probe_cache: Path) -> None:
    own = group(STUDENT, "bf16", probe_cache)
    other = {**MODELS["bert-teacher"].row, "name": "bert-few-words"}
    other["config"] = {**other["config"], "vocab_size": 300}
    own.row = {**own.row, "teacher": other}
    own.__dict__["checkpoint"] = group(STUDENT, "bf16", probe_cache).checkpoint
    with pytest.raises(Unavailable, match="a vocabulary of 300 and the student one of 512"):
        distillation.run(own, attention("sdpa"))
