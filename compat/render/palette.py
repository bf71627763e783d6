"""How each attention backend looks in every plot: a colour, a marker shape and a short name, always the same.

In: names of backends. Out: styles, and the colours of both themes as CSS. Colours keep a contrast of 3 to the page, and
those of the usual backends stay apart for colour-blind readers; shape and name say the same without colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from compat.render.inert import clip, label

SHORT: dict[str, str] = {
    "sdpa-math": "s-math",
    "sdpa-flash": "s-flash",
    "sdpa-efficient": "s-eff",
    "sdpa-cudnn": "s-cudnn",
    "flash_attention_2": "fa2",
    "flash_attention_2-legacy": "fa2-l",
    "flash_attention_3": "fa3",
    "flash_attention_4": "fa4",
    "flex_attention": "flex",
    "sdpa-flash-legacy": "s-flash-l",
    "bettertransformer": "bt",
    "onnxruntime": "ort",
    "onnxruntime-cuda": "ort-cuda",
}
"""Names that fit beside a curve and over a column; others are cut."""

SHORT_LENGTH = 9

KNOWN: tuple[str, ...] = (
    "eager",
    "sdpa",
    "flash_attention_2",
    "flex_attention",
    "sdpa-flash",
    "sdpa-efficient",
    "sdpa-cudnn",
    "sdpa-math",
    "flash_attention_3",
    "flash_attention_4",
)
"""The backends whose style is fixed, in the order of styles."""

PAGE = {"page": "#ffffff", "ink": "#16191d", "soft": "#555c66", "line": "#d9dde3"}
"""Colours of a picture that stands alone: it brings its own white page, so it reads on a dark one too."""

LIGHT: tuple[str, ...] = (
    "#5b6270", "#0b62c4", "#cc4e00", "#8a3ab0", "#007d70", "#876a00", "#c2337a", "#6b4a2f", "#27357f", "#8f1414",
)  # fmt: skip
DARK: tuple[str, ...] = (
    "#aab2bd", "#5aa2ff", "#ff8a3d", "#e6bdff", "#2fc4b2", "#d9b52a", "#ff79b4", "#c49a78", "#98a8ff", "#ff6b6b",
)  # fmt: skip
SLOTS = len(LIGHT)


@dataclass(frozen=True)
class Style:
    """One backend in a plot. `slot` numbers colour and shape."""

    name: str
    short: str
    slot: int


def styles(attentions: Sequence[str]) -> dict[str, Style]:
    """A style for each of `attentions`: the fixed one of a known backend, a free one for others while there are any."""
    free = [slot for slot in range(SLOTS) if slot >= len(KNOWN) or KNOWN[slot] not in attentions]
    found: dict[str, Style] = {}
    taken: set[str] = set()
    for number, name in enumerate(dict.fromkeys(attentions)):
        slot = KNOWN.index(name) if name in KNOWN else free.pop() if free else number % SLOTS
        found[name] = Style(label(name, 60), _short(name, taken), slot)
        taken.add(found[name].short)
    return found


def _short(name: str, taken: set[str]) -> str:
    brief, number = SHORT.get(name) or clip(label(name), SHORT_LENGTH), 1
    while brief in taken:
        number += 1
        brief = f"{clip(label(name), SHORT_LENGTH - 1 - len(str(number)))}~{number}"
    return brief


def css_variables() -> str:
    """The colours of both themes, as CSS for a page."""
    light, dark = (" ".join(f"--s{i}: {c};" for i, c in enumerate(colours)) for colours in (LIGHT, DARK))
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def marker(slot: int, x: float, y: float, size: float = 4.4) -> str:
    """The outline of the shape of `slot` around a place, as the data of an SVG path. `size` is about half its width."""
    if slot == 0:
        r = size * 0.92
        return f"M{x - r:.2f} {y:.2f}a{r:.2f} {r:.2f} 0 1 0 {2 * r:.2f} 0a{r:.2f} {r:.2f} 0 1 0 {-2 * r:.2f} 0Z"
    return "M" + "L".join(f"{x + size * dx:.2f} {y + size * dy:.2f}" for dx, dy in _OUTLINES[slot % SLOTS]) + "Z"


def _polygon(corners: int, turn: float, radius: float = 1.15) -> tuple[tuple[float, float], ...]:
    """A regular polygon; `turn` in degrees, 0 with a corner on top."""
    angles = [math.radians(turn - 90 + 360 * i / corners) for i in range(corners)]
    return tuple((radius * math.cos(a), radius * math.sin(a)) for a in angles)


def _star() -> tuple[tuple[float, float], ...]:
    outer, inner = _polygon(5, 0, 1.35), _polygon(5, 36, 0.55)
    return tuple(corner for pair in zip(outer, inner, strict=True) for corner in pair)


_PLUS = (
    (-0.38, -1.15), (0.38, -1.15), (0.38, -0.38), (1.15, -0.38), (1.15, 0.38), (0.38, 0.38),
    (0.38, 1.15), (-0.38, 1.15), (-0.38, 0.38), (-1.15, 0.38), (-1.15, -0.38), (-0.38, -0.38),
)  # fmt: skip
_OUTLINES: tuple[tuple[tuple[float, float], ...], ...] = (
    (),
    _polygon(4, 45, 1.27),
    _polygon(3, 0, 1.35),
    _polygon(4, 0, 1.3),
    _polygon(3, 180, 1.35),
    _PLUS,
    _star(),
    ((-1.25, -0.55), (1.25, -0.55), (1.25, 0.55), (-1.25, 0.55)),
    _polygon(3, 90, 1.35),
    _polygon(3, 270, 1.35),
)
"""Corners of each shape in units of its size; the first is a circle."""
