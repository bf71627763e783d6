"""Law: text of a run is inert in every format, whatever it holds and wherever it stands."""

from __future__ import annotations

import json
import re
import unicodedata
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from compat.compare.history import past
from compat.records import (
    Cell,
    Check,
    Environment,
    Evidence,
    ExceptionInfo,
    FileIdentity,
    Gpu,
    Measurement,
    Outcome,
    Run,
    RunInfo,
    StackIdentity,
    summarize,
)
from compat.render import FORMATS, pictures, render
from compat.render.github import SUMMARY_BYTES, render_summary
from compat.render.inert import visible
from compat.render.issue import Tried, render_issue
from compat.render.points import METRICS
from compat.render.story import story_markdown, story_terminal
from compat.story import story

from .reading import MARKS, Page

PAYLOADS = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "{{ 7 * 7 }}{% raw %}",
    "a|b||c\\|d\\",
    "`code` ``` ~~~ \n```\n# title",
    "line\nbreak\r\n| x | y |\r",
    "\x1b[31mred\x1b]0;title\x07\x9b1m",
    "\u202egnp.exe\u2066\u200f\u061c",
    "@everyone #1 https://example.org www.example.org a@example.org :smile: $x$",
    "[link](javascript:alert(1)) ![image](x) <!-- - 1. > # *a* _b_",
    "\u2028\u2029\u0000\ufeff\u200b\U000e0041",
    "\u6f22\u5b57" * 60,
    "\u3164",
    "",
    "   ",
    "x" * 10_000,
    "__proto__",
    "'; rm -rf / #",
    "=cmd|' /C calc'!A0",
    "../../../etc/passwd",
    "..\\..\\con",
    "${{ secrets.TOKEN }}",
    "::error::x",
    ":::stop-commands::x",
    "a\n::error title=a,b::%0A::warning::c\n##[error]d",
    "x" * 71 + "::error::late",
    "##[add-mask]a",
    "100%0D%0A::error::x",
    "]]>&lt;&amp;<![CDATA[",
    "-*- coding: utf-7 -*-",
    '"""\nimport os\n"""',
)
hostile = st.one_of(
    st.sampled_from(PAYLOADS),
    st.text(max_size=40),
    st.tuples(st.sampled_from(PAYLOADS), st.text(max_size=5)).map("".join),
)
figures = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))
LAW = settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
FEW = settings(LAW, max_examples=12)


REAL = {"source": "hub"}
OPTIONAL = ("side", "length", "steps", "settings", "cache", "new", "images", "masked_row")


def cases(text: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, object]]:
    """The smallest call of a check, with hostile text where numbers or names belong."""
    kind = st.sampled_from(["forward", "padded", "packed", "decode", "generate", "replay", "repeat"])
    anything = st.one_of(text, st.integers(-3, 9), st.none(), st.lists(text, max_size=2))
    anything = st.one_of(anything, st.dictionaries(text, text, max_size=1))
    return st.fixed_dictionaries(
        {"kind": st.one_of(kind, text), "rows": st.lists(anything, max_size=2)},
        optional=dict.fromkeys(OPTIONAL, anything),
    )


ats = st.dictionaries(
    st.one_of(st.sampled_from(["length", "batch", "padding"]), hostile),
    st.one_of(st.sampled_from([0.0, 0.3, 1.0, 2.0, 256.0, 4096.0]), st.floats()),
    max_size=4,
)
anything = st.one_of(hostile, figures, st.booleans(), st.lists(hostile, max_size=2))


@st.composite
def speed_facts(draw: st.DrawFn) -> dict[str, object]:
    """Facts of a speed check, hostile in every place that a report reads."""
    entry = st.dictionaries(st.sampled_from(["phase", "length", "batch", "padding", "seconds"]), anything, max_size=5)
    state = st.dictionaries(st.one_of(st.sampled_from(["throttling", "sm_clock_mhz"]), hostile), anything, max_size=3)
    names = st.one_of(st.sampled_from(["4x256@0 prefill", "2x4096@0.3", "1x99999999@9.9.9 x"]), hostile)
    return {
        "points": draw(st.one_of(st.lists(st.one_of(entry, hostile), max_size=3), hostile)),
        "left_out": draw(st.one_of(st.dictionaries(names, anything, max_size=3), hostile)),
        "ceilings": draw(st.one_of(state, st.just({"copy_bytes_per_second": 1e12}))),
        "device_before": draw(state),
        "device_after": draw(st.one_of(state, hostile)),
        "baseline": draw(st.one_of(hostile, st.just("eager"))),
        "attention_alone": draw(anything),
    }


@st.composite
def gridded(draw: st.DrawFn) -> tuple[Measurement, ...]:
    """Measurements at points: some that make plots, some at places that are none."""
    names = [m.name for m in METRICS] + ["prefill_interval", "decode_contention", "pipeline_over_generate"]
    found = [
        Measurement(
            name=draw(st.sampled_from(names)),
            unit=draw(hostile),
            better="higher",
            value=draw(figures),
            ci95=draw(st.sampled_from([None, (0.5, 2.0), (-1e308, 1e308), (3.0, 1.0)])),
            at=draw(ats),
        )
        for _ in range(draw(st.integers(0, 4)))
    ]
    for length in draw(st.lists(st.sampled_from([1.0, 256.0, 2048.0, 1e9]), max_size=3)):
        for name in ("prefill_speedup", "prefill_peak_bytes", "decode_rate", "attention_bytes_share"):
            at = {"length": length, "batch": 2.0, "padding": draw(st.sampled_from([0.0, 0.3]))}
            found.append(Measurement(name=name, unit="x", value=draw(figures), ci95=(0.5, 2.0), at=at))
    return tuple(found)


@st.composite
def checks(draw: st.DrawFn, name: str | None = None) -> Check:
    """A check with hostile text in every place."""
    raised = ExceptionInfo(type=draw(hostile), message=draw(hostile), traceback=draw(hostile), refusal=draw(hostile))
    evidence = Evidence(
        kernels={draw(hostile): draw(st.integers(0, 9))},
        exception=draw(st.sampled_from([None, raised])),
        signature=draw(hostile),
        diverges_at=draw(hostile),
        minimal={
            draw(hostile): draw(hostile),
            "case": draw(st.one_of(hostile, st.dictionaries(hostile, hostile, max_size=2), cases(hostile))),
            "modules": [{"module": draw(hostile), "ratio_rms": draw(st.one_of(figures, hostile))}, draw(hostile)],
            "kernels": {draw(hostile): 1},
            "note": draw(hostile),
        },
        script=draw(hostile),
        repro=draw(hostile),
        facts={
            draw(hostile): draw(hostile),
            "deep": {draw(hostile): [draw(hostile), draw(figures)]},
            **(draw(speed_facts()) if name == "speed" else {}),
        },
    )
    speedup = Measurement(name="prefill_speedup", unit="x", better="higher", value=draw(figures), ci95=(0.5, 2.0))
    return Check(
        name=name or draw(hostile),
        outcome=draw(st.sampled_from(Outcome)),
        reason=draw(hostile),
        measurements=(
            speedup,
            Measurement(name=draw(hostile), unit=draw(hostile), value=draw(figures), method=draw(hostile)),
            *(draw(gridded()) if name == "speed" else ()),
        ),
        evidence=evidence,
    )


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """A run whose every text is hostile."""
    names = draw(st.lists(hostile, min_size=1, max_size=3))
    cells = []
    models = draw(st.lists(hostile, min_size=1, max_size=3))
    for model in models:
        for attention in names:
            axes = {"model": model, "dtype": draw(hostile), "attention": attention, "quantization": draw(hostile)}
            axes["dtype"], axes["quantization"] = draw(
                st.sampled_from([(axes["dtype"], "none"), ("bf16", "none"), ("bf16", "q")])
            )
            axes |= draw(st.sampled_from([{}, {draw(hostile): draw(hostile)}]))
            asked = (draw(checks()), draw(checks("speed")))
            effective = {"attention": draw(hostile), draw(hostile): {draw(hostile): 1}}
            link = {"cell": draw(hostile), "agreement": draw(hostile), "note": draw(hostile)}
            effective["sharper"] = draw(st.one_of(hostile, st.just(link)))
            outcome = draw(st.sampled_from(Outcome))
            cells.append(
                Cell(
                    id=draw(hostile),
                    axes=axes,
                    outcome=outcome,
                    reason=draw(hostile),
                    effective=effective,
                    checks=asked,
                )
            )
    info = RunInfo(
        id=draw(hostile),
        started=draw(hostile),
        ended=draw(hostile),
        argv=(draw(hostile),),
        matrix=FileIdentity(path=draw(hostile), sha256=draw(hostile)),
        stack=StackIdentity(name=draw(hostile), sha256=draw(hostile)),
        device=draw(hostile),
        settings={
            draw(hostile): draw(hostile),
            "models": draw(st.one_of(hostile, st.just(dict.fromkeys(models, REAL)))),
        },
    )
    machine = Environment(
        python=draw(hostile),
        cpu=draw(hostile),
        driver=draw(hostile),
        gpus=(Gpu(name=draw(hostile), arch=draw(hostile), memory_bytes=1),),
        packages={"torch": draw(hostile), draw(hostile): draw(hostile)},
    )
    return Run(run=info, environment=machine, cells=tuple(cells), summary=summarize(cells, 1.0))


def assert_visible(text: str) -> None:
    """No control, format, private, unassigned or surrogate character but the newline."""
    odd = {c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}} - {"\n"}
    assert not odd, odd


@LAW
@given(runs(), st.sampled_from([40, 80, 120]))
def test_terminal_is_inert_and_keeps_its_width(run: Run, width: int) -> None:
    text = render(run, "terminal", width=width)
    assert_visible(text)
    for line in text.split("\n"):
        assert cell_len(line) <= width or line.startswith("   $ "), line


@LAW
@given(runs())
def test_html_is_inert(run: Run) -> None:
    text = render(run, "html")
    assert_visible(text)
    page = Page(text)
    assert [a.get("type") for tag, a in page.elements if tag == "script"] == ["application/json", None]
    assert text.count("<script") == text.count("</script") == 2
    assert {tag for tag, _ in page.elements}.isdisjoint({"img", "iframe", "object", "link", "base", "embed"})
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcdoc")], tag
        assert (attributes.get("href") or "#").startswith("#")
    assert sorted(page.numbers()) == list(range(len(run.cells)))
    assert set(page.slots) <= MARKS
    assert_visible(json.dumps(page.data, ensure_ascii=False).replace("\\n", ""))


@LAW
@given(runs())
def test_markdown_is_inert(run: Run) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    text = render(run, "markdown", plots="plots")
    assert_visible(text)
    text, drawn = re.subn(r"^!\[[^\]\n]*\]\(plots/[a-z0-9.-]+\.svg\)$", "a picture", text, flags=re.MULTILINE)
    assert drawn == len(pictures(run))
    tokens = markdown_it.MarkdownIt("commonmark").enable("table").parse(text)
    flat = [t for token in tokens for t in [token, *(token.children or [])]]
    kinds = {t.type for t in flat}
    assert kinds.isdisjoint(
        {"link_open", "image", "hr", "code_block", "blockquote_open", "ordered_list_open", "em_open"}
    )
    for token in flat:
        if token.type in ("html_inline", "html_block"):
            rest = re.sub(r"</?(?:details|summary|code)>", "", token.content)
            assert "<" not in rest, token.content
    _check_rows(text)
    headings = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    assert all(h for h in headings)
    headings = [h for h, level in zip(headings, _levels(tokens), strict=True) if level == "h2"]
    assert all(h.startswith(("Matrix: ", "What went", "Speed", "Counts", "Run again", "Matrix&#58;")) for h in headings)


def _levels(tokens: list[object]) -> list[str]:
    return [str(t.tag) for t in tokens if t.type == "heading_open"]  # type: ignore[attr-defined]


@LAW
@given(runs())
def test_pictures_are_inert(run: Run) -> None:
    for name, text in pictures(run).items():
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*\.svg", name)
        assert_visible(text)
        names = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(text).iter()}
        assert names <= {"svg", "title", "desc", "style", "rect", "g", "path", "line", "text"}
        for element in ElementTree.fromstring(text).iter():
            assert not [a for a in element.attrib if a.startswith("on") or "href" in a or a == "style"]
            numbers = " ".join(v for a, v in element.attrib.items() if a in ("d", "x", "y", "x1", "x2", "y1", "y2"))
            assert not re.search("nan|inf", numbers), numbers


ANNOTATION = re.compile(r"::(error|warning) title=([^:,\r\n]*)::([^\r\n]*)")


@LAW
@given(runs())
def test_annotations_are_commands_of_ours_alone(run: Run) -> None:
    text = render(run, "annotations")
    assert_visible(text)
    found = [ANNOTATION.fullmatch(line) for line in text.split("\n")[:-1]]
    assert all(found)
    kinds = [m[1] for m in found if m is not None]
    assert kinds.count("error") <= 10
    assert kinds.count("warning") <= 10
    for match in found:
        assert match is not None
        assert not re.search("%(?!25|3A|2C)", match[2])
        assert not re.search("%(?!25)", match[3])


@LAW
@given(runs())
def test_junit_is_inert_and_whole(run: Run) -> None:
    text = render(run, "junit")
    assert_visible(text)
    root = ElementTree.fromstring(text.encode("utf-8"))
    names = {element.tag for element in root.iter()}
    assert names <= {
        "testsuites", "testsuite", "testcase", "properties", "property", "failure", "error", "skipped"
    }  # fmt: skip
    (suite,) = root
    assert len(list(root.iter("testcase"))) == sum(len(c.checks) or 1 for c in run.cells) == int(suite.get("tests", ""))
    for key, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert len(list(root.iter(tag))) == int(suite.get(key, ""))


@LAW
@given(runs(), st.sampled_from([SUMMARY_BYTES, 20_000, 3000, 1000]))
def test_a_summary_is_inert_and_fits(run: Run, room: int) -> None:
    text = render_summary(run, room)
    assert len(text.encode("utf-8")) <= room
    _inert_markdown(text)


TOLD = st.sampled_from(["none", "first"])


@LAW
@given(runs(), TOLD, st.sampled_from([60, 100]), hostile)
def test_a_story_is_inert(run: Run, which: str, width: int, place: str) -> None:
    cell = run.cells[0]
    told = story(run, cell, past(cell.id, [(place, run)]), 3)
    name = cell.checks[0].name if which == "first" else ""
    text = story_terminal(told, name, [(name, place)], width=width)
    assert_visible(text)
    for line in text.split("\n"):
        assert cell_len(line) <= width or line.startswith(("  $ ", "  | ")), line
    _inert_markdown(story_markdown(told, name, [(name, place)]))


@FEW
@given(runs(), hostile, hostile)
def test_a_text_for_an_issue_is_inert(run: Run, script: str, output: str) -> None:
    told = story(run, run.cells[0])
    for tried in (None, Tried(1, output, script)):
        _inert_markdown(render_issue(told, run.cells[0].checks[0], script, tried))


def _inert_markdown(text: str) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    assert_visible(text)
    tokens = markdown_it.MarkdownIt("commonmark").enable("table").parse(text)
    flat = [t for token in tokens for t in [token, *(token.children or [])]]
    forbidden = {"link_open", "image", "hr", "code_block", "blockquote_open", "ordered_list_open", "em_open"}
    assert {t.type for t in flat}.isdisjoint(forbidden)
    for token in flat:
        if token.type in ("html_inline", "html_block"):
            rest = re.sub(r"</?(?:details|summary|code)>", "", token.content)
            assert "<" not in rest, token.content
    _check_rows(text)


@FEW
@given(runs(), st.sampled_from([f for f in FORMATS if f != "annotations"]), st.sampled_from([40, 80]))
def test_nothing_is_a_command_to_a_log_of_github_actions(run: Run, format: str, width: int) -> None:
    told = story(run, run.cells[0], past(run.cells[0].id, [("x", run)]))
    check = run.cells[0].checks[0]
    for text in (
        render(run, format, width=width),
        story_terminal(told, width=width),
        story_markdown(told),
        render_issue(told, check, check.reason, Tried(1, check.reason, "")),
    ):
        assert not [line for line in re.split("[\r\n]", text) if line.lstrip().startswith("::")]
        assert "##[" not in text


def _check_rows(text: str) -> None:
    """Within a table every row has as many cells as its head, none of them blank."""
    fence, width = "", 0
    for line in text.split("\n"):
        if fence or line.startswith("```"):
            found = re.match("`{3,}", line)
            mark = found.group() if found else ""
            fence = "" if fence and line == fence else fence or mark
        elif line.startswith("|"):
            cells = line[1:-1].split("|")
            width = width or len(cells)
            assert len(cells) == width, line
        else:
            width = 0


@LAW
@given(hostile)
def test_visible_text_stays_as_it_is(text: str) -> None:
    assert_visible(visible(text))
    assert visible(visible(text)) == visible(text)


def test_direction_marks_are_spelled_out_everywhere() -> None:
    cell = Cell(id="evil\u202e", axes={"model": "evil\u202egnp"}, outcome=Outcome.FAIL, reason="r\u2066r")
    run = Run(run=RunInfo(id="x", started=""), environment=Environment(), cells=(cell,), summary=summarize([cell], 0))
    for format in ("terminal", "markdown", "html"):
        text = render(run, format)
        assert "\u202e" not in text
        assert "u202egnp" in text
