"""Laws of plots: every figure is drawn and listed, nothing is drawn that was not measured, nothing overflows."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compat.judge import judge
from compat.records import Cell, Measurement, Outcome, Run
from compat.render import pictures, render
from compat.render.exhibits import plots, sections
from compat.render.ink import text_size
from compat.render.palette import DARK, KNOWN, LIGHT, PAGE, SLOTS, marker, styles
from compat.render.plot_parts import BarPanel, Exhibit, Panel, Plot
from compat.render.plots import panel_size, panel_svg
from compat.render.points import Figure, Point, families, point_of
from compat.render.speed import speed
from compat.render.speed_text import value_text
from compat.render.ticks import linear_ticks, log_ticks, size_ticks
from compat.rules import Context
from compat.stored import write_report

from .sample_grid import MODEL, grid_run, measured
from .sample_runs import a_cell, a_check, passing, small_run

LAW = settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
SVG = "{http://www.w3.org/2000/svg}"
values = st.one_of(st.floats(1e-6, 1e12), st.sampled_from([0.0, -1.0, 1e-300, 1e300, 1.0]))
places = st.tuples(st.sampled_from([1, 2, 8]), st.sampled_from([128, 256, 2048, 4096]), st.sampled_from([0.0, 0.3]))


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """A run on a grid with figures missing at random, some of them in doubt."""
    cells = []
    names = ("prefill_speedup", "prefill_rate", "prefill_peak_bytes", "decode_rate", "attention_flops_share")
    for attention in draw(st.lists(st.sampled_from([*KNOWN, "my own", "x" * 50]), min_size=1, max_size=5, unique=True)):
        found = []
        for batch, length, padding in draw(st.lists(places, max_size=6, unique=True)):
            at = {"batch": float(batch), "length": float(length), "padding": padding}
            for name in draw(st.sets(st.sampled_from(names))):
                found.append(measured(name, draw(values), draw(st.sampled_from([0.0, 0.02, 1.5])), at=at))
            found.append(measured("prefill_interval", draw(st.sampled_from([0.01, 0.9])), at=at))
        place = f"{MODEL}/bf16/{attention}/{draw(st.sampled_from(['none', 'bnb-nf4']))}"
        check = msgspec.structs.replace(a_check("memory", Outcome.PASS, place), name="speed", measurements=tuple(found))
        cells.append(a_cell(place, check))
    return msgspec.structs.replace(small_run(), cells=tuple(cells))


def exhibits(run: Run) -> list[Exhibit]:
    """Everything that is shown."""
    return [e for section in sections(run) for e in section.exhibits]


def tree(plot: Plot, panel: Panel | BarPanel) -> ElementTree.Element:
    """A panel, read back."""
    return ElementTree.fromstring(
        panel_svg(plot, panel, "p").replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    )


# -- what is drawn -----------------------------------------------------------------------------------------------


@LAW
@given(runs())
def test_every_figure_of_a_grid_is_in_a_table(run: Run) -> None:
    shown = {e.title: e for e in exhibits(run)}
    for family in families(run.cells):
        for sheet in family.sheets:
            for (attention, point), found in sheet.figures.items():
                cell = next(c for c in family.cells if c.axes["attention"] == attention)
                own = [m for m in cell.checks[0].measured(sheet.metric.name) if point_of(m) == point]
                assert own[0].value == found.value
            assert len(sheet.figures) + len(sheet.gaps) == len(sheet.points) * len(sheet.attentions)
    for exhibit in shown.values():
        assert all(len(row) == len(exhibit.head) and all(row) for row in exhibit.rows)


@LAW
@given(runs())
def test_every_dot_is_drawn_and_none_beside(run: Run) -> None:
    for plot in plots(sections(run)):
        for panel in plot.panels:
            svg = tree(plot, panel)
            titles = [t.text for g in svg.iter(f"{SVG}g") for t in g.findall(f"{SVG}title")]
            if isinstance(panel, BarPanel):
                wanted = [f"{b.style.name}: {b.text}" for _, bars in panel.rows for b in bars]
            else:
                wanted = [f"{c.style.name}, {d.text}" for c in panel.curves for d in c.dots]
                wanted += [f"{c.style.name}: {g.why}" for c in panel.curves for g in c.gaps]
            assert sorted(map(str, titles)) == sorted(wanted)


@LAW
@given(runs())
def test_a_plot_has_a_curve_of_two_points_or_two_rows(run: Run) -> None:
    for plot in plots(sections(run)):
        lines = [len(c.dots) for p in plot.panels if isinstance(p, Panel) for c in p.curves]
        rows = [len(p.rows) for p in plot.panels if isinstance(p, BarPanel)]
        assert max([*lines, *rows]) > 1


@LAW
@given(runs())
def test_no_line_bridges_a_missing_point(run: Run) -> None:
    for plot in plots(sections(run)):
        for panel in plot.panels:
            if isinstance(panel, BarPanel):
                continue
            paths = [p for p in tree(plot, panel).iter(f"{SVG}path") if "curve" in p.attrib["class"]]
            assert sum(p.attrib["d"].count("L") for p in paths) == sum(_neighbours(panel, c.dots) for c in panel.curves)


def _neighbours(panel: Panel, dots: tuple[object, ...]) -> int:
    xs = {d.x for d in dots}  # type: ignore[attr-defined]
    ordered = sorted(panel.xs)
    return sum(a in xs and b in xs for a, b in itertools.pairwise(ordered))


@LAW
@given(runs())
def test_nothing_overflows_and_every_number_is_finite(run: Run) -> None:
    for plot in plots(sections(run)):
        for panel in plot.panels:
            width, height = panel_size(plot, panel)
            for element in tree(plot, panel).iter():
                for name in ("x", "y", "x1", "x2", "y1", "y2", "d"):
                    for number in re.findall(r"[^\sA-Za-z]+", element.attrib.get(name, "").replace("a", " ")):
                        assert math.isfinite(float(number))
                assert not re.search("nan|inf", element.attrib.get("d", ""))
                if element.tag == f"{SVG}text":
                    _assert_inside(element, width, height)


def _assert_inside(element: ElementTree.Element, width: float, height: float) -> None:
    size = text_size(element.text or "", float(element.attrib.get("font-size", 11)))
    x, y = float(element.attrib["x"]), float(element.attrib["y"])
    before = {"start": 0.0, "middle": 0.5, "end": 1.0}[element.attrib["text-anchor"]]
    assert x - before * size >= -1, (element.text, x)
    assert x + (1 - before) * size <= width + 1, (element.text, x)
    assert 8 <= y <= height


@LAW
@given(runs())
def test_pictures_are_whole_documents_with_distinct_names(run: Run) -> None:
    found = pictures(run)
    assert len(found) == len(plots(sections(run)))
    for text in found.values():
        root = ElementTree.fromstring(text)
        assert root.attrib["viewBox"] == f"0 0 {root.attrib['width']} {root.attrib['height']}"
        assert "var(--" not in text


def test_hollow_marks_are_the_inconclusive_ones() -> None:
    plot = next(p for p in plots(sections(grid_run())) if p.name == "llama-7b-bf16-none-prefill-speedup")
    hollow = [
        (c.style.name, d.x) for p in plot.panels if isinstance(p, Panel) for c in p.curves for d in c.dots if d.hollow
    ]
    assert hollow == [("sdpa", 256.0)]
    assert panel_svg(plot, plot.panels[0], "p").count(" hollow") == 1
    assert "Inconclusive (?, hollow): sdpa at 1 x 256." in plot.caption


def test_an_inconclusive_check_without_a_broken_guard_is_in_doubt_as_a_whole() -> None:
    cell = grid_run().cells[2]
    check = msgspec.structs.replace(cell.checks[0], outcome=Outcome.INCONCLUSIVE)
    (family,) = families([msgspec.structs.replace(cell, checks=(check,))])
    by_name = {s.metric.name: s for s in family.sheets}
    assert not any(f.firm for f in by_name["prefill_rate"].figures.values())
    assert all(f.firm for f in by_name["prefill_peak_bytes"].figures.values())


def test_what_did_not_fit_is_a_gap_with_its_reason() -> None:
    plot = next(p for p in plots(sections(grid_run())) if p.name == "llama-7b-bf16-none-prefill-rate")
    gaps = [
        (c.style.short, g.x, g.brief) for p in plot.panels if isinstance(p, Panel) for c in p.curves for g in c.gaps
    ]
    assert gaps == [("s-math", 4096.0, "oom"), ("s-math", 4096.0, "oom")]
    assert "sdpa-math at 4 x 4096; 4 x 4096, 30% pads: the candidate does not fit: CUDA out of memory." in plot.caption


def test_a_wrong_backend_has_no_speed_and_is_named() -> None:
    section = sections(grid_run())[0]
    assert "99,999" not in render(grid_run(), "markdown")
    assert any("sdpa-cudnn: its check agreement is fail" in note for note in section.notes)


def test_rows_that_change_with_the_length_make_one_curve() -> None:
    at = [{"length": 256.0, "batch": 8.0}, {"length": 4096.0, "batch": 2.0}]
    found = tuple(measured("prefill_rate", 100.0 + i, 0.01, at=a) for i, a in enumerate(at))
    check = msgspec.structs.replace(a_check("memory", Outcome.PASS, "x"), name="speed", measurements=found)
    (plot,) = plots(sections(msgspec.structs.replace(small_run(), cells=(a_cell("m/bf16/sdpa/none", check),))))
    assert [p.title for p in plot.panels] == ["8 x 256, 2 x 4096, no pads"]


def test_the_engines_own_facts_make_the_same_plots() -> None:
    point = {"batch": 2, "padding": 0.0, "unit": "tokens", "stopped": "tight", "rates": [1.0], "contention": 0.0}
    entries = [
        {"phase": "prefill", "length": n, "tokens": 2 * n, "seconds": [0.1, 0.11] * 6,
         "baseline_seconds": [0.2, 0.21] * 6, "first_seconds": 0.5, **point}
        for n in (128, 512)
    ]  # fmt: skip
    left_out = {"2x2048@0 prefill": "the candidate does not fit: out of memory"}
    facts = {"points": entries, "left_out": left_out, "baseline": "eager"}
    answer = {"status": "ok", "measurements": [], "facts": facts, "kernels": {}}
    axes = dict(zip(("model", "dtype", "attention", "quantization"), ("m", "bf16", "sdpa", "none"), strict=True))
    check = judge("speed", answer, Context(axes, "cpu", real=False))
    run = msgspec.structs.replace(small_run(), cells=(a_cell("m/bf16/sdpa/none", check),))
    names = [p.name for p in plots(sections(run))]
    assert names == ["m-bf16-none-prefill-speedup", "m-bf16-none-prefill-rate"]
    assert any("No backend at 2 x 2048: the candidate does not fit" in note for note in sections(run)[0].notes)
    assert "engine: difference of neighbouring samples" in render(run, "terminal", width=200)


# -- words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "kind", "text"),
    [
        (Figure(1.25, 1.21, 1.3, True), "ratio", "1.25x [1.21, 1.30]"),
        (Figure(1.04, 0.98, 1.1, True), "ratio", "~1.00x [0.98, 1.10]"),
        (Figure(0.8, 0.7, 0.9, True, firm=False), "ratio", "0.80x [0.70, 0.90] ?"),
        (Figure(1.25), "ratio", "1.25x [no interval]"),
        (Figure(12345.6, 12000.0, 12500.0, True), "rate", "12,346 [12,000, 12,500]"),
        (Figure(3 * 2.0**30), "bytes", "3 GiB"),
        (Figure(0.0123), "seconds", "12.3 ms"),
        (Figure(0.414), "share", "41.4%"),
        (Figure(3.1e14), "flops", "310 TFLOP/s"),
    ],
)
def test_figures_in_words(found: Figure, kind: str, text: str) -> None:
    assert value_text(found, kind) == text


@pytest.mark.parametrize(
    ("at", "point"),
    [
        ({"length": 256.0, "batch": 4.0, "padding": 0.3}, Point(4, 256, 0.3)),
        ({"length": 7.0}, Point(1, 7, 0.0)),
        ({}, None),
        ({"length": math.nan}, None),
        ({"length": 5.0, "padding": 1.0}, None),
        ({"length": 1e300}, None),
        ({"length": 5.0, "batch": 0.5}, None),
    ],
)
def test_points(at: dict[str, float], point: Point | None) -> None:
    assert point_of(Measurement(name="prefill_rate", unit="", at=at)) == point


def test_figures_of_different_points_never_share_a_row() -> None:
    def cell(model: str, length: float, value: float) -> Cell:
        at = {"length": length, "batch": 2.0, "padding": 0.0}
        found = (measured("prefill_speedup", value, 0.01, at=at),)
        check = msgspec.structs.replace(a_check("memory", Outcome.PASS, model), name="speed", measurements=found)
        return a_cell(f"{model}/bf16/sdpa/none", check)

    cells = [cell("a", 128, 1.1), cell("b", 128, 1.3), cell("c", 16, 5.0)]
    table = speed(cells)
    assert [(r.at, r.prefill.cells, r.prefill.high) for r in table.rows if r.prefill] == [
        ("2 x 16", 1, 5.0),
        ("2 x 128", 2, 1.3),
    ]
    assert speed(cells[:2]).at == "2 x 128"


def test_a_grid_is_no_part_of_the_summary() -> None:
    cells = [*grid_run().cells, passing("other/bf16/sdpa/none")]
    assert [(r.attention, r.prefill.cells) for r in speed(cells).rows if r.prefill] == [("sdpa", 1)]


def test_the_page_shows_its_pictures(tmp_path: Path) -> None:
    write_report(grid_run(), tmp_path / "report.md", "markdown")
    named = re.findall(r"!\[[^\]]*\]\((plots/[^)]+)\)", (tmp_path / "report.md").read_text(encoding="utf-8"))
    assert named
    assert sorted(named) == sorted(f"plots/{p.name}" for p in (tmp_path / "plots").iterdir())
    assert "plots/" not in render(grid_run(), "markdown")


def test_a_run_without_a_grid_writes_no_pictures(tmp_path: Path) -> None:
    write_report(small_run(), tmp_path / "report.md", "markdown")
    assert [p.name for p in tmp_path.iterdir()] == ["report.md"]


def test_panels_of_the_page_have_titles_and_distinct_ids() -> None:
    text = render(grid_run(), "html")
    labels = re.findall(r'aria-labelledby="(plot-[^"]+)"', text)
    assert labels
    assert len(set(labels)) == len(labels)
    for both in labels:
        for identity in both.split():
            assert text.count(f'id="{identity}"') == 1


# -- axes and colours --------------------------------------------------------------------------------------------


@LAW
@given(st.floats(-1e15, 1e15), st.floats(0, 1e15))
def test_linear_ticks_cover(low: float, size: float) -> None:
    _assert_cover(linear_ticks(low, low + size), low, low + size)


@LAW
@given(st.floats(1e-11, 1e17), st.floats(1, 1e6), st.sampled_from([log_ticks, size_ticks]))
def test_logarithmic_ticks_cover(low: float, ratio: float, ticks: object) -> None:
    high = min(low * ratio, 1e18)
    _assert_cover(ticks(low, high), low, high)  # type: ignore[operator]


def _assert_cover(ticks: tuple[float, ...], low: float, high: float) -> None:
    assert list(ticks) == sorted(set(ticks))
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 9


@pytest.mark.parametrize(("colours", "page"), [(LIGHT, PAGE["page"]), (DARK, "#101317")])
def test_colours_are_seen_on_their_page_and_apart(colours: tuple[str, ...], page: str) -> None:
    assert all(_contrast(c, page) >= 3 for c in colours)
    usual = [colours[i] for i in range(4)]
    for matrix in (_SAME, _NO_RED, _NO_GREEN):
        seen = [_seen(c, matrix) for c in usual]
        distances = [math.dist(a, b) for i, a in enumerate(seen) for b in seen[i + 1 :]]
        assert min(distances) > 0.12


_SAME = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
_NO_RED = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
_NO_GREEN = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881))
"""Protanopia and deuteranopia in linear RGB (Machado, Oliveira and Fernandes, 2009, severity 1)."""


def _linear(colour: str) -> list[float]:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]


def _contrast(a: str, b: str) -> float:
    """By the definition of WCAG 2."""
    bright = sorted(sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), _linear(c), strict=True)) for c in (a, b))
    return (bright[1] + 0.05) / (bright[0] + 0.05)


def _seen(colour: str, matrix: tuple[tuple[float, ...], ...]) -> list[float]:
    """The colour as such an eye has it, by the square root of each part: about even steps for the eye."""
    linear = _linear(colour)
    return [math.sqrt(min(max(sum(w * p for w, p in zip(row, linear, strict=True)), 0.0), 1.0)) for row in matrix]


def test_every_backend_has_a_shape_and_a_name_of_its_own() -> None:
    found = styles([*KNOWN, "another", "another-one-with-a-long-name", "another-one-with-a-long-tail"])
    assert [found[name].slot for name in KNOWN] == list(range(SLOTS))
    assert len({s.short for s in found.values()}) == len(found)
    assert len({marker(slot, 0, 0) for slot in range(SLOTS)}) == SLOTS
    assert styles(["mine", "sdpa"])["sdpa"].slot == KNOWN.index("sdpa")
