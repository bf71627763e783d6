"""The pages of a site, as HTML text, and the files that they share.

In: histories, and the run that stands for one. Out: texts. Every text of a run is inert and escaped by the templates;
a policy in each page allows scripts and styles of the site's own files and nothing else.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
import msgspec

import compat.render as rendering
from compat.records import Outcome, Run
from compat.render.figures import plural, ratio
from compat.render.groups import Group
from compat.render.html import charts
from compat.render.html_exhibits import html_sections
from compat.render.inert import label, visible
from compat.render.palette import css_variables
from compat.render.speed_text import LEGEND
from compat.render.summary import READING_ORDER, headline_place, summarise
from compat.render.symbols import ABSENT, SYMBOLS, symbol

from .cards import card, segments, spoken, versions
from .changes import KINDS, table
from .columns import LETTERS
from .declared import support
from .entries import Entry
from .places import History, Tally

SCRIPTS = ("data.js", "landing.js", "matrix.js", "sheet.js", "story.js", "compare.js")
"""Scripts as they are; `words.js` is made from our own tables."""

LINKS = (("Overview", "index.html"), ("Compare", "compare.html"), ("Runs and data", "runs.html"))


def landing(heading: str, found: Sequence[History], speeds: Collection[str]) -> str:
    """The first page: what works where. `speeds` are the places that have a page of speed."""
    stacks: dict[str, list[dict[str, Any]]] = {}
    for number, history in enumerate(found):
        stacks.setdefault(history.place.stack, []).append(
            {**card(history, speed=history.place.slug in speeds), "number": number}
        )
    tallies = [history.models() for history in found]
    names = list(dict.fromkeys(name for tally in tallies for name in tally))
    matrices = len({h.place.matrix for h in found}) > 1
    return _page(
        "landing",
        heading,
        f"{heading}: what works where",
        "index.html",
        scripts=("assets/landing.js",),
        cards=list(stacks.items()),
        heads=[_head(h, matrices) for h in found],
        models=[
            {"name": name, "cells": [_tally(h, name, t.get(name)) for h, t in zip(found, tallies, strict=True)]}
            for name in names
        ],
        symbols=[SYMBOLS[o] for o in READING_ORDER],
    )


def _head(history: History, matrices: bool) -> dict[str, str]:
    place = history.place
    return {
        "slug": place.slug,
        "stack": place.stack,
        "device": place.device,
        "matrix": place.matrix if matrices else "",
    }


def _tally(history: History, model: str, tally: Tally | None) -> dict[str, Any] | None:
    if tally is None:
        return None
    number = history.table.values[history.table.axes.index("model")].index(model)
    return {
        "worst": tally.worst,
        "text": f"{tally.passed:,}/{tally.asked:,}" if tally.asked else "not asked",
        "spoken": spoken(tally),
        "segments": segments(tally),
        "address": f"matrix/{history.place.slug}.html#model={number}",
    }


def matrix(heading: str, history: History, run: Run, *, speed: bool) -> str:
    """The page of a place: the latest matrix, its histories, what went wrong."""
    report = summarise(run, pattern_limit=6)
    shown = history.shown
    return _page(
        "matrix",
        heading,
        f"{history.place.stack}, {history.place.device}, {history.place.matrix}",
        "",
        root="../",
        scripts=[f"assets/{n}" for n in ("data.js", "words.js", "story.js", "sheet.js", "matrix.js")],
        attributes=(("history", history.place.slug),),
        card=card(history, speed=speed),
        verdict=report.verdict,
        environment=[(name, text) for name, text in report.environment if name != "settings"],
        digest=shown.digest,
        panels=[
            {
                "title": label(p.title, 300),
                "attentions": [label(a) for a in p.attentions],
                "grids": [
                    {
                        "dtype": label(g.dtype),
                        "rows": [
                            (label(m), [symbol(c.outcome if (c := g.at(m, a)) else None) for a in p.attentions])
                            for m in p.models
                        ],
                    }
                    for g in p.grids
                ],
            }
            for p in report.panels
        ],
        groups=[_group(g) for g in report.failures],
        quiet=[_group(g) for g in report.not_asked],
        support=support(run),
        runs=[listed(e) for e in reversed(history.entries)],
    )


def _group(group: Group) -> dict[str, Any]:
    where = group.where
    cut = where.total > where.shown or len(where.texts) > 1
    return {
        "mark": symbol(group.outcome),
        "cells": len(group.cells),
        "title": group.signature,
        "checks": ", ".join(label(c) for c in group.checks),
        "where": next(iter(where.texts), "") + (" ..." if cut else ""),
        "places": where.texts,
        "rest": f"and {where.rest}" if where.rest else "",
        "reason": group.reason,
        "worst": group.worst,
        "example": label(group.example, 200),
        "diverges_at": group.diverges_at,
        "smallest": group.smallest,
        "repro": visible(group.repro),
    }


def speed(heading: str, history: History, run: Run) -> str:
    """What the shown run measured of speed and memory; "" where it measured nothing of it."""
    report = summarise(run)
    drawn = charts(report.speed)
    if not drawn and not report.sections:
        return ""
    return _page(
        "speed",
        heading,
        f"Speed: {history.place.stack}, {history.place.device}",
        "",
        root="../",
        card=card(history),
        place=headline_place(run),
        speed=report.speed,
        charts=drawn,
        sections=list(html_sections(report.sections)),
        legend=LEGEND,
    )


def compare(heading: str, found: Sequence[History]) -> str:
    """Any two runs side by side, put together in the page."""
    return _page(
        "compare",
        heading,
        "Compare two runs",
        "compare.html",
        scripts=[f"assets/{n}" for n in ("data.js", "words.js", "compare.js")],
        choices=[
            (
                f"{h.place.stack}, {h.place.device}, {h.place.matrix}",
                [
                    {
                        "name": e.name,
                        "text": f"{clock(e) or 'no date'} {e.place.stack}, {e.place.device} ({e.name[:6]})",
                    }
                    for e in reversed(h.entries)
                ],
            )
            for h in found
        ],
    )


def runs(heading: str, found: Sequence[History], entries: Sequence[Entry]) -> str:
    """Every run with its digest and data."""
    pages = {e.digest: f"matrix/{h.place.slug}.html#run={e.name}" for h in found for e in h.entries}
    return _page(
        "runs",
        heading,
        "Runs and data",
        "runs.html",
        runs=[{**listed(e), "page": pages[e.digest]} for e in entries],
    )


def listed(entry: Entry) -> dict[str, Any]:
    """A run as a row of a table."""
    tally = Tally(entry.counts)
    return {
        "time": clock(entry),
        "partial": not entry.head.run.complete,
        "selected": not entry.whole,
        "stack": entry.place.stack,
        "device": entry.place.device,
        "matrix": entry.place.matrix,
        "passed": tally.passed,
        "asked": tally.asked,
        "bad": tally.bad,
        "versions": versions(entry),
        "name": entry.name,
        "digest": entry.digest,
        "data": f"data/runs/{entry.name}.json",
    }


def clock(entry: Entry) -> str:
    """`2026-02-03 10:20`, in UTC, or ""."""
    return datetime.datetime.fromisoformat(entry.time).strftime("%Y-%m-%d %H:%M") if entry.time else ""


# -- files that pages share --------------------------------------------------------------------------------------


def assets() -> dict[str, str]:
    """Name -> text of the style sheet and the scripts."""
    render = resources.files(rendering)
    style = [css_variables(), *(render.joinpath(n).read_text(encoding="utf-8") for n in ("report.css", "plots.css"))]
    return {
        "site.css": "".join([*style, _asset("site.css")]),
        "words.js": _words(),
        **{name: _asset(name) for name in SCRIPTS},
    }


def _words() -> str:
    """Our own tables, for the scripts: outcomes by letter, kinds of changes, the change between two letters."""
    outcomes = {
        LETTERS[o]: {"mark": s.mark, "word": s.word, "slug": s.slug, "meaning": s.meaning}
        for o, s in ((o, SYMBOLS[o]) for o in READING_ORDER)
    }
    content = {
        "order": "".join(LETTERS[o] for o in READING_ORDER),
        "outcomes": outcomes,
        "absent": {"mark": ABSENT.mark, "word": ABSENT.word, "slug": ABSENT.slug, "meaning": ""},
        "pass": LETTERS[Outcome.PASS],
        "kinds": [kind._asdict() for kind in KINDS],
        "changes": table(),
    }
    return f'"use strict";\nconst compatWords = {msgspec.json.encode(content).decode()};\n'


@cache
def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _templates() -> jinja2.Environment:
    folder = resources.files(__package__).joinpath("templates")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["plural"] = plural
    environment.filters["ratio"] = ratio
    return environment


def _page(
    template: str,
    heading: str,
    title: str,
    here: str,
    *,
    root: str = "",
    scripts: Sequence[str] = (),
    attributes: Sequence[tuple[str, str]] = (),
    **content: Any,
) -> str:
    return _templates().get_template(f"{template}.html.j2").render(
        heading=heading, title=title, here=here, links=LINKS, root=root, scripts=scripts, attributes=attributes,
        absent=ABSENT, **content,
    )  # fmt: skip
