"""Draw a panel of dots on rows, such as rates by quantization."""

from __future__ import annotations

import math

from compat.render.ink import BELOW, LEFT, TOP, WIDTH, Scale, line, text_at, text_size, tick_text, title, whisker
from compat.render.palette import marker
from compat.render.plot_parts import Bar, BarPanel, Plot
from compat.render.ticks import linear_ticks

_ROW, _ROW_GAP = 17, 11
_BESIDE = 150
"""Most room to the right of the axis, for the words beside the longest bar."""


def height(panel: BarPanel) -> float:
    """Height of a panel, in user units."""
    rows = sum(len(bars) for _, bars in panel.rows)
    return TOP + rows * _ROW + len(panel.rows) * _ROW_GAP + BELOW


def draw(plot: Plot, panel: BarPanel) -> str:
    """The elements of one panel."""
    every = [b for p in plot.panels if isinstance(p, BarPanel) for _, bars in p.rows for b in bars]
    most = max(*(max(b.value, min(b.high or 0.0, 1.5 * b.value), b.target or 0.0) for b in every), 0.0)
    left = LEFT + 22
    right = WIDTH - min(max(text_size(_words(b)) for b in every) + 12, _BESIDE)
    across = Scale(_bar_ticks(most, plot.kind), left, right, log=False)
    bottom = height(panel) - BELOW
    parts = [text_at(6, 14, panel.title, WIDTH - 10, style="panel", size=12.0)]
    for tick in across.ticks:
        x, text = across.at(tick), tick_text(tick, plot.kind)
        parts.append(line(x, TOP, x, bottom, "grid"))
        half = min(text_size(text) / 2, WIDTH - x)
        parts.append(text_at(x, bottom + 17, text, 2 * half + 1, anchor="middle"))
    middle = (left + right) / 2
    parts.append(text_at(middle, bottom + 32, plot.x_title, 2 * (WIDTH - middle) - 4, anchor="middle", style="name"))
    y = TOP + 0.0
    for name, bars in panel.rows:
        y += _ROW_GAP / 2
        centre = y + len(bars) * _ROW / 2
        parts.append(text_at(left - 8, centre + 4, name, left - 10, anchor="end", style="ink"))
        for bar in bars:
            parts.append(_bar(bar, across, y + _ROW / 2))
            y += _ROW
        y += _ROW_GAP / 2
    return "".join(parts)


def _bar_ticks(most: float, kind: str) -> tuple[float, ...]:
    """From zero, with round numbers in the unit that the labels use."""
    unit = 1024.0 ** min(int(math.log(most, 1024)), 5) if kind == "bytes" and most >= 1 else 1.0
    return tuple(tick * unit for tick in linear_ticks(0.0, most / unit, 5))


def _words(bar: Bar) -> str:
    return f"{bar.text} {bar.style.short}".rstrip()


def _bar(bar: Bar, across: Scale, y: float) -> str:
    slot, x = bar.style.slot, across.at(bar.value)
    parts = ["<g>" + title(f"{bar.style.name}: {bar.text}"), line(across.start, y, x, y, f"stem s{slot}")]
    if bar.target is not None:
        place = across.at(bar.target)
        parts.append(line(place, y - 7, place, y + 7, "target"))
    far = x
    if bar.low is not None and bar.high is not None:
        parts += whisker(
            y, across.at(bar.low), across.at(bar.high), slot, flat=True, ends=(True, across.holds(bar.high))
        )
        far = max(far, across.at(bar.high))
    parts.append(f'<path class="dot s{slot}{" hollow" if bar.hollow else ""}" d="{marker(slot, x, y)}"/>')
    text = _words(bar)
    if far + 8 + text_size(text) <= WIDTH - 2:
        parts.append(text_at(far + 8, y + 4, text, WIDTH - far - 9, style="on"))
    else:
        near = min(x, across.at(bar.low) if bar.low is not None else x)
        parts.append(text_at(near - 8, y + 4, text, near - across.start - 8, anchor="end", style="on"))
    return "".join(parts) + "</g>"
