"""The strokes that plots are drawn with: text that fits, lines, whiskers, scales, and the labels of ticks.

In: numbers in user units and text that is inert already. Out: SVG elements as text, escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from compat.render.ticks import clamped

WIDTH = 372
"""Width of a panel in user units; a picture has two side by side."""

LEFT, RIGHT, TOP, BELOW = 62, 82, 26, 38
"""Margins of a panel: tick labels, names of curves, title, and the labels of the axis."""

FONT = 11.0


def text_size(text: str, size: float = FONT) -> float:
    """About the width of `text` in user units, rather too much than too little. Larger sizes are bold."""
    return size * sum(_glyph(char) for char in text) * (1.0 if size == FONT else 1.12)


def _glyph(char: str) -> float:
    if char in "iljtf.,:;'|!()[] /":
        return 0.38
    if char in "mwMW%@":
        return 0.95
    if ord(char) > 0x2FF:
        return 1.1
    return 0.74 if char.isupper() else 0.62


def fitted(text: str, room: float, size: float = FONT) -> str:
    """`text`, cut so that it takes at most `room` user units."""
    if text_size(text, size) <= room:
        return text
    while text and text_size(text + "...", size) > room:
        text = text[:-1]
    return text + "..."


def text_at(
    x: float, y: float, text: str, room: float, *, anchor: str = "start", style: str = "", size: float = FONT
) -> str:
    """A text element; `style` names CSS classes."""
    shown = html.escape(fitted(text, room, size))
    sized = "" if size == FONT else f' font-size="{size:g}"'
    classes = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{sized}{classes}>{shown}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line; `style` names CSS classes."""
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def title(text: str) -> str:
    """What a pointer that rests on an element is told."""
    return f"<title>{html.escape(text)}</title>"


def wrapped(text: str, room: float, size: float = FONT) -> list[str]:
    """`text` in lines of at most `room` user units."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_size(f"{lines[-1]} {word}", size) <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(fitted(word, room, size))
    return lines


def whisker(
    place: float, low: float, high: float, slot: int, *, flat: bool = False, ends: tuple[bool, bool] = (True, True)
) -> list[str]:
    """A whisker along y at the x of `place`, or with `flat` along x at that height; `ends` says which end is one."""
    lines = [(low, high, 0.0)]
    lines += [(end, end, 3.0) for end, shown in zip((low, high), ends, strict=True) if shown]
    style = f"whisker s{slot}"
    if flat:
        return [line(a, place - cap, b, place + cap, style) for a, b, cap in lines]
    return [line(place - cap, a, place + cap, b, style) for a, b, cap in lines]


@dataclass(frozen=True)
class Scale:
    """From values to user units. Values beyond the ticks are drawn at the edge."""

    ticks: tuple[float, ...]
    start: float
    end: float
    log: bool

    def at(self, value: float) -> float:
        """The place of `value`."""
        low, high = self._level(self.ticks[0]), self._level(self.ticks[-1])
        share = (self._level(value) - low) / (high - low)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)

    def holds(self, value: float) -> bool:
        """Whether `value` lies on the axis, so that it is drawn where it is."""
        return self.ticks[0] <= value <= self.ticks[-1]

    def _level(self, value: float) -> float:
        return math.log(clamped(value)) if self.log else value


def tick_text(value: float, kind: str) -> str:
    """A tick's label: as short as its kind allows."""
    if kind == "ratio":
        return f"{value:.4g}x"
    if kind == "share":
        return f"{100 * value:.3g}%"
    if kind == "bytes":
        return _scaled(value, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"), 1024.0)
    if kind == "seconds":
        return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.3g} us"
    return _scaled(value, ("", "k", "M", "G", "T", "P"), 1000.0)


def _scaled(value: float, units: Sequence[str], step: float) -> str:
    for unit in units[:-1]:
        if abs(value) < 0.9999 * step:
            return f"{value:.3g} {unit}".strip()
        value /= step
    return f"{value:.3g} {units[-1]}".strip()
