"""The report on a run as text for a terminal, at most `width` columns wide.

In: a `Run`. Out: text: verdict, environment, grids, legend, failures by cause, speed, counts, how to run it again. Only
commands that are meant to be copied may be longer than a line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from compat.records import BAD, Run
from compat.render.figures import bare_ratio, plural, ratio
from compat.render.groups import Group
from compat.render.inert import label, visible
from compat.render.speed import PHASES
from compat.render.summary import READING_ORDER, Report, summarise
from compat.render.symbols import symbol
from compat.render.terminal_exhibits import exhibit_lines
from compat.render.terminal_grids import abbreviations, grid_lines
from compat.render.terminal_lines import Line, fill, pad, paint, text_width, wrap

MIN_WIDTH = 40
WHY_LIMIT = 12
"""Reasons shown for cells that were not asked; the rest is counted."""


def render_terminal(run: Run, *, width: int = 80, color: bool = False, ascii: bool = False) -> str:
    """`run` for a terminal of `width` columns (never fewer than 40); escape codes only with `color`."""
    width = max(width, MIN_WIDTH)
    report = summarise(run)
    lines: list[Line] = []
    for section in (
        _verdict(report, width),
        _environment(report, width),
        grid_lines(report.panels, width, ascii),
        _legend(report, width, ascii),
        _failures(report, width, ascii),
        _not_asked(report, width, ascii),
        _speed(report, width),
        exhibit_lines(report.sections, width, table),
        _checks(report, width, ascii),
        _ending(run, report, width),
    ):
        block = list(section)
        if block:
            lines += [[], *block] if lines else block
    return "\n".join(paint(line, color) for line in lines) + "\n"


def _verdict(report: Report, width: int) -> Iterator[Line]:
    verdict = report.verdict
    style = "bold red" if verdict.avoid else "bold yellow" if verdict.partial or verdict.harness else "bold green"
    yield from wrap(verdict.text, width, style=style)


def _environment(report: Report, width: int) -> Iterator[Line]:
    margin = max((len(name) for name, _ in report.environment), default=0) + 2
    for name, text in report.environment:
        first, *rest = wrap(text, width, indent=" " * margin)
        yield [(name.ljust(margin), "dim"), *((t[margin:] if i == 0 else t, s) for i, (t, s) in enumerate(first))]
        yield from rest


def _legend(report: Report, width: int, ascii: bool) -> Iterator[Line]:
    outcomes = [o for o, _ in report.counts]
    items: list[Line] = [[(symbol(o).dense(ascii), symbol(o).style), (f" {symbol(o).word}", "")] for o in outcomes]
    if any(g.at(m, a) is None for p in report.panels for g in p.grids for m in p.models for a in p.attentions):
        items.append([(symbol(None).dense(ascii), symbol(None).style), (f" {symbol(None).word}", "")])
    if items:
        yield from fill("legend: ", items, width)
    short = _short(report)
    items = [[(f"{brief} = {label(name)}", "")] for name, brief in short.items() if brief != name]
    if items:
        yield from fill("columns: ", items, width)


def _short(report: Report) -> dict[str, str]:
    return abbreviations(tuple(dict.fromkeys(a for p in report.panels for a in p.attentions)))


def _failures(report: Report, width: int, ascii: bool) -> Iterator[Line]:
    if not report.failures:
        return
    yield from wrap(f"What went wrong: {plural(len(report.failures), 'cause')}, worst first", width, style="bold")
    for number, group in enumerate(report.failures, 1):
        yield []
        mark = symbol(group.outcome)
        checks = ", ".join(label(c, 40) for c in group.checks)
        title = f"{number}. {mark.word} in {plural(len(group.cells), 'cell')} ({checks}): {group.signature}"
        yield from wrap(title, width, indent="   ", style=mark.style, first="")
        yield from _labelled("cells", group.where.text, width)
        if group.reason not in group.signature:
            yield from _labelled("why", group.reason, width)
        if group.worst:
            yield from _labelled("worst", f"{group.worst} in {label(group.example, 200)}", width)
        if group.diverges_at:
            yield from _labelled("from", group.diverges_at, width)
        if group.smallest:
            yield from _labelled("with", group.smallest, width)
        if group.kernels:
            yield from _labelled("ran", group.kernels, width)
        if group.script:
            yield from _labelled("shown by", group.script, width)
        yield from _command(group)


def _labelled(name: str, text: str, width: int) -> Iterator[Line]:
    head = f"   {name}: "
    first, *rest = wrap(text, width, indent=" " * len(head))
    yield [(head, "dim"), *((t[len(head) :] if i == 0 else t, s) for i, (t, s) in enumerate(first))]
    yield from rest


def _command(group: Group) -> Iterator[Line]:
    if group.repro:
        yield [("   $ ", "dim"), (visible(group.repro), "bold")]
    else:
        yield [("   no command recorded", "dim")]


def _not_asked(report: Report, width: int, ascii: bool) -> Iterator[Line]:
    if not report.not_asked:
        return
    cells = sum(len(g.cells) for g in report.not_asked)
    yield from wrap(f"Not asked: {plural(cells, 'cell')}, by reason", width, style="bold")
    for group in report.not_asked[:WHY_LIMIT]:
        head = f"{symbol(group.outcome).dense(ascii)} {len(group.cells):>5,}  "
        first, *rest = wrap(f"{group.reason}: {group.where.text}", width, indent=" " * len(head))
        yield [(head, "dim"), *((t[len(head) :] if i == 0 else t, s) for i, (t, s) in enumerate(first))]
        yield from rest
    left = report.not_asked[WHY_LIMIT:]
    if left:
        yield [
            (f"  and {plural(sum(len(g.cells) for g in left), 'cell')} for {plural(len(left), 'other reason')}", "dim")
        ]


def _speed(report: Report, width: int) -> Iterator[Line]:
    speed = report.speed
    if not speed.rows and not speed.without:
        return
    at = f" at {speed.at}" if speed.at else ""
    yield from wrap(
        f"Speed against {speed.baseline}{at} (median over cells; f/s: cells surely faster / slower)",
        width,
        style="bold",
    )
    head = ["attention", "cells"]
    for phase in PHASES:
        head += [phase, "range", "f/s"]
    short = _short(report)
    rows = []
    for row in speed.rows:
        phases = [row.phase(phase) for phase in PHASES]
        texts = [
            f"{short[row.attention]}{f' {row.at}' if row.at else ''}",
            str(max((p.cells for p in phases if p), default=0)),
        ]
        for p in phases:
            texts += (
                [ratio(p.median), f"{bare_ratio(p.low)}-{bare_ratio(p.high)}", f"{p.faster}/{p.slower}"]
                if p
                else ["-"] * 3
            )
        rows.append(texts)
    if rows:
        yield from table(head, rows, width)
    if speed.without:
        yield from wrap(speed.without, width, style="dim")


def _checks(report: Report, width: int, ascii: bool) -> Iterator[Line]:
    yield [("Counts (columns as in the legend)", "bold")]
    outcomes = [o for o in READING_ORDER if o in dict(report.counts) or any(o in c for _, c in report.checks)]
    rows = [["cells", *(str(dict(report.counts).get(o, "-")) for o in outcomes)]]
    rows += [[label(name), *(str(counts.get(o, "-")) for o in outcomes)] for name, counts in report.checks]
    yield from table(
        ["", *(symbol(o).dense(ascii) for o in outcomes)], rows, width, [symbol(o).style for o in outcomes]
    )
    if report.sharper:
        yield []
        yield from wrap(report.sharper, width)


def _ending(run: Run, report: Report, width: int) -> Iterator[Line]:
    bad = sum(n for o, n in report.counts if o in BAD)
    where = f"Everything above is in run.json of run {label(run.run.id)}"
    yield from wrap(f"{where}; {plural(bad, 'bad cell')}." if bad else f"{where}.", width)
    if report.command:
        yield [("run again: ", "dim")]
        yield [("   $ ", "dim"), (visible(report.command), "bold")]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int, styles: Iterable[str] = ()) -> Iterator[Line]:
    """Columns with two spaces between them, the first to the left, others to the right; too many columns go below.

    `styles` are those of the columns after the first, for values other than `-`.
    """
    style = list(styles) or [""] * (len(head) - 1)
    sizes = [max(text_width(row[i]) for row in (head, *rows)) for i in range(len(head))]
    sizes[0] = min(sizes[0], width // 2)
    sizes[1:] = [min(size, width - sizes[0] - 2) for size in sizes[1:]]
    first = 1
    while first < len(head):
        last, used = first, sizes[0]
        while last < len(head) and (last == first or used + 2 + sizes[last] <= width):
            used += 2 + sizes[last]
            last += 1
        yield [
            (pad(head[0], sizes[0]), "dim"),
            *((f"  {pad(head[i], sizes[i], True)}", "dim") for i in range(first, last)),
        ]
        for row in rows:
            cells = [
                (f"  {pad(row[i], sizes[i], True)}", style[i - 1] if row[i] != "-" else "dim")
                for i in range(first, last)
            ]
            yield [(pad(row[0], sizes[0]), ""), *cells]
        first = last
