"""Clean bands and known answers: collected from runs, and what the judge makes of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat import calibration
from compat.builtin import matrices_folder
from compat.cli import main
from compat.judge import rejudge
from compat.matrix import read_matrix
from compat.records import (
    Cell,
    Check,
    Environment,
    Evidence,
    Measurement,
    Outcome,
    Run,
    RunInfo,
    StackIdentity,
    summarize,
)
from compat.rules import Context, Rule, criteria
from compat.store import write_run

AXES = {"model": "llama", "dtype": "bf16", "attention": "eager", "quantization": "none"}
CELL = "/".join(AXES.values())
DIGEST = "abc"
WANTED = {("agreement", "yardstick_error")}
FIGURES = st.floats(1e-3, 1e3)


def _check(value: float | None, outcome: Outcome = Outcome.PASS, answer: list[float] | None = None) -> Check:
    measured = (
        Measurement(name="yardstick_error", unit="eps", value=value),
        Measurement(name="other", unit="x", value=1),
    )
    facts = {"answer": answer} if answer else {}
    return Check(name="agreement", outcome=outcome, measurements=measured, evidence=Evidence(facts=facts))


def _run(check: Check, device: str = "cpu", stack: str = "s", digest: str | None = DIGEST) -> Run:
    settings = {"models": {"llama": {} if digest is None else {"digest": digest}}}
    info = RunInfo(
        id="r", started="", device=device, settings=settings, stack=StackIdentity(name="current", sha256=stack)
    )
    cell = Cell(id=CELL, axes=AXES, outcome=check.outcome, checks=(check,))
    return Run(
        run=info, environment=Environment(packages={"torch": "1"}), cells=(cell,), summary=summarize([cell], 1.0)
    )


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Store bands and answers in a folder of the test's own: `stored(band, answer)`."""
    monkeypatch.setattr(calibration, "FOLDER", tmp_path)
    calibration._read.cache_clear()

    def store(band: float, answer: list[float]) -> Context:
        found = calibration.collect([_run(_check(band, answer=answer))], WANTED)
        (tmp_path / "bands-cpu.json").write_text(calibration.text(found[0]))
        (tmp_path / "answers.json").write_text(calibration.text(found[1]))
        return Context(AXES, "cpu", real=False, digest=DIGEST)

    yield store
    calibration._read.cache_clear()


@given(st.lists(FIGURES, min_size=1, max_size=5), st.randoms())
def test_the_band_is_the_worst_figure_whatever_the_order(values: list[float], order: Any) -> None:
    runs = [_run(_check(v)) for v in values]
    first = calibration.collect(runs, WANTED)
    order.shuffle(runs)
    assert first == calibration.collect(runs, WANTED)
    assert first[0]["cells"] == {CELL: {"agreement": {"yardstick_error": max(values)}}}


@pytest.mark.parametrize("outcome", [Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.ERROR])
def test_a_known_defect_has_no_clean_figure(outcome: Outcome) -> None:
    bands, _ = calibration.collect([_run(_check(5.0)), _run(_check(500.0, outcome))], WANTED)
    assert bands["cells"][CELL]["agreement"]["yardstick_error"] == 5.0


@pytest.mark.parametrize("other", [{"device": "cuda"}, {"stack": "t"}, {"digest": None}])
def test_runs_that_do_not_belong_together_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"different devices|cannot be calibrated"):
        calibration.collect([_run(_check(1.0)), _run(_check(1.0), **other)], WANTED)


@given(FIGURES, FIGURES)
def test_what_is_stored_reads_back(value: float, answer: float) -> None:
    for content in calibration.collect([_run(_check(value, answer=[answer]))], WANTED):
        assert json.loads(calibration.text(content)) == content


def test_a_band_judges_its_own_cell_only(stored: Any) -> None:
    context = stored(2.0, [1.0])
    band = Rule("agreement", "yardstick_error", "clean runs", 1.5, 3.0, band=True)
    assert band.holds(context)
    assert [band.outcome(v, "lower", band.unit(context)) for v in (3.0, 3.1, 6.1)] == [
        Outcome.PASS,
        Outcome.DEGRADED,
        Outcome.FAIL,
    ]
    assert band.holds(dataclasses.replace(context, axes=dict(sorted(AXES.items())))), "as stored runs sort them"
    others: tuple[dict[str, Any], ...] = (
        {"digest": "other"},
        {"digest": ""},
        {"device": "cuda"},
        {"axes": AXES | {"dtype": "fp16"}},
    )
    for changed in others:
        elsewhere = dataclasses.replace(context, **changed)
        assert not band.holds(elsewhere), f"no figure is stored for {changed}"


@pytest.mark.parametrize(("factor", "outcome"), [(1 + 1e-9, Outcome.PASS), (1.01, Outcome.FAIL), (-1.0, Outcome.FAIL)])
def test_an_answer_away_from_the_stored_one_fails_the_eager_cell(stored: Any, factor: float, outcome: Outcome) -> None:
    context = stored(2.0, [3.0, -4.0])
    given_answer = _check(2.0, answer=[3.0 * factor, -4.0 * factor])
    others = tuple(
        Measurement(name=n, unit="", better=b, value=v)
        for n, b, v in (("nonfinite_elements", "lower", 0), ("compared_elements", "higher", 9))
    )
    check = rejudge(
        Check(name="agreement", outcome=Outcome.PASS, measurements=(*given_answer.measurements, *others),
              evidence=given_answer.evidence), context)  # fmt: skip
    assert check.outcome == outcome
    assert check.measurement("known_answer_error") is not None
    assert rejudge(check, context) == check, "judging again adds nothing twice"


def test_an_answer_that_is_not_stored_is_not_judged(stored: Any) -> None:
    stored(2.0, [3.0])
    unknown = Context(AXES, "cpu", real=False, digest="another row")
    check = rejudge(_check(2.0, answer=[9.0]), unknown)
    assert check.measurement("known_answer_error") is None


@pytest.mark.parametrize("change", ["", "gone", "moved", "not finite"])
def test_all_that_a_model_returns_is_held_against_what_is_stored(change: str) -> None:
    calibration._read.cache_clear()
    model = read_matrix(matrices_folder() / "default-cpu.toml", "cpu").models["mixtral-routed"]
    axes = {"model": "mixtral-routed", "dtype": "fp32", "attention": "eager", "quantization": "none"}
    context = Context(axes, "cpu", real=False, digest=model.digest)
    given = {name: list(values) for name, values in context.outputs.items()}
    assert {"logits", "attentions.0", "hidden_states.0", "aux_loss"} <= set(given)
    if change == "gone":
        del given["attentions.1"]
    elif change:
        given["aux_loss"] = [v * 1.01 if change == "moved" else float("nan") for v in given["aux_loss"]]
    evidence = Evidence(facts={"outputs": given})
    measured = _check(2.0).measurements
    check = rejudge(Check(name="agreement", outcome=Outcome.PASS, measurements=measured, evidence=evidence), context)
    found = check.measurement("known_outputs_error")
    assert found is not None
    assert found.value is not None
    assert ("known_outputs_error" in check.reason) == bool(change) == (found.value > 1e-3)
    assert rejudge(check, context) == check


def test_the_shipped_answers_are_of_the_shipped_models() -> None:
    calibration._read.cache_clear()
    models = read_matrix(matrices_folder() / "default-cpu.toml", "cpu").models
    answers = calibration._read("answers.json")["models"]
    stale = [name for name, m in models.items() if answers.get(name, {}).get("digest") != m.digest]
    assert not stale, f"run `compat calibrate` again: the rows of {stale} have changed"
    bands = calibration._read("bands-cpu.json")["models"]
    assert bands == {name: m.digest for name, m in models.items() if name in bands}


def test_the_command_writes_what_the_judge_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _run(_check(2.5, answer=[1.0, 2.0]))
    write_run(run, tmp_path)
    assert main(["calibrate", str(tmp_path), "--out", str(tmp_path), "--answers"]) == 0
    stored = json.loads((tmp_path / "bands-cpu.json").read_text())
    assert stored["cells"][CELL]["agreement"] == {"yardstick_error": 2.5}
    assert json.loads((tmp_path / "answers.json").read_text())["models"]["llama"]["answers"] == {"bf16": [1.0, 2.0]}
    assert "bands-cpu.json" in capsys.readouterr().out


def test_every_band_names_a_measurement_that_has_a_rule_without_one() -> None:
    """Where nothing is stored (another model, another machine's device) something must still judge what can be."""
    plain = {(r.check, r.measurement) for r in criteria().rules if not r.band}
    judged = {(r.check, r.measurement) for r in criteria().rules if r.band and r.check == "agreement"}
    assert judged - plain <= {("agreement", "yardstick_token")}


def test_added_runs_replace_their_models_and_leave_the_others(tmp_path: Path) -> None:
    stored = calibration.collect([_run(_check(1.0, answer=[1.0])), _run(_check(2.0))], WANTED)[0]
    other = {
        **stored,
        "models": {"opt": "o"},
        "cells": {"opt/bf16/eager/none": {"agreement": {"yardstick_error": 9.0}}},
    }
    both = calibration.added(other, stored)
    assert both["models"] == {"opt": "o", "llama": DIGEST}
    assert both["cells"] == {**other["cells"], **stored["cells"]}
    assert calibration.added(both, stored) == both, "once more changes nothing"
    newer = calibration.collect([_run(_check(0.5))], WANTED)[0]
    assert calibration.added(both, newer)["cells"][CELL] == {"agreement": {"yardstick_error": 0.5}}
    with pytest.raises(ValueError, match="other device"):
        calibration.added({**both, "device": "cuda"}, stored)


def test_a_folder_to_write_to_is_made_and_adding_to_nothing_is_refused(tmp_path: Path) -> None:
    write_run(_run(_check(1.0, answer=[1.0])), tmp_path)
    words = ["calibrate", str(tmp_path), "--out", str(tmp_path / "new" / "folder")]
    assert main([*words, "--add"]) == 4
    assert not (tmp_path / "new").exists()
    assert main(words) == 0
    assert main([*words, "--add"]) == 0
