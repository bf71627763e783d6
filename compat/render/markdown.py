"""The report on a run as GitHub-flavoured Markdown, and its grid tables alone for other pages to embed.

In: a `Run`. Out: Markdown. All text that comes from a run stands in code: neither mentions, links, issue numbers,
emoji nor formulas are recognised there, and what could end the code or a table cell is written as a character
reference.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence

from compat.records import BAD, Run
from compat.render.figures import bare_ratio, plural, ratio
from compat.render.grids import Grid, Panel, panels
from compat.render.groups import Group
from compat.render.inert import label, visible
from compat.render.markdown_exhibits import exhibit_parts
from compat.render.speed import PHASES, Speed
from compat.render.summary import READING_ORDER, Report, headline_place, summarise
from compat.render.symbols import SYMBOLS, Symbol, symbol

SHOWN_PANELS = 2
"""Panels that are open at first; the others fold."""

_PLAIN_CODE = re.compile(r"[A-Za-z0-9_.,:;/{}*+=()#%\[\]'\" ?~-]*[A-Za-z0-9_.,:;/{}*+=()#%\[\]'\"?~-]")


def render_markdown(run: Run, *, plots: str = "") -> str:
    """`run` as a page that GitHub renders, ending in a newline.

    `plots` is the folder of its pictures as seen from the page (`plots`); without it the page has their tables alone.
    """
    report = summarise(run, pattern_limit=8)
    parts = [*_verdict(report), *_environment(report)]
    for number, panel in enumerate(report.panels):
        tables = "\n\n".join(_panel(panel, None))
        title = f"Matrix: {panel.title}"
        parts.append(f"## {_plain(title)}\n\n{tables}" if number < SHOWN_PANELS else _fold(title, tables))
    parts += [
        _legend([(p, g) for p in report.panels for g in p.grids]),
        *_failures(report),
        *_not_asked(report),
        *_speed(report.speed),
        *exhibit_parts(report.sections, plots, _table, _fold, lambda text: code(text), _plain),
        *_checks(report),
    ]
    if report.command:
        parts.append(f"## Run again\n\n{_block(report.command, 'sh')}")
    return "\n\n".join(part for part in parts if part) + "\n"


def matrix_tables(
    run: Run,
    *,
    dtypes: Collection[str] | None = None,
    quantizations: Collection[str] | None = None,
    legend: bool = True,
) -> str:
    """The grid tables of `run` alone, for the dtypes and quantizations named (all when None), ending in a newline.

    A line before them says on what they were measured, and when; `legend` adds what the marks mean. Raises
    `ValueError` when nothing is selected: an embedded table must not vanish unnoticed.
    """
    chosen = [p for p in panels(run.cells) if quantizations is None or p.quantization in quantizations]
    tables = [table for panel in chosen for table in _panel(panel, dtypes)]
    if not tables:
        raise ValueError(f"no cell of run {run.run.id!r} has dtype in {dtypes} and quantization in {quantizations}")
    shown = [(p, g) for p in chosen for g in p.grids if dtypes is None or g.dtype in dtypes]
    head = f"Measured on {code(headline_place(run))}, {code(run.run.started[:10])}, run {code(run.run.id)}."
    return "\n\n".join([head, *tables, *([_legend(shown)] if legend else [])]) + "\n"


def code(text: str, limit: int = 400) -> str:
    """`text` on one line as inline code, inert in a paragraph, a table cell and an HTML element alike."""
    text = label(text, limit)
    return f"`{text}`" if _PLAIN_CODE.fullmatch(text) and not text.startswith(" ") else _code_element(text)


def _code_element(text: str) -> str:
    """`text` in a code element, for what backticks cannot hold."""
    return "<code>" + _plain(text) + "</code>"


def _plain(text: str) -> str:
    """`text` with all that Markdown or GitHub gives a meaning to written as character references."""
    text = visible(text)
    around = zip(" " + text[:-1], text, text[1:] + " ", strict=True) if text else ()
    return "".join(_reference(char, before, after) for before, char, after in around)


def _reference(char: str, before: str, after: str) -> str:
    """`char` as itself or as a reference; a zero-width space parts an at or number sign from the name that follows."""
    harmless = char.isalnum() or char in " ,;()=%+-/'" or ord(char) > 127
    if harmless or (char == "." and (not before.isalpha() or after == " ")) or (char == ":" and after == " "):
        return char
    return f"&#{ord(char)};" + ("&#8203;" if char in "@#" else "")


def _block(text: str, language: str = "", lines: bool = False) -> str:
    """`text` as a fenced block, the fence longer than any run of backticks in it; with `lines` its newlines stay."""
    text = visible(text, lines=lines)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _fold(title: str, body: str) -> str:
    return f"<details>\n<summary>{_plain(title)}</summary>\n\n{body}\n\n</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    """A table; `align` is one letter for each column, `l`, `c` or `r`. All texts are Markdown already."""
    marks = {"l": ":--", "c": ":-:", "r": "--:"}
    lines = [head, [marks[a] for a in align], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _verdict(report: Report) -> Iterator[str]:
    verdict = report.verdict
    yield "\n\n".join(f"**{_plain(part)}**" for part in (verdict.partial, verdict.headline) if part)
    yield "\n\n".join(_plain(part) for part in (verdict.avoid, verdict.harness) if part)


def _environment(report: Report) -> Iterator[str]:
    yield _table(["", ""], ([name, code(text)] for name, text in report.environment), "ll")


def _panel(panel: Panel, dtypes: Collection[str] | None) -> Iterator[str]:
    for grid in panel.grids:
        if dtypes is None or grid.dtype in dtypes:
            yield f"{code(grid.dtype)}, {_title(panel)}\n\n{_grid(panel, grid)}{_absent(panel, grid)}"
    if panel.missing_models and dtypes is None:
        yield "Not in the matrix here: " + ", ".join(code(m, 60) for m in panel.missing_models)


def _title(panel: Panel) -> str:
    return ", ".join([f"quantization {code(panel.quantization)}", *(f"{code(n)} {code(v)}" for n, v in panel.extras)])


def _grid(panel: Panel, grid: Grid) -> str:
    """The table of one dtype, without the rows and columns that hold no cell in it."""
    models, attentions = grid.among(panel.models, 0), grid.among(panel.attentions, 1)
    rows = []
    for model in models:
        cells = [grid.at(model, attention) for attention in attentions]
        rows.append(
            [code(model, 60), *(_mark(symbol(c.outcome if c else None), bool(c and c.outcome in BAD)) for c in cells)]
        )
    return _table(["model", *(code(a, 60) for a in attentions)], rows, "l" + "c" * len(attentions))


def _absent(panel: Panel, grid: Grid) -> str:
    """The rows and columns of the panel that the table of one dtype leaves out."""
    named = []
    for place, (what, values) in enumerate((("models", panel.models), ("attention", panel.attentions))):
        here = grid.among(values, place)
        left = ", ".join(code(value, 60) for value in values if value not in here)
        named += [f"{what} {left}"] if left else []
    return f"\n\nNot in the matrix in {code(grid.dtype)}: {'; '.join(named)}" if named else ""


def _mark(mark: Symbol, bold: bool = False) -> str:
    text = mark.mark.replace("~", "&#126;")
    return f"**{text}**" if bold else text


def _legend(shown: Sequence[tuple[Panel, Grid]]) -> str:
    present = {c.outcome for _, grid in shown for c in grid.cells.values()}
    gap = any(
        grid.at(m, a) is None
        for panel, grid in shown
        for m in grid.among(panel.models, 0)
        for a in grid.among(panel.attentions, 1)
    )
    marks = [SYMBOLS[o] for o in READING_ORDER if o in present] + ([symbol(None)] if gap else [])
    return "\n".join(f"- {_mark(s)} {s.word}" + (f": {s.meaning}" if s.meaning else "") for s in marks)


def _failures(report: Report) -> Iterator[str]:
    if not report.failures:
        return
    yield "## What went wrong"
    rows = []
    for n, group in enumerate(report.failures, 1):
        mark = symbol(group.outcome)
        rows.append([str(n), f"{_mark(mark)} {mark.word}", f"{len(group.cells):,}", code(group.signature, 120)])
    yield _table(["", "outcome", "cells", "cause"], rows, "rlrl")
    for n, group in enumerate(report.failures, 1):
        mark = symbol(group.outcome)
        title = f"{n}. {mark.word} in {plural(len(group.cells), 'cell')}: {group.signature}"
        yield _fold(title, "\n".join(_details(group)) + "\n\n" + _command(group))


def _details(group: Group) -> Iterator[str]:
    yield f"- checks: {', '.join(code(c, 60) for c in group.checks)}"
    yield f"- cells: {_where(group)}"
    yield f"- why: {code(group.reason)}"
    if group.worst:
        yield f"- worst: {code(group.worst)} in {code(group.example)}"
    if group.diverges_at:
        yield f"- first module that leaves the yardstick: {code(group.diverges_at)}"
    if group.smallest:
        yield f"- smallest failing call: {code(group.smallest)}"
    if group.kernels:
        yield f"- kernels in it: {code(group.kernels)}"
    if group.script:
        yield f"- script that shows it: {code(group.script)}"


def _where(group: Group) -> str:
    rest = f" and {group.where.rest}" if group.where.rest else ""
    return ", ".join(code(text) for text in group.where.texts) + rest


def _command(group: Group) -> str:
    return _block(group.repro, "sh") if group.repro else "No command was recorded."


def _not_asked(report: Report) -> Iterator[str]:
    if not report.not_asked:
        return
    rows = []
    for group in report.not_asked:
        mark = symbol(group.outcome)
        rows.append([f"{_mark(mark)} {mark.word}", f"{len(group.cells):,}", code(group.reason, 200), _where(group)])
    cells = sum(len(g.cells) for g in report.not_asked)
    yield _fold(
        f"Not asked: {plural(cells, 'cell')}, by reason", _table(["outcome", "cells", "why", "which"], rows, "lrll")
    )


def _speed(speed: Speed) -> Iterator[str]:
    if not speed.rows and not speed.without:
        return
    at = f" at {code(speed.at)}" if speed.at else ""
    over = speed.baseline if speed.baseline == "eager" else code(speed.baseline)
    yield (
        f"## Speed against {over}\n\nMedian over cells{at}, range in brackets; faster and slower: cells whose 95% "
        f"interval lies wholly above or below 1. {speed.without}".rstrip()
    )
    head = ["attention", "cells", *(f"{phase}{more}" for phase in PHASES for more in ("", " faster / slower"))]
    rows = []
    for row in speed.rows:
        phases = [row.phase(phase) for phase in PHASES]
        texts = [
            code(f"{row.attention}, {row.at}" if row.at else row.attention, 90),
            f"{max((p.cells for p in phases if p), default=0):,}",
        ]
        for p in phases:
            texts += (
                [f"{ratio(p.median)} ({bare_ratio(p.low)} to {bare_ratio(p.high)})", f"{p.faster:,} / {p.slower:,}"]
                if p
                else ["-", "-"]
            )
        rows.append(texts)
    if rows:
        yield _table(head, rows, "lrrrrr")


def _checks(report: Report) -> Iterator[str]:
    counts = dict(report.counts)
    outcomes = [o for o in READING_ORDER if o in counts or any(o in c for _, c in report.checks)]
    rows = [["cells", *(f"{counts.get(o, 0):,}" for o in outcomes)]]
    rows += [[code(name, 60), *(f"{found.get(o, 0):,}" for o in outcomes)] for name, found in report.checks]
    if outcomes:
        yield "## Counts\n\n" + _table(
            ["", *(_mark(symbol(o)) + " " + symbol(o).word for o in outcomes)], rows, "l" + "r" * len(outcomes)
        )
    if report.sharper:
        yield _plain(report.sharper)
