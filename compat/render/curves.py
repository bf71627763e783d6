"""From sheets of figures to plots of curves: which panels, which points, what is missing and what a reader is told.

In: a family and its sheets (compat.render.points). Out: plots, or None where no curve has two points. Each backend
looks the same in every plot; small multiples are by share of pads and by rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from compat.render.figures import plural
from compat.render.palette import Style
from compat.render.plot_parts import Curve, Dot, Gap, Panel, Plot
from compat.render.points import Family, Figure, Point, Sheet
from compat.render.speed_text import brief, missing, value_text

NO_LOGARITHM = "not above zero, which a logarithmic axis cannot show"

_READ = {
    "ratio": "Above 1x it is faster. Both axes are logarithmic.",
    "rate": "Higher is better. Both axes are logarithmic.",
    "bytes": "Most bytes that one forward holds at once beside weights and inputs; lower is better. Both axes are "
    "logarithmic.",
    "share": "What is attained of the FLOP/s of a large matrix product and of the bytes/s of a large copy, both "
    "measured on the same device; the rest is what is left to gain.",
}
"""How to read a plot, by kind."""

WHISKERS = "Whiskers: 95% interval, behind the mark where it is narrower, without a bar at an end beyond the axis."


def curve_plot(family: Family, sheet: Sheet, look: Mapping[str, Style], name: str) -> Plot | None:
    """Curves of one metric over lengths; None where no curve has two points. `name` becomes the plot's own."""
    panels = tuple(_panels(sheet, look))
    if not any(len(curve.dots) > 1 for panel in panels for curve in panel.curves):
        return None
    kind = sheet.metric.kind
    whiskers = [WHISKERS] if any(f.interval for f in sheet.figures.values()) else []
    return Plot(
        name=name,
        title=sheet.title,
        about=f"{family.title}. {_READ[kind]}",
        kind=kind,
        panels=panels,
        caption=" ".join([*whiskers, *missing(sheet)]),
        x_title="tokens in the cache" if sheet.metric.phase == "decode" else "tokens of the longest row",
        reference=_reference(family, look) if kind == "ratio" else "",
    )


def share_plot(family: Family, sheets: Sequence[Sheet], look: Mapping[str, Style], name: str) -> Plot | None:
    """The shares of the ceilings that are attained, all in one plot: a panel for each of them and each set of rows."""
    drawn = [(sheet, _widest(sheet.points)) for sheet in sheets]
    panels = tuple(
        p for sheet, points in drawn for p in _panels(replace(sheet, points=points), look, f"{sheet.title}: ")
    )
    if not any(len(curve.dots) > 1 for panel in panels for curve in panel.curves):
        return None
    return Plot(
        name=name,
        title="Attained share of the ceilings",
        about=f"{family.title}. {_READ['share']}",
        kind="share",
        panels=panels,
        caption=" ".join(
            [
                *_shared(sheets),
                *(["Fewer rows: in the table alone."] if any(len(p) < len(s.points) for s, p in drawn) else []),
            ]
        ),
        x_title="tokens of the longest row, or in the cache",
    )


def _shared(sheets: Sequence[Sheet]) -> list[str]:
    """What is missing in several sheets, each sentence once with the titles it holds for."""
    told: dict[str, list[str]] = {}
    for sheet in sheets:
        for text in missing(sheet):
            told.setdefault(text, []).append(sheet.title)
    return [f"{', '.join(titles)}: {text}" for text, titles in told.items()]


def _widest(points: Sequence[Point]) -> tuple[Point, ...]:
    """For each share of pads the points of one number of rows: the one with most lengths, then the greatest."""
    kept: list[Point] = []
    for padding in dict.fromkeys(p.padding for p in points):
        groups = _by_rows([p for p in points if p.padding == padding])
        widest = max(groups, key=_extent)
        kept += widest
    return tuple(kept)


def _extent(points: list[Point]) -> tuple[int, int]:
    return len(points), points[-1].batch


def _reference(family: Family, look: Mapping[str, Style]) -> str:
    own = look.get(family.baseline)
    return own.short if own else "baseline"


def _panels(sheet: Sheet, look: Mapping[str, Style], before: str = "") -> Iterator[Panel]:
    for padding in sorted({p.padding for p in sheet.points}):
        here = [p for p in sheet.points if p.padding == padding]
        pads = f"{here[0].pads} pads" if padding else "no pads"
        for points in _by_rows(here):
            yield Panel(
                title=f"{before}{_rows(points)}, {pads}",
                xs=tuple(float(p.length) for p in points),
                curves=tuple(_curve(sheet, look[a], a, points) for a in sheet.attentions),
            )


def _by_rows(points: Sequence[Point]) -> list[list[Point]]:
    """Points with the same number of rows together, by length; all of them where each length has rows of its own."""
    groups: dict[int, list[Point]] = {}
    for point in sorted(points, key=lambda p: p.length):
        groups.setdefault(point.batch, []).append(point)
    lengths = {p.length for p in points}
    if all(len(group) == 1 for group in groups.values()) and len(lengths) == len(points):
        return [sorted(points, key=lambda p: p.length)]
    return [groups[batch] for batch in sorted(groups)]


def _rows(points: Sequence[Point]) -> str:
    if len({p.batch for p in points}) == 1:
        return plural(points[0].batch, "row")
    return ", ".join(f"{p.batch} x {p.length}" for p in points)


def _curve(sheet: Sheet, style: Style, attention: str, points: Sequence[Point]) -> Curve:
    dots, gaps = [], []
    for point in points:
        found = sheet.figures.get((attention, point))
        if found is None:
            why = sheet.gaps[attention, point]
            gaps.append(Gap(float(point.length), f"{point.text}: {why}", brief(why, "not measured")))
        elif sheet.metric.kind != "share" and found.value <= 0:
            gaps.append(Gap(float(point.length), f"{point.text}: {NO_LOGARITHM}", "zero"))
        else:
            dots.append(_dot(sheet, point, found))
    return Curve(style, tuple(dots), tuple(gaps))


def _dot(sheet: Sheet, point: Point, found: Figure) -> Dot:
    text = f"{point.text}: {value_text(found, sheet.metric.kind)}" + ("" if found.firm else " (inconclusive)")
    low, high = (found.low, found.high) if found.interval else (None, None)
    return Dot(float(point.length), found.value, text, low, high, not found.firm)
