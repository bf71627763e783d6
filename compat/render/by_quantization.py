"""Quantizations of one model beside each other: decode rate, bytes of weights, bytes of the KV cache.

In: a `Run`. Out: a section for each model and dtype that is no probe, or was timed on a grid. What is compared has the
same point of the grid; arithmetic stands beside what was measured.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence

from compat.records import Cell, Run
from compat.render.figures import plural, size
from compat.render.grids import AXES, axis_value, in_order, shared_extras
from compat.render.inert import label
from compat.render.palette import Style
from compat.render.plot_parts import Bar, BarPanel, Exhibit, Namer, Plot, Section
from compat.render.points import METRICS, Figure, Point, figure_at, grouped, has_grid, point_of, speed_check, wrong
from compat.render.speed_text import value_text

_DECODE_RATE = next(m for m in METRICS if m.name == "decode_rate")

MOST_PANELS = 6
"""Panels of a comparison; the table has all points."""

_ROOM = 5 * 2**50
"""Bytes that no model has: what is said to be more is no measurement."""

Rates = dict[tuple[Point, str, str], Figure]
"""(point, quantization, attention) -> figure."""


def by_quantization(run: Run, look: Mapping[str, Style], name: Namer) -> Iterator[Section]:
    """A section for each model, dtype and set of further axes with two quantizations that can be compared."""
    said = set(shared_extras(run.cells))
    for cells in _places(run):
        schemes = in_order("quantization", (axis_value(c, "quantization") for c in cells))
        axes = cells[0].axes
        further = [f"{label(n, 40)} {label(v, 60)}" for n, v in sorted(axes.items()) if n not in AXES]
        further = [text for text, pair in zip(further, _further(axes), strict=True) if pair not in said]
        title = ", ".join([label(axes.get("model", ""), 80), label(axes.get("dtype", ""), 40), *further])
        base = f"{axes.get('model', '')}-{axes.get('dtype', '')}"
        named = functools.partial(_named, name, base)
        made = [*_decode_rates(cells, schemes, look, title, named), *_bytes(cells, schemes, title, named)]
        if made:
            yield Section(f"{title}, by quantization", tuple(made))


def _named(name: Namer, base: str, what: str) -> str:
    return name(f"{base}-{what}")


def _further(axes: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(n, v) for n, v in sorted(axes.items()) if n not in AXES]


def _places(run: Run) -> Iterator[tuple[Cell, ...]]:
    """Cells of one model, dtype and set of further axes, where that model is no probe, or was timed on a grid."""
    told = run.run.settings.get("models")
    models = told if isinstance(told, dict) else {}
    places: dict[tuple[tuple[str, str], ...], list[Cell]] = {}
    for cell in run.cells:
        key = tuple(sorted((n, v) for n, v in cell.axes.items() if n not in ("attention", "quantization")))
        places.setdefault(key, []).append(cell)
    for cells in places.values():
        traits = models.get(axis_value(cells[0], "model"))
        real = isinstance(traits, dict) and traits.get("source", "probe") != "probe"
        if len({axis_value(c, "quantization") for c in cells}) > 1 and (
            real or any(has_grid(group) for group in grouped(cells))
        ):
            yield tuple(cells)


# -- decode ------------------------------------------------------------------------------------------------------


def _decode_rates(
    cells: Sequence[Cell], schemes: Sequence[str], look: Mapping[str, Style], title: str, name: Namer
) -> Iterator[Exhibit]:
    rates = _rates(cells)
    compared = [p for p in sorted({p for p, *_ in rates}) if len({q for at, q, _ in rates if at == p}) > 1]
    if not compared:
        return
    attentions = in_order("attention", (a for _, _, a in rates))
    shown = compared if len(compared) <= MOST_PANELS else _spread(compared)
    left = f" {plural(len(compared) - len(shown), 'further point')} in the table alone." if shown != compared else ""
    panels = tuple(_rate_panel(point, rates, schemes, attentions, look) for point in shown)
    rows = [
        (f"{label(q, 40)}, {p.text}", *(_cell(rates.get((p, q, a))) for a in attentions))
        for p in compared
        for q in schemes
        if any((p, q, a) in rates for a in attentions)
    ]
    heading = "Decode rate by quantization, tokens/s"
    missing = _not_measured(cells, {(q, a) for _, q, a in rates})
    yield Exhibit(
        title=heading,
        head=("scheme, rows x tokens", *(look[a].short for a in attentions)),
        rows=tuple(rows),
        notes=tuple(missing),
        plot=Plot(
            name=name("decode-by-quantization"),
            title=heading,
            about=f"{title}. Higher is better; the axis begins at zero. Whiskers: 95% interval.",
            kind="rate",
            panels=panels,
            caption=" ".join([*missing, _doubted(rates)]).strip() + left,
            x_title="tokens/s",
        ),
    )


def _rates(cells: Sequence[Cell]) -> Rates:
    rates: Rates = {}
    for cell in cells:
        check = speed_check(cell)
        if check is None or wrong(cell) is not None:
            continue
        for measurement in check.measured(_DECODE_RATE.name):
            point = point_of(measurement)
            found = figure_at(measurement, _DECODE_RATE, cell, point) if point else None
            if point and found and found.value >= 0:
                key = (point, axis_value(cell, "quantization"), axis_value(cell, "attention"))
                rates.setdefault(key, found)
    return rates


def _spread(points: Sequence[Point]) -> list[Point]:
    """`MOST_PANELS` of `points`, the first and the last among them."""
    last = len(points) - 1
    return [points[round(i * last / (MOST_PANELS - 1))] for i in range(MOST_PANELS)]


def _rate_panel(
    point: Point, rates: Rates, schemes: Sequence[str], attentions: Sequence[str], look: Mapping[str, Style]
) -> BarPanel:
    rows = []
    for scheme in schemes:
        bars = [
            Bar(
                style=look[a],
                value=found.value,
                text=value_text(found, "rate", plain=True),
                low=found.low if found.interval else None,
                high=found.high if found.interval else None,
                hollow=not found.firm,
            )
            for a in attentions
            if (found := rates.get((point, scheme, a)))
        ]
        if bars:
            rows.append((label(scheme, 40), tuple(bars)))
    pads = f", {point.pads} pads" if point.padding else ""
    return BarPanel(f"{plural(point.batch, 'row')}, {point.length} tokens in the cache{pads}", tuple(rows))


def _cell(found: Figure | None) -> str:
    return value_text(found, "rate") if found else "-"


def _doubted(rates: Rates) -> str:
    return "Hollow marks are inconclusive." if any(not f.firm for f in rates.values()) else ""


def _not_measured(cells: Sequence[Cell], known: set[tuple[str, str]]) -> list[str]:
    """The cells with a speed check and without a rate."""
    lost = []
    for cell in cells:
        pair = (axis_value(cell, "quantization"), axis_value(cell, "attention"))
        if speed_check(cell) is not None and pair not in known:
            lost.append(" ".join(label(x, 40) for x in pair))
    more = f" and {len(lost) - 6} more" if len(lost) > 6 else ""
    return [f"Without a decode rate: {', '.join(lost[:6])}{more}."] if lost else []


# -- bytes -------------------------------------------------------------------------------------------------------


def _bytes(cells: Sequence[Cell], schemes: Sequence[str], title: str, name: Namer) -> Iterator[Exhibit]:
    for what, heading, unit in (
        ("weights", "Bytes of weights against the scheme's arithmetic", "bytes"),
        ("cache", "Bytes of the KV cache a token against arithmetic", "bytes a token"),
    ):
        found = {q: pair for q in schemes if (pair := _held(cells, q, what)) is not None}
        if len(found) < 2:
            continue
        rows = tuple((label(q, 40), size(own), size(ought), f"{own / ought:.3f}x") for q, (own, ought) in found.items())
        style = Style("measured", "", 1)
        bars = tuple(
            (label(q, 40), (Bar(style, own, f"{size(own)}, {own / ought:.3f}x", target=ought),))
            for q, (own, ought) in found.items()
        )
        yield Exhibit(
            title=heading,
            head=("quantization", "measured", "arithmetic", "ratio"),
            rows=rows,
            plot=Plot(
                name=name(f"{what}-bytes"),
                title=heading,
                about=f"{title}. Mark: measured. Upright line: what the arithmetic says. The axis begins at zero.",
                kind="bytes",
                panels=(BarPanel(title, bars),),
                x_title=unit,
            ),
        )


def _held(cells: Sequence[Cell], scheme: str, what: str) -> tuple[float, float] | None:
    """What the first cell of a scheme holds, and what it ought to hold, in bytes; None where that was not measured."""
    for cell in cells:
        if axis_value(cell, "quantization") != scheme:
            continue
        if what == "weights":
            pair = _value(cell, "weights_bytes"), _value(cell, "weights_expected_bytes")
        else:
            own = _value(cell, "kv_cache_bytes_per_token") or _value(cell, "cache_bytes_per_token")
            over = _value(cell, "kv_cache_over_arithmetic") or _value(cell, "cache_over_arithmetic")
            pair = own, own / over if own and over else None
        if pair[0] and pair[1] and 0 < pair[0] < _ROOM and 0 < pair[1] < _ROOM:
            return pair[0], pair[1]
    return None


def _value(cell: Cell, name: str) -> float | None:
    """The first finite measurement of that name among the checks of a cell."""
    values = [m.value for check in cell.checks if (m := check.measurement(name)) is not None]
    return next((v for v in values if v is not None and math.isfinite(v) and abs(v) > 1e-9), None)
