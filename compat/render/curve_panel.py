"""Draw a panel of curves over token lengths.

Nothing is drawn between two measured points when a point between them is missing: it stands as a cross in a row of its
own below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from compat.render.ink import BELOW, LEFT, RIGHT, TOP, WIDTH, Scale, line, text_at, text_size, tick_text, title, whisker
from compat.render.palette import marker
from compat.render.plot_parts import Curve, Dot, Panel, Plot
from compat.render.ticks import linear_ticks, log_ticks, size_ticks

_PLOT_HEIGHT = 176
_GAP_ROW = 15
_LABEL_STEP = 14.5
_DODGE = 4.0
_EDGE = 0.045
"""Share of the width that the first and last point stand away from the axes."""


def height(plot: Plot) -> float:
    """Height of each panel of `plot`, in user units."""
    return TOP + _plot_height(plot) + _gap_rows(plot) * _GAP_ROW + BELOW


def _plot_height(plot: Plot) -> float:
    return max(_PLOT_HEIGHT, _LABEL_STEP * max(len(p.curves) + 1 for p in _panels(plot)))


def _gap_rows(plot: Plot) -> int:
    """Rows below the curves for what is missing: as many as the panel with the most of them needs."""
    return max(sum(1 for c in p.curves if c.gaps) for p in _panels(plot))


def _panels(plot: Plot) -> list[Panel]:
    return [p for p in plot.panels if isinstance(p, Panel)]


def draw(plot: Plot, panel: Panel) -> str:
    """The elements of one panel."""
    bottom = TOP + _plot_height(plot)
    edge = _EDGE * (WIDTH - LEFT - RIGHT)
    xs = [x for p in _panels(plot) for x in p.xs]
    across = Scale(
        (min(xs), max(xs)) if min(xs) < max(xs) else (xs[0] / 2, xs[0] * 2), LEFT + edge, WIDTH - RIGHT - edge, log=True
    )
    up = Scale(_y_ticks(plot), bottom, TOP, log=plot.kind != "share")
    floor = bottom + _gap_rows(plot) * _GAP_ROW
    parts = [text_at(6, 14, panel.title, WIDTH - 10, style="panel", size=12.0)]
    parts += _y_axis(plot, up)
    parts += _x_axis(plot, panel, across, bottom, floor)
    if plot.reference:
        parts.append(line(LEFT, up.at(1.0), WIDTH - RIGHT, up.at(1.0), "one"))
    asides = [_aside(number, len(panel.curves)) for number in range(len(panel.curves))]
    curves = list(zip(panel.curves, asides, strict=True))
    parts += [_path(curve, panel, across, up, aside) for curve, aside in curves]
    for hollow in (False, True):
        parts += [
            _dot(curve, dot, across.at(dot.x) + aside, up)
            for curve, aside in curves
            for dot in curve.dots
            if dot.hollow == hollow
        ]
    parts += _labels(plot, panel, across, up, bottom)
    parts += _gaps(panel, across, bottom)
    return "".join(parts)


def _y_axis(plot: Plot, up: Scale) -> list[str]:
    parts = []
    for tick in up.ticks:
        y = up.at(tick)
        parts.append(line(LEFT, y, WIDTH - RIGHT, y, "grid"))
        parts.append(text_at(LEFT - 6, y + 4, tick_text(tick, plot.kind), LEFT - 8, anchor="end"))
    return parts


def _x_axis(plot: Plot, panel: Panel, across: Scale, bottom: float, floor: float) -> list[str]:
    parts = [line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis")]
    used = -math.inf
    for x in sorted(panel.xs):
        place, text = across.at(x), f"{x:g}" if x < 1e6 else tick_text(x, "rate")
        parts.append(line(place, bottom, place, bottom + 4, "axis"))
        half = text_size(text) / 2
        if place - half > used + 4:
            parts.append(text_at(place, floor + 17, text, 2 * half + 1, anchor="middle"))
            used = place + half
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(text_at(middle, floor + 32, plot.x_title, 2 * (WIDTH - middle) - 4, anchor="middle", style="name"))
    return parts


def _aside(number: int, count: int) -> float:
    """How far the marks of one curve stand beside their length, so that curves close together hide no whisker."""
    step = min(_DODGE, 12.0 / max(count - 1, 1))
    return step * (number - (count - 1) / 2)


def _path(curve: Curve, panel: Panel, across: Scale, up: Scale, aside: float) -> str:
    """Lines between points that follow each other in `panel` and were both measured."""
    slot = curve.style.slot
    dots = {d.x: d for d in curve.dots}
    parts = []
    run: list[Dot] = []
    for x in [*sorted(panel.xs), math.nan]:
        if x in dots:
            run.append(dots[x])
            continue
        if len(run) > 1:
            path = "L".join(f"{across.at(d.x) + aside:.1f} {up.at(d.y):.1f}" for d in run)
            parts.append(f'<path class="curve s{slot}" d="M{path}"/>')
        run = []
    return "".join(parts)


def _dot(curve: Curve, dot: Dot, x: float, up: Scale) -> str:
    """A mark with its whisker, and the figure in words for a pointer that rests on it."""
    slot, y = curve.style.slot, up.at(dot.y)
    parts = ["<g>" + title(f"{curve.style.name}, {dot.text}")]
    if dot.low is not None and dot.high is not None:
        parts += whisker(x, up.at(dot.low), up.at(dot.high), slot, ends=(up.holds(dot.low), up.holds(dot.high)))
    parts.append(f'<path class="dot s{slot}{" hollow" if dot.hollow else ""}" d="{marker(slot, x, y)}"/></g>')
    return "".join(parts)


def _labels(plot: Plot, panel: Panel, across: Scale, up: Scale, bottom: float) -> list[str]:
    """The name of each curve in the right margin, at the height of its last point, and of the line at 1."""
    wanted = [(up.at(c.dots[-1].y), c) for c in panel.curves if c.dots]
    aside = {c.style.name: _aside(number, len(panel.curves)) for number, c in enumerate(panel.curves)}
    named: list[tuple[float, Curve | None]] = [*wanted]
    if plot.reference:
        named.append((up.at(1.0), None))
    named.sort(key=lambda pair: pair[0])
    places = _spread([y for y, _ in named], TOP + 3, bottom - 2)
    parts = []
    left = WIDTH - RIGHT + 8
    for (y, curve), place in zip(named, places, strict=True):
        if curve is None:
            parts.append(text_at(left, place + 4, plot.reference, WIDTH - left - 2, style="soft"))
            continue
        slot, last = curve.style.slot, curve.dots[-1]
        if last.x == across.ticks[-1]:
            parts.append(line(across.at(last.x) + aside[curve.style.name] + 8, y, left - 2, place, f"leader s{slot}"))
        parts.append(f'<path class="dot s{slot}" d="{marker(slot, left + 4, place, 3.6)}"/>')
        parts.append(text_at(left + 12, place + 4, curve.style.short, WIDTH - left - 14, style="ink"))
    return parts


def _spread(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Heights near the `wanted` ones (rising), between `top` and `bottom`, a line apart where there is room."""
    step = min(_LABEL_STEP, (bottom - top) / max(len(wanted) - 1, 1))
    places: list[float] = []
    for y in wanted:
        places.append(max(y, places[-1] + step) if places else max(y, top))
    limit = bottom
    for i in range(len(places) - 1, -1, -1):
        places[i] = max(min(places[i], limit), top)
        limit = places[i] - step
    return places


def _gaps(panel: Panel, across: Scale, bottom: float) -> list[str]:
    """A row for each curve that lacks figures: a cross at each place, the word, and the curve's name."""
    parts = []
    y = bottom + 1.0
    for curve in panel.curves:
        if not curve.gaps:
            continue
        y += _GAP_ROW
        slot, middle = curve.style.slot, y - 3.0
        left = WIDTH - RIGHT + 8
        for number, gap in enumerate(sorted(curve.gaps, key=lambda g: g.x)):
            x = across.at(gap.x)
            cross = f"M{x - 3.4:.1f} {middle - 3.4:.1f}l6.8 6.8m0 -6.8l-6.8 6.8"
            parts.append(f"<g>{title(f'{curve.style.name}: {gap.why}')}")
            parts.append(f'<path class="cross s{slot}" d="{cross}"/></g>')
            size = text_size(gap.brief)
            if number == 0 and x - 7 - size > LEFT:
                parts.append(text_at(x - 7, middle + 4, gap.brief, size + 1, anchor="end", style="soft"))
        parts.append(f'<path class="dot s{slot}" d="{marker(slot, left + 4, middle, 3.6)}"/>')
        parts.append(text_at(left + 12, middle + 4, curve.style.short, WIDTH - left - 14, style="ink"))
    return parts


def _y_ticks(plot: Plot) -> tuple[float, ...]:
    """The ticks that all panels of `plot` share."""
    dots = [d for p in _panels(plot) for c in p.curves for d in c.dots]
    values = [d.y for d in dots]
    if plot.kind == "share":
        return linear_ticks(0.0, max(*values, 0.05, *(_reach(d)[1] for d in dots)))
    spread = [end for d in dots for end in _reach(d)]
    low, high = min(*values, *spread), max(*values, *spread)
    if plot.reference:
        low, high = min(low, 1.0), max(high, 1.0)
    return size_ticks(low, high) if plot.kind == "bytes" else log_ticks(low, high)


def _reach(dot: Dot) -> tuple[float, float]:
    """The ends of a whisker as far as they shape the axis: a wide one must not flatten all the others."""
    low = dot.y if dot.low is None else max(dot.low, dot.y / 2)
    high = dot.y if dot.high is None else min(dot.high, dot.y * 2)
    return min(low, dot.y), max(high, dot.y)
