"""The speed and memory of a run for the HTML page: panels as inline SVG, keys, and tables beside them.

In: sections of exhibits. Out: plain values for the template; SVG is markup already, all else is escaped there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from compat.render.plot_parts import Exhibit, Plot, Section
from compat.render.plots import key_svg, panel_svg


def html_sections(sections: Sequence[Section]) -> Iterator[dict[str, Any]]:
    """Each section with its exhibits, for the template."""
    number = 0
    for section in sections:
        exhibits = []
        for exhibit in section.exhibits:
            number += 1
            exhibits.append(_exhibit(exhibit, number))
        yield {"title": section.title, "notes": section.notes, "state": section.state, "exhibits": exhibits}


def _exhibit(exhibit: Exhibit, number: int) -> dict[str, Any]:
    plot = exhibit.plot
    return {
        "title": exhibit.title,
        "core": exhibit.core,
        "head": exhibit.head,
        "rows": exhibit.rows,
        "notes": exhibit.notes if plot is None else tuple(text for text in (plot.caption,) if text),
        "about": plot.about if plot else "",
        "legend": list(_keys(plot)) if plot else [],
        "panels": [Markup(panel_svg(plot, p, f"plot-{number}-{i}")) for i, p in enumerate(plot.panels)] if plot else [],
    }


def _keys(plot: Plot) -> Iterator[tuple[Markup, str]]:
    for style in plot.styles:
        text = f"{style.name} ({style.short})" if style.short not in ("", style.name) else style.name
        yield Markup(key_svg(style)), text
