"""The tables of speed and memory for a terminal.

In: sections of exhibits. Out: lines at most as wide as the terminal. What folds elsewhere is left out here and said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from compat.render.figures import plural
from compat.render.plot_parts import Section
from compat.render.terminal_lines import Line, wrap

Table = Callable[[Sequence[str], Sequence[Sequence[str]], int], Iterator[Line]]


def exhibit_lines(sections: Sequence[Section], width: int, table: Table) -> Iterator[Line]:
    """Every exhibit that is shown at once, by section, with what is missing and what the machine did."""
    first = True
    for section in sections:
        if not first:
            yield []
        first = False
        yield from wrap(section.title, width, style="bold")
        for note in section.notes:
            yield from wrap(note, width, style="dim")
        for name, text in section.state:
            yield from wrap(f"{name}: {text}", width, indent="  ", first="", style="dim")
        for exhibit in section.exhibits:
            if not exhibit.core:
                continue
            yield []
            yield from wrap(exhibit.title, width)
            yield from table(exhibit.head, exhibit.narrow or exhibit.rows, width)
            for note in exhibit.notes:
                yield from wrap(note, width, style="dim")
        folded = sum(1 for exhibit in section.exhibits if not exhibit.core)
        if folded:
            yield []
            yield from wrap(
                f"{plural(folded, 'further table')} and the plots: report.html or report.md.", width, style="dim"
            )
