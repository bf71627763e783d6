"""The report on a run as one page that needs nothing else: no network, no files beside it.

In: a `Run`. Out: HTML. The page reads without scripts; with them it filters and shows the evidence of a cell. Text of
the run is escaped by the template, or travels as JSON in which nothing can end the script element; a content security
policy allows the page's own script and style by their hash and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup

from compat.records import BAD, Cell, Check, Evidence, Measurement, Run, point_name
from compat.render.evidence import begins, kernels, parted, script, sharper, smallest
from compat.render.figures import duration, figure, flat, plain, plural, ratio
from compat.render.grids import AXES, Grid, Panel, axis_value, in_order
from compat.render.groups import Group
from compat.render.html_exhibits import html_sections
from compat.render.inert import clip, label, one_line, visible
from compat.render.palette import css_variables
from compat.render.speed import PHASES, Speed, SpeedRow, Speedups
from compat.render.speed_text import LEGEND
from compat.render.summary import READING_ORDER, Report, summarise
from compat.render.symbols import ABSENT, SYMBOLS, Symbol, symbol

TRACEBACK_LIMIT = 8000
"""Characters of a traceback on the page; its end is what tells. All of it is in run.json."""

LOWEST_POWER, HIGHEST_POWER = -6, 10
"""Powers of two between which speedups are drawn; what lies beyond is drawn at the edge."""


def render_html(run: Run) -> str:
    """`run` as one self-contained page."""
    report = summarise(run, pattern_limit=8)
    style, script = css_variables() + _resource("report.css") + _resource("plots.css"), _resource("report.js")
    numbers = {id(cell): number for number, cell in enumerate(run.cells)}
    return _template().render(
        title=f"compat {label(run.run.id)}",
        run_id=label(run.run.id),
        report=report,
        total=len(run.cells),
        chips=[(symbol(o), dict(report.counts).get(o, 0)) for o in READING_ORDER if _occurs(o.value, report)],
        absent=ABSENT,
        panels=[_panel(panel, numbers) for panel in report.panels],
        filters=_filters(run, report),
        groups=[_group(n, g, run) for n, g in enumerate(report.failures)],
        quiet=[_group(n, g, run) for n, g in enumerate(report.not_asked, len(report.failures))],
        check_head=[symbol(o) for o in READING_ORDER if _occurs(o.value, report)],
        check_rows=_check_rows(report),
        charts=charts(report.speed),
        sections=list(html_sections(report.sections)),
        legend=LEGEND,
        command=visible(report.command),
        data=Markup(_data(run, report)),
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'",
    )


@cache
def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["plural"] = plural
    environment.filters["ratio"] = ratio
    return environment.from_string(_resource("report.html.j2"))


def _hash(text: str) -> str:
    """The content security policy source that allows exactly `text`."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _panel(panel: Panel, numbers: dict[int, int]) -> dict[str, Any]:
    return {
        "title": label(panel.title, 300),
        "missing": ", ".join(label(m, 60) for m in panel.missing_models),
        "attentions": [label(a) for a in panel.attentions],
        "wide": len(panel.attentions) > 16,
        "grids": [{"dtype": label(g.dtype), "rows": _rows(panel, g, numbers)} for g in panel.grids],
    }


def _rows(panel: Panel, grid: Grid, numbers: dict[int, int]) -> list[tuple[str, list[dict[str, Any] | None]]]:
    rows: list[tuple[str, list[dict[str, Any] | None]]] = []
    for model in panel.models:
        cells = [grid.at(model, attention) for attention in panel.attentions]
        rows.append((label(model), [_slot(c, numbers) if c else None for c in cells]))
    return rows


def _slot(cell: Cell, numbers: dict[int, int]) -> dict[str, Any]:
    mark = symbol(cell.outcome)
    reason = one_line(cell.reason, 160)
    return {
        "number": numbers[id(cell)],
        "mark": mark,
        "title": f"{label(cell.id)}: {mark.word}" + (f": {reason}" if reason else ""),
    }


def _filters(run: Run, report: Report) -> list[tuple[str, str, list[str]]]:
    """Form name, label and choices of each filter that can tell cells apart."""
    found = [(f"is.{label(axis)}", label(axis), _choices(run, axis)) for axis in _axes(run)]
    found.append(("check", "check", [label(name) for name, _ in report.checks]))
    return [(name, text, choices) for name, text, choices in found if len(choices) > 1 or name == "check"]


def _axes(run: Run) -> list[str]:
    return [*AXES, *sorted({name for c in run.cells for name in c.axes} - set(AXES))]


def _choices(run: Run, axis: str) -> list[str]:
    values = in_order(axis, (axis_value(c, axis) for c in run.cells))
    return list(dict.fromkeys(label(v) for v in values))


def _group(number: int, group: Group, run: Run) -> dict[str, Any]:
    return {
        "number": number,
        "mark": symbol(group.outcome),
        "bad": group.outcome in BAD,
        "cells": len(group.cells),
        "title": group.signature,
        "checks": ", ".join(label(c) for c in group.checks),
        "where": group.where,
        "reason": group.reason,
        "worst": group.worst,
        "example": label(group.example, 200),
        "diverges_at": parted(group.diverges_at),
        "smallest": group.smallest,
        "kernels": group.kernels,
        "script": group.script,
        "repro": visible(group.repro),
    }


def _occurs(outcome: str, report: Report) -> bool:
    return any(o == outcome for o, _ in report.counts) or any(
        o == outcome for _, counts in report.checks for o in counts
    )


def _check_rows(report: Report) -> list[tuple[str, list[int]]]:
    outcomes = [o for o in READING_ORDER if _occurs(o.value, report)]
    counts = dict(report.counts)
    rows = [("cells", [counts.get(o, 0) for o in outcomes])]
    return rows + [(label(name), [found.get(o, 0) for o in outcomes]) for name, found in report.checks]


@dataclass(frozen=True)
class Bar:
    """One backend in a chart; positions in percent of the track."""

    attention: str
    speedups: Speedups
    low: str
    high: str
    box: str
    box_width: str
    median: str


def charts(speed: Speed) -> list[dict[str, Any]]:
    """One chart for each phase, on a shared logarithmic axis, since 2x and 0.5x are equally far from 1x."""
    measured = [p for row in speed.rows for p in (row.prefill, row.decode) if p]
    if not measured:
        return []
    low = max(math.floor(math.log2(min(0.5, *(p.low for p in measured)))), LOWEST_POWER)
    high = min(math.ceil(math.log2(max(2.0, *(p.high for p in measured)))), HIGHEST_POWER)

    def at(value: float) -> float:
        return 100 * (min(max(math.log2(value), low), high) - low) / (high - low)

    def bar(attention: str, p: Speedups) -> Bar:
        box = at(p.quartile_low)
        width = max(at(p.quartile_high) - box, 0.4)
        places = (f"{x:.2f}%" for x in (at(p.low), at(p.high), box, width, at(p.median)))
        return Bar(attention, p, *places)

    step = max(1, (high - low) // 6)
    ticks = [(f"{100 * (power - low) / (high - low):.2f}%", f"{2.0**power:g}x") for power in range(low, high + 1, step)]
    drawn = []
    for phase in PHASES:
        bars = [bar(_row_name(row), p) for row in speed.rows if (p := row.phase(phase))]
        drawn.append({"phase": phase, "bars": bars, "ticks": ticks, "one": f"{at(1.0):.2f}%"})
    return [chart for chart in drawn if chart["bars"]]


def _row_name(row: SpeedRow) -> str:
    return f"{label(row.attention)}, {row.at}" if row.at else label(row.attention)


def _data(run: Run, report: Report) -> str:
    """What the script needs, as JSON that is inert inside a script element; names are shared by number."""
    metrics: dict[tuple[str, str, str], int] = {}
    checks = {name: number for number, (name, _) in enumerate(report.checks)}
    member: dict[int, list[int]] = {}
    for number, group in enumerate((*report.failures, *report.not_asked)):
        for cell in group.cells:
            member.setdefault(id(cell), []).append(number)
    axes = _axes(run)
    cells = [_cell(cell, axes, checks, metrics, member.get(id(cell), [])) for cell in run.cells]
    content = {
        "outcomes": [_outcome(SYMBOLS[o]) for o in READING_ORDER],
        "axes": [label(a) for a in axes],
        "checks": [label(name) for name in checks],
        "metrics": [list(key) for key in metrics],
        "groups": [clip(g.signature, 80) for g in (*report.failures, *report.not_asked)],
        "cells": cells,
    }
    text = msgspec.json.encode(content).decode()
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def evidence_data(cells: Sequence[Cell]) -> dict[str, Any]:
    """The evidence of `cells` as inert JSON values: names of `axes`, `checks` and `metrics`, and `cells` that refer to
    them by number, in the form that the page's own script reads."""
    names = list(dict.fromkeys(check.name for cell in cells for check in cell.checks))
    checks = {name: number for number, name in enumerate(names)}
    axes = [*AXES, *sorted({name for c in cells for name in c.axes} - set(AXES))]
    metrics: dict[tuple[str, str, str], int] = {}
    found = [_cell(cell, axes, checks, metrics, []) for cell in cells]
    return {
        "axes": [label(a) for a in axes],
        "checks": [label(name) for name in names],
        "metrics": [list(key) for key in metrics],
        "cells": found,
    }


def _outcome(mark: Symbol) -> dict[str, str]:
    return {"mark": mark.mark, "word": mark.word, "slug": mark.slug}


def _cell(
    cell: Cell, axes: list[str], checks: dict[str, int], metrics: dict[tuple[str, str, str], int], groups: list[int]
) -> dict[str, Any]:
    requested = [label(axis_value(cell, axis)) if axis in cell.axes else "" for axis in axes]
    effective = {label(k): plain(v, 300) for k, v in cell.effective.items() if k != "sharper"}
    if told := sharper(cell):
        effective["sharper"] = told
    known = [effective.pop(label(axis), "") for axis in axes]
    return _filled(
        {
            "id": label(cell.id, 2000),
            "a": requested,
            "o": READING_ORDER.index(cell.outcome),
            "r": one_line(cell.reason, 1000),
            "s": duration(cell.seconds),
            "e": known if any(known) else [],
            "x": list(effective.items()),
            "g": groups,
            "c": [_check(check, checks[check.name], metrics) for check in cell.checks],
        }
    )


def _check(check: Check, number: int, metrics: dict[tuple[str, str, str], int]) -> dict[str, Any]:
    evidence = check.evidence
    return {
        "n": number,
        "o": READING_ORDER.index(check.outcome),
        **_filled(
            {
                "r": one_line(check.reason, 1000),
                "s": duration(check.seconds),
                "t": check.attempts if check.attempts > 1 else 0,
                "m": [_measurement(m, metrics) for m in check.measurements],
                "k": [(label(name), count) for name, count in sorted(evidence.kernels.items(), key=lambda k: -k[1])],
                "x": _exception(evidence),
                "d": list(parted(told)) if (told := begins(evidence)) else None,
                "i": smallest(evidence),
                "v": kernels(evidence),
                "w": script(evidence),
                "f": flat(evidence.facts, 1000),
                "p": visible(evidence.repro),
                "g": one_line(evidence.signature),
                "z": "" if evidence.seed is None else str(evidence.seed),
            }
        ),
    }


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    """`values` without the empty ones; only under the key `o` does a zero mean something."""
    return {key: value for key, value in values.items() if key == "o" or value not in ("", 0, [], None)}


def _measurement(measurement: Measurement, metrics: dict[tuple[str, str, str], int]) -> list[Any]:
    """Metric number, value, interval, count of samples, and the point of a grid. The samples stay in run.json."""
    better = {"lower": "lower is better", "higher": "higher is better", "equal": "has a target"}.get(
        measurement.better, ""
    )
    key = (label(measurement.name), better, one_line(measurement.method, 80))
    number = metrics.setdefault(key, len(metrics))
    interval = ""
    if measurement.ci95 is not None:
        interval = f"{figure(measurement.ci95[0])} to {figure(measurement.ci95[1], measurement.unit)}"
    at = point_name(measurement.at) if measurement.at else ""
    return [
        number,
        figure(measurement.value, measurement.unit),
        interval,
        len(measurement.values),
        *([at] if at else []),
    ]


def _exception(evidence: Evidence) -> list[str] | None:
    """Type, message, traceback (its end) and the refusal that recognised it."""
    raised = evidence.exception
    if raised is None:
        return None
    traceback = raised.traceback
    if len(traceback) > TRACEBACK_LIMIT:
        traceback = "(the beginning is in run.json)\n" + traceback[-TRACEBACK_LIMIT:]
    message = clip(visible(raised.message[:4000], lines=True), 3000)
    return [label(raised.type), message, visible(traceback, lines=True), one_line(raised.refusal)]
