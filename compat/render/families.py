"""`compat list --models`: families, what their classes declare and what a run measured, as text.

In: families, and the run that measured them or None. Out: a table for a terminal, Markdown or JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from compat.families import MEANINGS, Family, Support, differences, kind
from compat.records import Run
from compat.render.inert import label
from compat.render.markdown import _plain, _table, code
from compat.render.summary import headline_place
from compat.render.support import LETTER_MEANINGS, MARKS, attentions_of, declares, mark
from compat.render.terminal_grids import abbreviations

FORMATS = ("terminal", "markdown", "json")
"""Every name that `render_families` takes."""


def render_families(families: Sequence[Family], run: Run | None, form: str, stack: str) -> str:
    """The table in one of FORMATS, ending in a newline; `stack` is what the declarations were read in."""
    if form == "json":
        return _json(families, run, stack)
    return _markdown(families, run, stack) if form == "markdown" else _terminal(families, run, stack)


def _about(run: Run | None, stack: str) -> str:
    asked = f"measured in run {label(run.run.id)} on {label(headline_place(run))}" if run else "measured: no run named"
    return f"declared: stack {label(stack)}; {asked}"


def _declared(family: Family) -> str:
    return "unknown" if family.problem else declares(family.declared)


def _terminal(families: Sequence[Family], run: Run | None, stack: str) -> str:
    backends = attentions_of(families)
    short = abbreviations(backends)
    rows = [
        [
            label(f.name, 40),
            label(kind(f.row), 60),
            label(", ".join(f.row.get("features", ())) or "-", 200),
            _declared(f),
            *(MARKS[f.support(b)] for b in backends),
        ]
        for f in families
    ]
    head = ["model", "family", "features", "declares", *(label(short[b], 12) for b in backends)]
    widths = [None, 20, 34, None, *[None] * len(backends)]
    parts = [
        _about(run, stack),
        tabulate(rows, headers=head, maxcolwidths=widths, disable_numparse=True),
        f"declares: {LETTER_MEANINGS}",
    ]
    seen = {f.support(b) for f in families for b in backends}
    parts += ["\n".join(f"{MARKS[s]:<2} {s.value}: {MEANINGS[s]}" for s in Support if s in seen)] if seen else []
    apart = [f"  {label(f.name, 40)}: {label(text, 300)}" for f in families for text in differences(f)]
    if run is not None:
        parts.append("\n".join(["Where declaration and measurement differ:", *(apart or ["  nowhere"])]))
    unknown = [f"  {label(f.name, 40)}: {label(f.problem, 300)}" for f in families if f.problem]
    if unknown:
        parts.append("\n".join(["Classes that could not be looked at:", *unknown]))
    return "\n\n".join(parts) + "\n"


def _markdown(families: Sequence[Family], run: Run | None, stack: str) -> str:
    backends = attentions_of(families)
    rows = [
        [
            code(f.name, 60),
            _plain(kind(f.row)),
            _plain(", ".join(f.row.get("features", ())) or "-"),
            f"`{_declared(f)}`",
            *(mark(f.support(b)) for b in backends),
        ]
        for f in families
    ]
    head = ["model", "family", "features", "declares", *(code(b, 60) for b in backends)]
    parts = [_plain(_about(run, stack)), _table(head, rows, "llll" + "c" * len(backends)), _plain(LETTER_MEANINGS)]
    seen = {f.support(b) for f in families for b in backends}
    parts += ["\n".join(f"- {mark(s)} {s.value}: {MEANINGS[s]}" for s in Support if s in seen)] if seen else []
    apart = [f"- {code(f.name, 60)}: {_plain(text)}" for f in families for text in differences(f)]
    if apart:
        parts.append("Where declaration and measurement differ:\n\n" + "\n".join(apart))
    unknown = [f"- {code(f.name, 60)}: {_plain(f.problem)}" for f in families if f.problem]
    if unknown:
        parts.append("Classes that could not be looked at:\n\n" + "\n".join(unknown))
    return "\n\n".join(parts) + "\n"


def _json(families: Sequence[Family], run: Run | None, stack: str) -> str:
    backends = attentions_of(families)
    found: list[dict[str, Any]] = [
        {
            "model": f.name,
            "family": kind(f.row),
            "type": f.row.get("type", ""),
            "source": f.row.get("source", ""),
            "task": f.row.get("task", ""),
            "features": list(f.row.get("features", ())),
            "class": f.cls,
            "declares": None if f.declared is None else dict(f.declared),
            "problem": f.problem,
            "measured": {b: f.support(b).value for b in backends},
            "differences": list(differences(f)),
        }
        for f in families
    ]
    return json.dumps({"stack": stack, "run": run.run.id if run else None, "models": found}, indent=1) + "\n"
