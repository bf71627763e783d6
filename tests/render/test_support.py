"""Support tables, the list of families and the table of systems: what they hold, and that a run cannot break them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from compat import store
from compat.families import Family, Support, of_run
from compat.records import Cell, Outcome, Run, summarize
from compat.render.families import render_families
from compat.render.readme import refreshed
from compat.render.readme_marks import MarkError
from compat.render.support import MARKS, NOT_RECORDED, declares, support_tables
from compat.render.systems import SYSTEMS, answers, systems_brief, systems_table

from .sample_runs import a_cell, a_check, small_run

O = Outcome  # noqa: E741
GOLDEN = Path(__file__).parent.parent / "golden"
FLAGS = {"sdpa": True, "flash": False, "flex": None, "paged": True, "compile": True, "switch": True}


def _cell(model: str, attention: str, outcome: Outcome, *, declares: object = None, quantization: str = "none") -> Cell:
    facts = {"how": "switched", "class": f"{model.title()}Model", **({"declares": declares} if declares else {})}
    name = f"{model}/bf16/{attention}/{quantization}"
    withheld = outcome in (O.UNSUPPORTED, O.UNAVAILABLE, O.NOT_RUN)
    load = a_check("load", outcome if withheld else O.PASS, name, "it says no", facts=facts)
    rest = [] if withheld else [a_check("cache", outcome, name, "off by one")]
    return a_cell(name, load, *rest, effective={"kernels": []})


def declared_run(*, told: bool = True, name: str = "llama") -> Run:
    flags = FLAGS if told else None
    cells = (
        _cell(name, "eager", O.PASS, declares=flags),
        _cell(name, "sdpa", O.FAIL, declares=flags),
        _cell(name, "flash_attention_2", O.PASS, declares=flags),
        _cell("mixtral", "eager", O.DEGRADED, declares=flags),
        _cell("mixtral", "sdpa", O.UNSUPPORTED),
        _cell("mixtral", "flash_attention_2", O.NOT_RUN),
        _cell("mixtral", "eager", O.PASS, quantization="bnb-int8"),
        _cell("mixtral", "sdpa", O.INCONCLUSIVE, quantization="bnb-nf4"),
    )
    run = small_run()
    models = {name: {"row": {"task": "causal-lm", "features": ["rope"]}},
              "mixtral": {"row": {"task": "causal-lm", "features": ["rope", "moe"]}}}  # fmt: skip
    info = msgspec.structs.replace(run.run, settings={**run.run.settings, "models": models})
    return msgspec.structs.replace(run, run=info, cells=cells, summary=summarize(cells, 1.0))


def _line(text: str, start: str) -> list[str]:
    line = next(x for x in text.splitlines() if x.startswith(f"| {start} |"))
    return [part.strip() for part in line.strip("|").split("|")]


# -- support -----------------------------------------------------------------------------------------------------


def test_the_table_of_a_run_with_declarations() -> None:
    text = support_tables(declared_run())
    assert _line(text, "`llama`") == ["`llama`", "decoder", "`S⋅?PCW`", "✓", "**✗d**", "✓u"]
    assert _line(text, "`mixtral`")[1:] == ["decoder, mixture of experts", "`S⋅?PCW`", "&#126;", "**rd**", "⋅"]
    assert "- `llama`: declares sdpa, fail in cache" in text
    assert "takes it without a word" in text
    assert "- `mixtral`: declares sdpa, refused: it says no" in text


def test_a_run_without_declarations_says_so_and_tells_nothing_of_them() -> None:
    text = support_tables(declared_run(told=False))
    assert NOT_RECORDED in text
    assert _line(text, "`llama`") == ["`llama`", "decoder", "✓", "**✗**", "✓"]
    assert "declares sdpa" not in text


def test_models_can_be_chosen_and_nothing_chosen_is_an_error() -> None:
    text = support_tables(declared_run(), ["mixtral"])
    assert "`llama`" not in text
    with pytest.raises(ValueError, match="has asked no cell"):
        support_tables(declared_run(), [])


def test_every_support_has_a_mark_of_its_own() -> None:
    assert set(MARKS) == set(Support)
    assert len(set(MARKS.values())) == len(MARKS)


def test_letters() -> None:
    assert declares(None) == NOT_RECORDED
    assert declares({}) == "??????"
    assert declares(dict.fromkeys(FLAGS, False)) == "⋅⋅⋅⋅⋅⋅"


def test_a_name_from_a_run_cannot_leave_its_cell() -> None:
    text = support_tables(declared_run(name="x|<b>\n@you"))
    assert "<b>" not in text
    row = next(x for x in text.splitlines() if "x&#124;" in x and x.startswith("|"))
    assert row.count("|") == 7
    assert "@you" not in text.replace("&#64;&#8203;you", "")


# -- systems -----------------------------------------------------------------------------------------------------


def test_systems_with_counts_and_those_that_no_run_shows() -> None:
    text = systems_table({"reports/a": declared_run()})
    assert _line(text, "mixtures of experts") == [
        "mixtures of experts",
        "`reports/a`",
        "cells",
        "1",
        "1",
        "0",
        "1",
        "1",
    ]
    assert _line(text, "key/value caches")[3:] == ["3", "1", "1", "1", "0"]
    assert _line(text, "BetterTransformer")[1] == "no stored run shows it"
    assert _line(text, "FlashAttention-2")[3:] == ["1", "0", "0", "0", "0"]


def test_the_brief_form_has_one_row_a_system_with_what_passes_in_the_largest_run_of_each_device() -> None:
    run = declared_run()
    assert run.run.device == "cuda"
    larger = msgspec.structs.replace(run, cells=(*run.cells, _cell("llama", "eager", O.PASS)))
    cpu = msgspec.structs.replace(run, run=msgspec.structs.replace(run.run, device="cpu"))
    text = systems_brief({"reports/a": run, "reports/b": larger, "reports/c": run, "reports/cpu": cpu})
    row = ["mixtures of experts", "cells", "1 of 3 in `cpu`", "1 of 3 in `a`, 2 more runs"]
    assert _line(text, "mixtures of experts") == row
    assert _line(text, "eager attention")[3].endswith("in `b`, 2 more runs")
    assert _line(text, "key/value caches")[1] == "checks"
    assert _line(text, "BetterTransformer")[2:] == ["no stored run", "no stored run"]
    assert len([x for x in text.splitlines() if x.startswith("| ")]) == len(SYSTEMS) + 2


def test_every_system_has_a_row_once() -> None:
    text = systems_table({"reports/a": declared_run(), "reports/b": declared_run()})
    heads = [x.split("|")[1].strip() for x in text.splitlines() if x.startswith("| ")][2:]
    assert len([x for x in heads if x]) == len(SYSTEMS) == len({s.name for s in SYSTEMS})
    assert text.count("`reports/b`") > 3


def test_what_was_left_out_or_lacked_a_package_shows_nothing() -> None:
    flash = next(s for s in SYSTEMS if s.name == "FlashAttention-2")
    cells = tuple(_cell("llama", "flash_attention_2", o) for o in (O.NOT_RUN, O.UNAVAILABLE))
    run = msgspec.structs.replace(declared_run(), cells=cells)
    assert not answers(run, flash)


# -- marks in pages ----------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a stored run in `reports/it`, and another without one."""
    (tmp_path / "reports" / "empty").mkdir(parents=True)
    (tmp_path / "reports" / "it").mkdir()
    store.write_run(declared_run(), tmp_path / "reports" / "it")
    return tmp_path


def _page(mark: str) -> str:
    return f"before\n\n<!-- compat:{mark} -->\n<!-- compat:end -->\n\nafter\n"


def test_marks_are_filled_and_stay_as_they_are(root: Path) -> None:
    page = refreshed(_page("support run=reports/it models=llama") + _page("systems"), root)
    assert "`S⋅?PCW`" in page
    assert "`reports/it`" in page
    assert "reports/empty" not in page
    assert refreshed(page, root) == page


@pytest.mark.parametrize(
    ("mark", "problem"),
    [
        ("support run=reports/it models=lama", "nearest: 'llama'"),
        ("support run=reports/none", "there is no run"),
        ("systems reports=elsewhere", "there is no folder elsewhere"),
        ("systems reports=reports/empty", "holds a stored run"),
    ],
)
def test_a_mark_that_cannot_be_used_says_why(root: Path, mark: str, problem: str) -> None:
    with pytest.raises(MarkError, match=problem):
        refreshed(_page(mark), root)


# -- the list of families ----------------------------------------------------------------------------------------


def _families() -> list[Family]:
    unknown = Family("odd", {"task": "causal-lm"}, "", None, "ValueError: <no> such | type", ())
    return [*of_run(declared_run()), unknown]


@pytest.mark.parametrize(("form", "suffix"), [("terminal", "txt"), ("markdown", "md"), ("json", "json")])
def test_golden(form: str, suffix: str) -> None:
    text = render_families(_families(), declared_run(), form, "current")
    assert text == (GOLDEN / f"families.{suffix}").read_text(encoding="utf-8")


def test_without_a_run_only_declarations_are_shown() -> None:
    families = [Family("llama", {"task": "causal-lm"}, "L", FLAGS, "", ())]
    text = render_families(families, None, "terminal", "current")
    assert "no run named" in text
    assert "S⋅?PCW" in text
    assert "differ" not in text
    data = json.loads(render_families(families, None, "json", "current"))
    assert data["run"] is None
    assert data["models"][0]["measured"] == {}
    assert data["models"][0]["declares"] == FLAGS
