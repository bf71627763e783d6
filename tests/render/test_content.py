"""What every format must show: each cell once, no blank, the verdict first."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections import Counter

import msgspec
import pytest
from rich.cells import cell_len

from compat.records import BAD, Cell, Evidence, Measurement, Outcome, Run
from compat.render import render
from compat.render.evidence import sharper, sharper_counts, smallest
from compat.render.grids import panels
from compat.render.groups import failures, not_asked
from compat.render.markdown import matrix_tables
from compat.render.patterns import patterns
from compat.render.speed import speed
from compat.render.summary import environment, verdict
from compat.render.symbols import ABSENT, SYMBOLS, symbol
from compat.sharper import linked

from .reading import DENSE, MARKS, Page, markdown_slots, terminal_slots
from .sample_runs import a_cell, a_check, large_run, passing, small_run

RUNS = {"small": small_run(), "large": large_run()}


def of(cells: list[Cell], *, complete: bool = True) -> Run:
    """The small run with other cells."""
    run = small_run()
    info = msgspec.structs.replace(run.run, complete=complete)
    return msgspec.structs.replace(run, run=info, cells=tuple(cells))


@pytest.mark.parametrize("name", RUNS)
def test_html_grids_hold_every_cell_once(name: str) -> None:
    page = Page(render(RUNS[name], "html"))
    assert sorted(page.numbers()) == list(range(len(RUNS[name].cells)))
    assert set(page.slots) <= MARKS
    assert _present(page.slots) == Counter(symbol(c.outcome).mark for c in RUNS[name].cells)
    assert [c["id"] for c in page.data["cells"]] == [c.id for c in RUNS[name].cells]


@pytest.mark.parametrize("name", RUNS)
def test_markdown_grids_hold_every_cell_once(name: str) -> None:
    slots = markdown_slots(render(RUNS[name], "markdown"))
    assert set(slots) <= MARKS
    assert _present(slots) == Counter(symbol(c.outcome).mark for c in RUNS[name].cells)


@pytest.mark.parametrize(("name", "width"), list(itertools.product(RUNS, (40, 80, 200))))
def test_terminal_grids_hold_every_cell_once(name: str, width: int) -> None:
    slots = terminal_slots(render(RUNS[name], "terminal", width=width))
    assert set(slots) <= DENSE
    assert _present(slots) == Counter(symbol(c.outcome).dense() for c in RUNS[name].cells)


def _present(slots: list[str]) -> Counter[str]:
    return Counter(slot for slot in slots if slot not in (ABSENT.mark, ABSENT.dense()))


def test_narrow_tables_stand_beside_each_other() -> None:
    places = itertools.product(("a", "b"), ("fp32", "bf16"), ("eager", "sdpa"), ("none", "bnb-int8", "bnb-nf4"))
    text = render(of([passing("/".join(p)) for p in places]), "terminal")
    assert text.count("model  ") == 1
    assert len(terminal_slots(text)) == 24


@pytest.mark.parametrize(("name", "width"), list(itertools.product(RUNS, (40, 60, 80, 133))))
def test_terminal_keeps_its_width(name: str, width: int) -> None:
    for line in render(RUNS[name], "terminal", width=width).splitlines():
        assert cell_len(line) <= width or line.startswith("   $ "), line


def test_colour_only_adds_escape_codes() -> None:
    plain, coloured = (render(RUNS["small"], "terminal", color=c) for c in (False, True))
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_ascii_marks_need_no_font() -> None:
    assert render(RUNS["small"], "terminal", ascii=True).isascii()


def test_marks_are_distinct_and_one_column_each() -> None:
    every = [*SYMBOLS.values(), ABSENT]
    assert set(SYMBOLS) == set(Outcome)
    assert len({s.mark for s in every}) == len({s.dense() for s in every}) == len({s.dense(True) for s in every}) == 12
    assert all(cell_len(s.mark) == 2 and cell_len(s.dense()) == 1 for s in every)


@pytest.mark.parametrize("format", ["terminal", "markdown", "html"])
def test_partial_comes_first(format: str) -> None:
    text = render(RUNS["small"], format)
    assert text.index("PARTIAL") < text.index("11 of 24 cells pass") < text.index("eager")


def test_verdict_of_a_clean_run() -> None:
    run = of([passing("llama/bf16/eager/none"), passing("llama/bf16/sdpa/none")])
    place = "cuda (Example GPU; torch 2.13.0, transformers 5.23.0)"
    assert verdict(run).text == f"All 2 cells pass on {place}."
    assert verdict(of([])).text == f"The run holds no cells on {place}: nothing can be said."


def test_verdict_says_that_errors_say_nothing() -> None:
    run = of([passing("a/b/c/d"), a_cell("a/b/e/d", a_check("load", Outcome.ERROR, "x", "boom"))])
    assert "Do not use" not in verdict(run).text
    assert "The harness itself failed on 1 cell (error): it says nothing" in verdict(run).text


@pytest.mark.parametrize("format", ["terminal", "markdown", "html", "json"])
def test_an_empty_run_renders(format: str) -> None:
    assert render(of([], complete=False), format)


def test_cells_with_the_same_axes_do_not_hide_each_other() -> None:
    run = of([passing("a/b/c/d"), a_cell("a/b/c/d", a_check("load", Outcome.FAIL, "x"))])
    assert len(panels(run.cells)) == 2
    assert Page(render(run, "html")).numbers() == [0, 1]
    assert "repeat 2" in render(run, "terminal")


def test_a_value_shared_by_all_cells_is_said_once() -> None:
    run = of([passing("a/b/c/d", runtime="compile"), passing("a/b/e/d", runtime="compile")])
    assert render(run, "terminal").count("runtime compile") == 1


def test_failures_are_grouped_by_signature_then_reason() -> None:
    places = [f"falcon/bf16/{a}/none" for a in ("x", "y", "z")]
    cells = [a_cell(p, a_check("load", Outcome.OOM, p, f"wanted {i}.5 GiB")) for i, p in enumerate(places)]
    (group,) = failures(cells)
    assert (len(group.cells), group.signature, group.where.texts) == (3, "wanted # GiB", ("falcon/bf16/*/none",))


def test_the_example_of_a_group_is_its_worst_cell() -> None:
    run = RUNS["large"]
    group = failures(run.cells)[0]
    ratios = {c.id: m.value for c in group.cells for k in c.checks if (m := k.measurement("max_error_ratio"))}
    assert group.example == max(ratios, key=lambda i: ratios[i] or 0)
    assert group.example in group.repro


def test_a_bad_cell_without_a_bad_check_is_still_explained() -> None:
    cell = Cell(id="a", axes={"model": "m"}, outcome=Outcome.CRASH, reason="the worker died before the first check")
    (group,) = failures([cell])
    assert group.reason == cell.reason


def test_every_unasked_cell_has_a_reason() -> None:
    groups = not_asked(RUNS["large"].cells)
    quiet = [c for c in RUNS["large"].cells if c.outcome in (Outcome.UNSUPPORTED, Outcome.UNAVAILABLE)]
    assert sum(len(g.cells) for g in groups) == len(quiet)


def test_patterns_pick_exactly_the_cells_they_stand_for() -> None:
    every = RUNS["large"].cells
    falcon = [c for c in every if c.axes["model"] == "falcon" and c.axes["attention"].startswith("sdpa")]
    assert patterns(falcon, every).texts == ("falcon/*/sdpa*/*",)
    two = [c for c in every if c.axes["model"] in ("gpt2", "opt") and c.axes["attention"] == "eager"]
    assert patterns(two, every).texts == ("{gpt2,opt}/*/eager/*",)
    bad = [c for c in every if c.outcome in BAD]
    found = patterns(bad, every, limit=2)
    assert found.total == len(bad)
    assert 0 < found.shown < found.total
    assert found.text.endswith(f"and {found.total - found.shown} more cells")


def test_speed_leaves_wrong_cells_out() -> None:
    good, wrong = (
        passing("a/bf16/sdpa/none"),
        a_cell("b/bf16/sdpa/none", a_check("agreement", Outcome.FAIL, "b"), a_check("speed", Outcome.PASS, "b")),
    )
    table = speed([good, wrong])
    assert table.left_out == 1
    assert [(r.attention, r.prefill.cells if r.prefill else 0) for r in table.rows] == [("sdpa", 1)]


def test_speed_leaves_figures_of_a_disturbed_machine_out() -> None:
    calm, shared = passing("a/bf16/sdpa/none"), passing("b/bf16/sdpa/none")
    sign = Measurement(name="decode_contention", unit="of the time", value=0.5)
    checks = tuple(
        msgspec.structs.replace(c, measurements=(*c.measurements, sign)) if c.name == "speed" else c
        for c in shared.checks
    )
    table = speed([calm, msgspec.structs.replace(shared, checks=checks)])
    ((prefill, decode),) = [(r.prefill, r.decode) for r in table.rows]
    assert prefill is not None
    assert decode is not None
    assert (prefill.cells, decode.cells) == (2, 1), "only the phase that was disturbed"
    assert table.without.startswith("Left out: doubtful figures of 1 cell (")
    assert not speed([calm]).without


def test_embedded_tables_select_and_never_vanish() -> None:
    text = matrix_tables(RUNS["large"], dtypes=["bf16"], quantizations=["none", "bnb-nf4"])
    assert text.count("| model |") == 2
    assert "fp16" not in text.split("\n- ")[0]
    with pytest.raises(ValueError, match="no cell"):
        matrix_tables(RUNS["large"], dtypes=["fp64"])


def test_importing_the_package_loads_no_renderer() -> None:
    code = "import sys, compat.render; print(sorted({'jinja2', 'rich', 'msgspec'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"kind": "forward", "rows": [[5] * 33]}, "one forward of 1 row of 33 tokens"),
        ({"kind": "forward", "images": {"which": [3]}}, "one forward of 1 image"),
        (
            {"kind": "padded", "rows": [[5], [6, 7, 8]], "length": 3, "side": "left"},
            "one forward of 2 rows of 1 to 3 tokens, 0 to 2 pads on the left",
        ),
        (
            {"kind": "decode", "rows": [[5] * 4], "length": 4, "steps": [2, ["crop", 1], 3], "cache": "static"},
            "1 row of 4 tokens, no pads, fed 2, crop 1, 3 at a time through a static cache",
        ),
        (
            {"kind": "replay", "rows": [[5]], "length": 2, "side": "left", "new": 1, "settings": {"top_k": 3}},
            "1 token generated from 1 row of 1 token, 1 pad on the left, with top_k",
        ),
        (
            {"kind": "generate", "rows": [[5]], "length": 1, "side": "left", "new": 2, "settings": {"num_beams": 3}},
            "2 tokens generated from 1 row of 1 token, no pads, with num_beams",
        ),
        ({"kind": "train", "rows": [[5, 6]]}, "a training step of 1 row of 2 tokens"),
        ({"kind": "forward", "drawn": {"seed": 0, "lengths": [33, 33]}}, "one forward of 2 rows of 33 tokens"),
        ({"kind": "save"}, "saving it and loading it again"),
    ],
)
def test_the_smallest_call_is_told_in_words(case: dict[str, object], words: str) -> None:
    assert smallest(Evidence(minimal={"case": case})) == words
    assert smallest(Evidence(minimal={"case": case, "note": "time was up"})) == f"{words} (time was up)"
    assert smallest(Evidence(minimal={"note": "no single call"})) == "no single call"


def test_cells_in_16_bit_say_who_looked_closer() -> None:
    cells = linked([passing("a/bf16/c/d"), passing("a/fp32/c/d"), passing("b/fp16/c/d")])
    assert sharper(cells[0]) == "agreement is pass in a/fp32/c/d"
    assert sharper(cells[1]) == ""
    assert sharper(cells[2]).startswith("not in this run")
    counted = "Sharper dtypes: 1 of 2 16-bit cells also judged in a finer dtype (1 pass); 1 not in this run"
    assert sharper_counts(cells) == counted
    assert counted in render(of(list(cells)), "markdown")


def test_workers_and_a_selection_are_said_in_words() -> None:
    run = small_run()
    asked = {
        "lanes": ["cuda:0", "cuda:1", "cuda:0"],
        "selected": {"cells": ["llama/*", "*/none"], "checks": []},
        "model_seconds": 75.0,
    }
    info = msgspec.structs.replace(run.run, settings=asked)
    text = dict(environment(msgspec.structs.replace(run, run=info)))["settings"]
    assert text == "3 workers on cuda:0, cuda:1, 1 min 15 s in the stack under test, cells llama/* */none"
    odd = msgspec.structs.replace(run.run, settings={"lanes": 3, "selected": {"cells": "x"}, "model_seconds": "<b>"})
    assert dict(environment(msgspec.structs.replace(run, run=odd)))["settings"] == "lanes 3, model_seconds <b>"
