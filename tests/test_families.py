"""Support as declared and as measured: laws of the verdicts, and what is said where the two differ."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.axes import ATTENTION
from compat.builtin import matrices_folder, matrix_path
from compat.families import (
    MEANINGS,
    Family,
    Flags,
    Support,
    differences,
    flag_of,
    kind,
    of_run,
    plain,
    stored_declarations,
    support,
)
from compat.matrix import read_matrix
from compat.records import Cell, Outcome

from .render.sample_runs import a_cell, a_check, small_run

O = Outcome  # noqa: E741
OUTCOMES = st.lists(st.sampled_from(list(Outcome)), max_size=6)
TOLD = st.sampled_from([None, True, False])
SAME = {Support.UNDECLARED: Support.WORKS, Support.DECLARED_WRONG: Support.WRONG,
        Support.DECLARED_REFUSED: Support.REFUSED}  # fmt: skip
"""What a verdict is when nothing is known of the declaration."""


@given(OUTCOMES, TOLD)
def test_order_and_cells_that_were_not_asked_change_nothing(outcomes: list[Outcome], told: bool | None) -> None:
    found = support(outcomes, told)
    assert support(outcomes[::-1], told) is found
    assert support([*outcomes, Outcome.NOT_RUN], told) is found


@given(OUTCOMES, TOLD)
def test_a_declaration_never_changes_what_was_measured(outcomes: list[Outcome], told: bool | None) -> None:
    found = support(outcomes, told)
    assert SAME.get(found, found) is support(outcomes, None)


@given(OUTCOMES, TOLD)
def test_a_wrong_answer_is_never_covered_up(outcomes: list[Outcome], told: bool | None) -> None:
    wrong = support([*outcomes, Outcome.FAIL], told)
    assert wrong is (Support.DECLARED_WRONG if told else Support.WRONG)


@pytest.mark.parametrize(
    ("outcomes", "told", "expected"),
    [
        ([], True, Support.NOT_ASKED),
        ([O.NOT_RUN], True, Support.NOT_ASKED),
        ([O.UNAVAILABLE, O.NOT_RUN], True, Support.UNAVAILABLE),
        ([O.UNSUPPORTED], True, Support.DECLARED_REFUSED),
        ([O.UNSUPPORTED, O.UNAVAILABLE], False, Support.REFUSED),
        ([O.UNSUPPORTED, O.PASS], None, Support.WORKS),
        ([O.PASS, O.DEGRADED], True, Support.DEGRADED),
        ([O.PASS], False, Support.UNDECLARED),
        ([O.PASS, O.INCONCLUSIVE], True, Support.UNCLEAR),
        ([O.ERROR], None, Support.UNCLEAR),
        ([O.TIMEOUT], False, Support.WRONG),
    ],
)
def test_verdicts(outcomes: list[Outcome], told: bool | None, expected: Support) -> None:
    assert support(outcomes, told) is expected


def test_every_verdict_has_a_meaning() -> None:
    assert set(MEANINGS) == set(Support)


def test_which_declaration_speaks_of_a_backend() -> None:
    found = {a.name: flag_of(a.name) for a in ATTENTION}
    assert {n for n, flag in found.items() if flag == "sdpa"} == {"sdpa"}, "kernels of SDPA are torch's affair"
    assert {n for n, flag in found.items() if flag == "flash"} == {f"flash_attention_{i}" for i in (2, 3, 4)}
    assert found["flex_attention"] == "flex"
    assert found["eager"] == flag_of("no such backend") == ""


@pytest.mark.parametrize(
    ("task", "features", "expected"),
    [
        ("causal-lm", [], "decoder"),
        ("causal-lm", ["moe"], "decoder, mixture of experts"),
        ("causal-lm", ["state-space", "no-attention"], "state-space"),
        ("causal-lm", ["state-space", "hybrid", "moe"], "decoder, hybrid, mixture of experts"),
        ("audio-classification", [], "audio"),
        ("image-text-to-text", ["composite"], "vision-language"),
    ],
)
def test_kinds(task: str, features: list[str], expected: str) -> None:
    assert kind({"task": task, "features": features}) == expected


def test_a_row_that_was_not_stored_is_of_no_known_kind() -> None:
    assert kind({}) == "unknown"


# -- what differs ------------------------------------------------------------------------------------------------


def _family(flags: Flags | None, *cells: Cell) -> Family:
    return Family("llama", {"task": "causal-lm"}, "LlamaForCausalLM", flags, "", cells)


def _cell(attention: str, outcome: Outcome = O.PASS, kernels: list[str] | None = None, **facts: object) -> Cell:
    load = a_check("load", outcome, f"llama/bf16/{attention}/none", "its reason", facts={"how": "switched", **facts})
    return a_cell(f"llama/bf16/{attention}/none", load, effective={"kernels": kernels or []})


def _said(flags: Mapping[str, bool | None], *cells: Cell) -> str:
    return "; ".join(differences(_family(flags, *cells)))


def test_nothing_differs_where_both_agree() -> None:
    assert _said({"sdpa": True, "switch": True}, _cell("eager"), _cell("sdpa", kernels=["sdpa flash"])) == ""
    assert _said({"sdpa": False}, _cell("sdpa", O.UNSUPPORTED)) == ""


def test_declared_and_another_kernel_ran() -> None:
    cell = _cell("sdpa", O.DEGRADED, ["eager", "sdpa flash"])
    assert _said({"sdpa": True}, cell) == "declares sdpa, ran eager"


def test_a_slower_kernel_of_the_same_backend_is_the_backend() -> None:
    assert _said({"sdpa": True}, _cell("sdpa", O.DEGRADED, ["sdpa math"])) == ""


def test_declared_and_refused_or_wrong() -> None:
    assert _said({"flash": True}, _cell("flash_attention_2", O.UNSUPPORTED)) == (
        "declares flash_attention_2, refused: its reason"
    )
    assert _said({"flash": True}, _cell("flash_attention_2", O.FAIL)).startswith("declares flash_attention_2, does not")
    wrong = a_cell("llama/bf16/sdpa/none", a_check("load", O.PASS, ""), a_check("cache", O.FAIL, ""))
    assert _said({"sdpa": True}, wrong) == "declares sdpa, fail in cache"


def test_not_declared_and_taken_in_silence() -> None:
    assert _said({"sdpa": False}, _cell("sdpa")) == "does not declare sdpa, takes it without a word: works"
    assert "fail in load" in _said({"sdpa": False}, _cell("sdpa", O.FAIL))


def test_a_switch_that_is_declared_and_had_no_effect() -> None:
    assert "set_attn_implementation" in _said({"switch": True}, _cell("sdpa", how="reloaded"))
    assert _said({"switch": False}, _cell("sdpa", how="reloaded")) == ""


def test_what_was_not_asked_differs_from_nothing() -> None:
    assert (
        _said({"flash": True}, _cell("flash_attention_2", O.UNAVAILABLE), _cell("flash_attention_2", O.NOT_RUN)) == ""
    )


def test_a_difference_is_said_once_for_all_dtypes() -> None:
    assert _said({"sdpa": False}, _cell("sdpa"), _cell("sdpa")).count("does not declare") == 1


# -- from a run --------------------------------------------------------------------------------------------------


def test_declarations_are_read_from_any_cell_of_the_model() -> None:
    refused = _cell("sdpa", O.UNSUPPORTED)
    facts: dict[str, Any] = {"class": "LlamaForCausalLM", "declares": {"sdpa": False, "flex": None, "odd": "yes"}}
    told = _cell("eager", **facts)
    assert stored_declarations([refused, told]) == ("LlamaForCausalLM", {"sdpa": False, "flex": None, "odd": None})
    assert stored_declarations([refused]) == ("", None)
    assert stored_declarations([_cell("eager", declares={})]) == ("", None), "of a class that is none of transformers"


def test_quantized_cells_and_further_axes_are_left_out() -> None:
    cells = [_cell("eager"), a_cell("llama/bf16/eager/bnb-nf4"), a_cell("llama/bf16/eager/none", runtime="compile")]
    assert plain(cells) == (cells[0],)


def test_every_model_of_a_run_is_a_family() -> None:
    run = small_run()
    assert [f.name for f in of_run(run)] == list(dict.fromkeys(c.axes["model"] for c in run.cells))


# -- the matrix --------------------------------------------------------------------------------------------------


def test_the_families_matrix_has_every_probe_and_more_than_forty_architectures() -> None:
    rows = tomllib.loads((matrices_folder() / "models.toml").read_text(encoding="utf-8"))["models"]
    matrix = read_matrix(matrix_path("families"), "cpu")
    models = {c.model for c in matrix.cells}
    probes = {name: row for name, row in rows.items() if row["source"] == "probe" and not name.endswith("-tied")}
    taught = {name for name, row in probes.items() if "teacher" in row}
    assert models == set(probes) - taught - {probes[name]["teacher"] for name in taught}
    assert len({row["type"] for row in probes.values()}) >= 42
    kinds = {kind(rows[name]) for name in models}
    assert {"decoder", "encoder", "encoder-decoder", "state-space", "vision", "audio", "vision-language"} <= kinds
    assert not any("speed" in c.checks for c in matrix.cells)
