"""What a failing check knows of its cause, in words: where it begins, the smallest call, the script that shows it.

In: evidence and cells of a run, whose content is not trusted. Out: short texts, inert.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from compat.records import Cell, Evidence
from compat.render.figures import figure, plural
from compat.render.inert import label, one_line

SCRIPTS = "reproducers"
"""Folder of a run's scripts, as compat.reproduce names it."""


def begins(evidence: Evidence) -> str:
    """The first diverging module with its figure, and the ones after it; "" where none is known."""
    if not evidence.diverges_at:
        return ""
    modules = [m for m in _list(evidence.minimal.get("modules")) if isinstance(m, dict)]
    first = next((m for m in modules if m.get("module") == evidence.diverges_at), {})
    later = [label(str(m["module"]), 80) for m in modules if m.get("module") not in (None, evidence.diverges_at)]
    figures = [v for k in ("ratio_rms", "ratio_token") if (v := _number(first.get(k))) is not None]
    told = f" ({figure(max(figures))}x the error that is normal there)" if figures else ""
    return f"{one_line(evidence.diverges_at, 200)}{told}{'; then ' + ', '.join(later) if later else ''}"


def parted(text: str) -> tuple[str, str]:
    """What `begins` says, as the first module and the words after it."""
    module = re.match(r"[^ ;]*", text)
    end = module.end() if module else 0
    return text[:end], text[end:]


def smallest(evidence: Evidence) -> str:
    """The smallest failing call, in words; why there is none, where that is known."""
    minimal = evidence.minimal
    case, note = minimal.get("case"), minimal.get("note")
    told = _call(case) if isinstance(case, dict) else ""
    aside = one_line(note, 300) if isinstance(note, str) else ""
    return f"{told} ({aside})" if told and aside else told or aside


def kernels(evidence: Evidence) -> str:
    """The kernels of the smallest call."""
    seen = evidence.minimal.get("kernels")
    return ", ".join(label(str(k)) for k in sorted(seen)) if isinstance(seen, dict) else ""


def script(evidence: Evidence) -> str:
    """Where the reproducer lies, seen from the run's folder; "" where there is none."""
    return f"{SCRIPTS}/{one_line(evidence.script, 300)}" if evidence.script else ""


def _call(case: dict[str, Any]) -> str:
    images = case.get("images")
    if isinstance(images, dict):
        return f"one forward of {plural(len(_list(images.get('which'))), 'image')}"
    drawn = case.get("drawn")
    lengths = [len(_list(row)) for row in _list(case.get("rows"))]
    if isinstance(drawn, dict):
        lengths = [int(_number(n) or 0) for n in _list(drawn.get("lengths"))]
    rows = f"{plural(len(lengths), 'row')} of {_span(lengths)} {'token' if set(lengths) == {1} else 'tokens'}"
    kind, width = case.get("kind"), _number(case.get("length"))
    pads = [int(width) - n for n in lengths] if width is not None else []
    padded = f", {_span(pads)} {'pad' if set(pads) == {1} else 'pads'} on the {label(str(case.get('side')), 10)}"
    padded = padded if any(pads) else ", no pads"
    if kind == "forward":
        return f"one forward of {rows}" + (" with large values in some embeddings" if "outliers" in case else "")
    if kind == "padded":
        return f"one forward of {rows}{padded}" + (", and a row of pads" if case.get("masked_row") else "")
    if kind == "packed":
        return f"one forward of {rows} packed into one"
    if kind == "decode":
        cache = label(str(case.get("cache")), 20)
        return f"{rows}{padded}, fed {_steps(case.get('steps'))} at a time through a {cache} cache"
    if kind == "generate":
        given = case.get("settings")
        names = ", ".join(label(str(k), 60) for k in given) if isinstance(given, dict) else ""
        new = plural(int(_number(case.get("new")) or 0), "token")
        return f"{new} generated from {rows}{padded}" + (f", with {names}" if names else "")
    if kind == "replay":
        given = case.get("settings")
        names = ", ".join(label(str(k), 60) for k in given) if isinstance(given, dict) else ""
        new = plural(int(_number(case.get("new")) or 0), "token")
        return f"{new} generated from {rows}{padded}, with {names or 'no settings'}"
    if kind == "train":
        return f"a training step of {rows}"
    if isinstance(kind, str) and kind in _WHOLE:
        return _WHOLE[kind]
    if kind == "repeat":
        return f"the same forward of {rows} again"
    return f"a call of kind {label(str(kind), 40)}"


_WHOLE = {"load": "loading it", "switch": "switching attention", "save": "saving it and loading it again"}


def _steps(steps: Any) -> str:
    """`4, 1, reorder [1, 1], 1`."""
    texts = [" ".join(str(x) for x in s) if isinstance(s, list) else str(s) for s in _list(steps)[:20]]
    return one_line(", ".join(texts), 120)


def _span(numbers: Sequence[int]) -> str:
    """`7`, or `3 to 9`."""
    low, high = min(numbers, default=0), max(numbers, default=0)
    return f"{low}" if low == high else f"{low} to {high}"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


# -- the sharper tier --------------------------------------------------------------------------------------------


def sharper(cell: Cell) -> str:
    """What the same cell in a finer dtype came to; "" where the question does not arise."""
    link = cell.effective.get("sharper")
    if not isinstance(link, dict):
        return ""
    if not link.get("cell"):
        return one_line(str(link.get("note") or "not in this run"), 200)
    return f"agreement is {label(str(link.get('agreement')), 20)} in {label(str(link['cell']), 200)}"


def sharper_counts(cells: Sequence[Cell]) -> str:
    """One line on all 16-bit cells; "" where there is none."""
    links = [link for c in cells if isinstance(link := c.effective.get("sharper"), dict)]
    if not links:
        return ""
    found = Counter(label(str(x.get("agreement")), 20) for x in links if x.get("cell"))
    told = ", ".join(f"{count:,} {name}" for name, count in found.most_common())
    judged = sum(found.values())
    text = f"Sharper dtypes: {judged:,} of {plural(len(links), '16-bit cell')} also judged in a finer dtype"
    missing = len(links) - judged
    return f"{text}{f' ({told})' if told else ''}" + (f"; {missing:,} not in this run" if missing else "")
