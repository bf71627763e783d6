"""What a report shows of a run's speed and memory: sections of exhibits, each a table and where possible a plot.

In: a `Run`. Out: plain values for every format. A plot is made where a curve has two points, or a comparison two bars;
the table holds every figure, drawn or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from compat.records import Cell, Run
from compat.render.by_quantization import by_quantization
from compat.render.curves import curve_plot, share_plot
from compat.render.figures import figure
from compat.render.grids import axis_value, in_order
from compat.render.inert import label
from compat.render.palette import Style, styles
from compat.render.plot_parts import Exhibit, Namer, Plot, Section
from compat.render.points import Family, Metric, Point, Sheet, families, figure_at, speed_check, wrong
from compat.render.speed_text import brief, missing, nowhere, state, value_text

_PIPELINE = Metric("pipeline_over_generate", "pipeline / generate", "generate", "ratio")


def sections(run: Run) -> tuple[Section, ...]:
    """What a run has of figures on a grid, and of quantizations of models that are no probes."""
    look = styles(in_order("attention", (axis_value(c, "attention") for c in run.cells)))
    name = _namer()
    return (*(_family(family, look, name) for family in families(run.cells)), *by_quantization(run, look, name))


def plots(found: Sequence[Section]) -> tuple[Plot, ...]:
    """Every plot of the sections, in order; their names differ."""
    return tuple(e.plot for section in found for e in section.exhibits if e.plot is not None)


def _namer() -> Namer:
    """Names that any file system takes, each given once."""
    used: set[str] = set()

    def name(text: str) -> str:
        base = re.sub(r"[^a-z0-9.]+", "-", text[:400].lower()).strip("-.")[:80] or "plot"
        unique, number = base, 1
        while unique in used:
            number += 1
            unique = f"{base}-{number}"
        used.add(unique)
        return unique

    return name


def _family(family: Family, look: Mapping[str, Style], name: Namer) -> Section:
    place = f"{family.model}-{family.dtype}-{family.quantization}"
    core = [s for s in family.sheets if s.metric.core]
    shares = [s for s in family.sheets if s.metric.kind == "share"]
    rest = [s for s in family.sheets if s not in core and s not in shares]
    made = [_exhibit(s, look, curve_plot(family, s, look, name(f"{place}-{s.metric.name}"))) for s in core]
    if shares:
        made.append(_attained(shares, look, share_plot(family, shares, look, name(f"{place}-attained"))))
    made += _once(family.cells, look)
    made += [_exhibit(s, look, None) for s in rest]
    absent = tuple(f"{label(attention, 60)}: {why}" for attention, why in family.absent)
    without = [f"Without figures: {'; '.join(absent)}."] if absent else []
    return Section(family.title, tuple(made), state(family.cells), (*without, *nowhere(family.sheets)))


def _exhibit(sheet: Sheet, look: Mapping[str, Style], plot: Plot | None) -> Exhibit:
    return Exhibit(
        title=sheet.title,
        head=("rows x tokens", *(look[a].short for a in sheet.attentions)),
        rows=tuple((point.text, *(_value(sheet, a, point) for a in sheet.attentions)) for point in sheet.points),
        notes=tuple(missing(sheet)),
        plot=plot,
        core=sheet.metric.core,
        narrow=tuple(
            (point.text, *(_value(sheet, a, point, plain=True) for a in sheet.attentions)) for point in sheet.points
        )
        if sheet.metric.name == "prefill_rate"
        else (),
    )


def _value(sheet: Sheet, attention: str, point: Point, *, plain: bool = False) -> str:
    found = sheet.figures.get((attention, point))
    return value_text(found, sheet.metric.kind, plain=plain) if found else brief(sheet.gaps[attention, point])


def _attained(sheets: Sequence[Sheet], look: Mapping[str, Style], plot: Plot | None) -> Exhibit:
    """The shares of the ceilings in one table."""
    attentions = in_order("attention", (a for sheet in sheets for a in sheet.attentions))
    rows = [
        (
            f"{sheet.title}, {point.text}",
            *(_value(sheet, a, point) if a in sheet.attentions else "-" for a in attentions),
        )
        for sheet in sheets
        for point in sheet.points
    ]
    head = ("share of, rows x tokens", *(look[a].short for a in attentions))
    return Exhibit("Attained share of the ceilings", head, tuple(rows), plot=plot)


def _once(cells: Sequence[Cell], look: Mapping[str, Style]) -> Iterator[Exhibit]:
    """What is measured once for a backend: loading, the first call, the pipeline against generate."""
    rows = []
    for cell in cells:
        check = speed_check(cell)
        if check is None or wrong(cell) is not None:
            continue
        texts = []
        for name in ("load_seconds", "first_call_seconds"):
            found = check.measurement(name)
            texts.append(figure(found.value, "s") if found and found.value is not None else "-")
        found = check.measurement(_PIPELINE.name)
        value = figure_at(found, _PIPELINE, cell, Point(1, 1, 0.0)) if found else None
        texts.append(value_text(value, "ratio") if value else "-")
        if any(text != "-" for text in texts):
            rows.append((look[axis_value(cell, "attention")].short, *texts))
    if rows:
        yield Exhibit(
            title="Once for each backend",
            head=("attention", "load", "first call", "pipeline / generate"),
            rows=tuple(rows),
            notes=("pipeline / generate: seconds of the pipeline over those of generate, so that above 1x it costs.",),
        )
