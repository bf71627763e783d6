"""Draw plots as SVG text: panels of curves over token lengths, and rows of dots over names.

In: plots of plain values (compat.render.curves makes them from a run). Out: SVG, one piece a panel for a page that
lays them out itself, or one picture a plot that carries its own colours. Nothing is drawn between two measured points
when a point between them is missing. Every text is escaped; no coordinate is taken from a run without being finite.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from compat.render import bar_panel, curve_panel
from compat.render.ink import WIDTH, text_at, text_size, wrapped
from compat.render.palette import LIGHT, PAGE, Style, marker
from compat.render.plot_parts import BarPanel, Panel, Plot

_MARGIN, _GUTTER = 14.0, 10.0
"""Around a picture, and between its panels, in user units."""


def panel_size(plot: Plot, panel: Panel | BarPanel) -> tuple[float, float]:
    """Width and height of a panel in user units."""
    return WIDTH, bar_panel.height(panel) if isinstance(panel, BarPanel) else curve_panel.height(plot)


def panel_svg(plot: Plot, panel: Panel | BarPanel, identity: str) -> str:
    """One panel as an SVG element with title and description; `identity` starts the ids in it."""
    width, height = panel_size(plot, panel)
    return (
        f'<svg class="plot" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-labelledby="{identity}-t {identity}-d">'
        f'<title id="{identity}-t">{html.escape(f"{plot.title}: {panel.title}")}</title>'
        f'<desc id="{identity}-d">{html.escape(described(panel))}</desc>'
        f"{_panel(plot, panel)}</svg>"
    )


def described(panel: Panel | BarPanel) -> str:
    """All figures of a panel in words, and what is missing in it."""
    if isinstance(panel, BarPanel):
        return "; ".join(f"{name}, {bar.style.name}: {bar.text}" for name, bars in panel.rows for bar in bars) + "."
    parts = []
    for curve in panel.curves:
        dots = ", ".join(f"{dot.x:g}: {dot.text}" for dot in curve.dots)
        gaps = "".join(f", {gap.x:g}: {gap.why}" for gap in curve.gaps)
        parts.append(f"{curve.style.name} {dots}{gaps}")
    return "; ".join(parts) + "."


def _panel(plot: Plot, panel: Panel | BarPanel) -> str:
    return bar_panel.draw(plot, panel) if isinstance(panel, BarPanel) else curve_panel.draw(plot, panel)


def key_svg(style: Style, *, size: float = 14) -> str:
    """The marker of a backend alone, for a legend in a page."""
    middle = size / 2
    return (
        f'<svg class="plot key" width="{size:g}" height="{size:g}" viewBox="0 0 {size:g} {size:g}" aria-hidden="true">'
        f'<path class="dot s{style.slot}" d="{marker(style.slot, middle, middle)}"/></svg>'
    )


def picture(plot: Plot, css: str) -> str:
    """The whole plot as one SVG file with title, key, panels two abreast and notes. `css` is `plots.css`."""
    columns = min(len(plot.panels), 2)
    width = 2 * _MARGIN + columns * WIDTH + (columns - 1) * _GUTTER
    room = width - 2 * _MARGIN
    y = _MARGIN + 16
    parts = []
    for number, row in enumerate(wrapped(plot.title, room, 14.0)):
        y += 18 if number else 0
        parts.append(text_at(_MARGIN, y, row, room, style="title", size=14.0))
    for row in wrapped(plot.about, room):
        y += 16
        parts.append(text_at(_MARGIN, y, row, room))
    key = _key_places(plot.styles, width)
    parts += _key(key, y + 20, width)
    y += 32 + 16 * max((row for *_, row in key), default=0)
    for start in range(0, len(plot.panels), columns):
        beside = plot.panels[start : start + columns]
        for column, panel in enumerate(beside):
            x = _MARGIN + column * (WIDTH + _GUTTER)
            parts.append(f'<g transform="translate({x:g} {y:g})">{_panel(plot, panel)}</g>')
        y += max(panel_size(plot, panel)[1] for panel in beside) + _GUTTER
    for row in wrapped(plot.caption, room):
        y += 15
        parts.append(text_at(_MARGIN, y, row, room))
    return _file(plot, "".join(parts), width, y + _MARGIN, css)


def _file(plot: Plot, content: str, width: float, height: float, css: str) -> str:
    """`content` as an SVG document on a page of its own, with the colours inside."""
    for name, value in (*PAGE.items(), *((f"s{i}", c) for i, c in enumerate(LIGHT))):
        css = css.replace(f"var(--{name})", value)
    told = " ".join(f"{panel.title}: {described(panel)}" for panel in plot.panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="t d" font-size="11" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">'
        f'<title id="t">{html.escape(plot.title)}</title><desc id="d">{html.escape(told)}</desc>'
        f"<style>{css}</style>"
        f'<rect class="card" x=".5" y=".5" width="{width - 1:g}" height="{height - 1:g}" rx="8"/>{content}</svg>\n'
    )


def _key_places(styles: Sequence[Style], width: float) -> list[tuple[Style, str, float, int]]:
    """Each backend with its text, x and row of the key."""
    places = []
    x, row = _MARGIN, 0
    for style in styles:
        text = f"{style.name} ({style.short})" if style.short not in ("", style.name) else style.name
        size = min(text_size(text), width - 2 * _MARGIN - 16)
        if x > _MARGIN and x + 16 + size > width - _MARGIN:
            x, row = _MARGIN, row + 1
        places.append((style, text, x, row))
        x += 16 + size + 14
    return places


def _key(places: Sequence[tuple[Style, str, float, int]], y: float, width: float) -> list[str]:
    parts = []
    for style, text, x, row in places:
        place = y + 16 * row
        parts.append(f'<path class="dot s{style.slot}" d="{marker(style.slot, x + 5, place - 4)}"/>')
        parts.append(text_at(x + 15, place, text, width - _MARGIN - x - 15, style="ink"))
    return parts
