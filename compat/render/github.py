"""What a step of GitHub Actions shows of a run: annotations, and the step's summary.

In: a `Run`. Out: workflow commands, one a line; and Markdown of at most so many bytes, failures by cause first. Both
are bounded by what GitHub takes: ten errors, ten warnings and 1 MiB of summary a step. What is left out is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

import msgspec

from compat.records import BAD, Cell, Outcome, Run, cell_outcome
from compat.render.figures import plural
from compat.render.grids import Grid, Panel
from compat.render.groups import Group, failures
from compat.render.inert import one_line
from compat.render.markdown import (
    _checks,
    _command,
    _details,
    _environment,
    _fold,
    _legend,
    _mark,
    _panel,
    _plain,
    _table,
    _verdict,
    _where,
    code,
)
from compat.render.summary import summarise
from compat.render.symbols import symbol

MOST = 10
"""Annotations of one kind that GitHub shows of a step."""

SUMMARY_BYTES = 1024 * 1024
"""What GitHub takes as the summary of one step, in UTF-8."""

RESERVE = 2000
"""Bytes kept for the sentence that says what was left out."""

MESSAGE = 1500
"""Characters of an annotation's message."""

ROWS = 200
"""Rows of a table of causes."""


Expected = Set[tuple[str, str]]
"""(cell id, check) of failures that expectations name."""


def render_annotations(run: Run, expected: Expected = frozenset()) -> str:
    """`::error` for what must not be used, `::warning` for the rest: one a cause, each kind at most ten, worst first.

    What is `expected` is one `::notice` that counts it. The text ends in a newline unless there is nothing to say. No
    annotation names a file: a cell has none.
    """
    found = failures([_unexpected(c, expected) for c in run.cells], 3)
    errors = [g for g in found if g.outcome in BAD]
    warnings = [g for g in found if g.outcome not in BAD]
    lines = [*_limited("error", errors), *_limited("warning", warnings)]
    if expected:
        cells = len({cell for cell, _ in expected})
        title = f"compat: {plural(len(expected), 'expected failure')}"
        lines.append(command("notice", title, f"in {plural(cells, 'cell')}; `compat expect` names each."))
    return "".join(line + "\n" for line in lines)


def _unexpected(cell: Cell, expected: Expected) -> Cell:
    """`cell` without the checks that are expected to fail, and with the outcome of the others."""
    left = tuple(c for c in cell.checks if (cell.id, c.name) not in expected)
    if len(left) == len(cell.checks):
        return cell
    return msgspec.structs.replace(cell, checks=left, outcome=cell_outcome(left) if left else Outcome.PASS)


def command(name: str, title: str, message: str) -> str:
    """One workflow command; nothing in `title` or `message` can end it, start another, or add a property."""
    text = one_line(message, MESSAGE)
    return f"::{name} title={_property(one_line(title, 200))}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _limited(name: str, groups: Sequence[Group]) -> Iterator[str]:
    shown = groups if len(groups) <= MOST else groups[: MOST - 1]
    for group in shown:
        title = f"compat: {symbol(group.outcome).word} in {plural(len(group.cells), 'cell')}"
        again = f" Again: {group.repro}" if group.repro else ""
        yield command(name, title, f"{group.where.text}: {', '.join(group.checks)}: {group.reason}.{again}")
    left = groups[len(shown) :]
    if left:
        cells = len({c.id for g in left for c in g.cells})
        title = f"compat: {plural(len(left), 'more cause')}"
        yield command(name, title, f"{plural(cells, 'cell')} more; all causes are in the summary and the stored run.")


def render_summary(run: Run, room: int = SUMMARY_BYTES, expected: Expected = frozenset()) -> str:
    """The summary as Markdown of at most `room` bytes of UTF-8, ending in a newline; all of the run, expected or not.

    What does not fit is left out whole, and a last sentence names it. With less room than that sentence takes, "".
    """
    kept, left = [], []
    free = room - RESERVE
    for name, text in _parts(run, expected):
        size = len(text.encode("utf-8")) + 2
        if size <= free:
            kept.append(text)
            free -= size
        else:
            left.append(name)
    if left:
        kept.append(_left_out(left))
    text = "\n\n".join(kept) + "\n"
    return text if len(text.encode("utf-8")) <= room else ""


def _left_out(names: Sequence[str]) -> str:
    counted = {name: names.count(name) for name in names}
    told = ", ".join(name if n == 1 else f"{name} ({n})" for name, n in counted.items())
    return f"Left out here, since a summary takes 1 MiB: {_plain(one_line(told, 400))}. The stored run has all of it."


def _parts(run: Run, expected: Expected) -> Iterator[tuple[str, str]]:
    """(what it is, Markdown), the most important first."""
    report = summarise(run, pattern_limit=4)
    yield "the verdict", "\n\n".join(["## compat", *(t for t in _verdict(report) if t)])
    if expected:
        yield "what is expected", f"Expectations name {plural(len(expected), 'failing check')} of those below."
    if report.failures:
        shown, rest = report.failures[:ROWS], len(report.failures) - ROWS
        rows = [_row(n, g) for n, g in enumerate(shown, 1)]
        more = f"\n\n{plural(rest, 'more cause')} in the stored run." if rest > 0 else ""
        head = ["", "outcome", "cells", "which", "cause"]
        yield "the table of causes", "### What went wrong, by cause\n\n" + _table(head, rows, "rlrll") + more
    for panel in report.panels:
        yield "matrices", _fold(f"Matrix: {panel.title}", "\n\n".join([*_panel(panel, None), _legend(_shown(panel))]))
    yield "the counts", "\n\n".join(_checks(report)).replace("## Counts", "### Counts")
    yield "the environment", _fold("Environment", "\n\n".join(_environment(report)))
    for n, group in enumerate(report.failures, 1):
        title = f"{n}. {symbol(group.outcome).word} in {plural(len(group.cells), 'cell')}: {group.signature}"
        yield "causes in full", _fold(title, "\n".join(_details(group)) + "\n\n" + _command(group))
    if report.not_asked:
        quiet = [
            [
                f"{_mark(symbol(g.outcome))} {symbol(g.outcome).word}",
                f"{len(g.cells):,}",
                code(g.reason, 200),
                _where(g),
            ]
            for g in report.not_asked
        ]
        cells = sum(len(g.cells) for g in report.not_asked)
        title = f"Not asked: {plural(cells, 'cell')}, by reason"
        yield "what was not asked", _fold(title, _table(["outcome", "cells", "why", "which"], quiet, "lrll"))


def _row(number: int, group: Group) -> list[str]:
    mark = symbol(group.outcome)
    return [
        str(number),
        f"{_mark(mark)} {mark.word}",
        f"{len(group.cells):,}",
        _where(group),
        code(group.signature, 120),
    ]


def _shown(panel: Panel) -> list[tuple[Panel, Grid]]:
    return [(panel, grid) for grid in panel.grids]
