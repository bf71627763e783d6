"""The speed and memory of a run as Markdown: tables, and pictures where the page has a folder for them.

In: sections of exhibits. Out: parts of a page. Every text that comes from a run stands in code or is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from compat.render.plot_parts import Exhibit, Section
from compat.render.speed_text import LEGEND

Table = Callable[[Sequence[str], Sequence[Sequence[str]], str], str]
Fold = Callable[[str, str], str]
Text = Callable[[str], str]


def exhibit_parts(
    sections: Sequence[Section], plots: str, table: Table, fold: Fold, code: Text, plain: Text
) -> Iterator[str]:
    """The parts of a page. `plots` is the folder of the pictures as seen from the page, or empty.

    `table` and `fold` write Markdown from Markdown, `code` and `plain` make text inert.
    """
    if sections:
        yield "## Speed and memory by length, padding and quantization"
        yield plain(LEGEND)
    for section in sections:
        yield f"### {plain(section.title)}"
        yield "\n\n".join(plain(note) for note in section.notes)
        if section.state:
            yield table(["", ""], [[plain(name), code(text)] for name, text in section.state], "ll")
        for exhibit in section.exhibits:
            body = "\n\n".join(_exhibit(exhibit, plots, table, code, plain))
            yield f"#### {plain(exhibit.title)}\n\n{body}" if exhibit.core else fold(exhibit.title, body)


def _exhibit(exhibit: Exhibit, plots: str, table: Table, code: Text, plain: Text) -> Iterator[str]:
    if exhibit.plot is not None and plots:
        yield f"![{plain(exhibit.plot.title)}]({plots}/{exhibit.plot.name}.svg)"
    rows = [[code(row[0]), *(code(text) for text in row[1:])] for row in exhibit.rows]
    yield table(
        [plain(exhibit.head[0]), *(code(text) for text in exhibit.head[1:])], rows, "l" + "r" * (len(exhibit.head) - 1)
    )
    told = exhibit.notes if exhibit.plot is None or not exhibit.plot.caption else (exhibit.plot.caption,)
    yield from (plain(note) for note in told)
