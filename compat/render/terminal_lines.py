"""Lines of styled text for a terminal: measuring, padding, wrapping and painting them.

In: text and rich style names. Out: lines no wider than asked, as plain text or with escape codes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.color import ColorSystem
from rich.style import Style

from compat.render.inert import MORE, commandless

Line = list[tuple[str, str]]
"""Pieces of (text, rich style), the style empty where there is none."""


def text_width(text: str) -> int:
    """Columns that `text` takes: wide East Asian characters take two, combining marks none."""
    return cell_len(text)


def line_width(line: Line) -> int:
    """Columns that `line` takes."""
    return text_width("".join(text for text, _ in line))


def paint(line: Line, color: bool) -> str:
    """`line` as text: with escape codes from its styles, or without any. Trailing spaces are dropped."""
    line = [*line]
    while line and not line[-1][0].rstrip():
        line.pop()
    if line:
        line[-1] = (line[-1][0].rstrip(), line[-1][1])
    if not color:
        return "".join(text for text, _ in line)
    return "".join(
        Style.parse(style).render(text, color_system=ColorSystem.STANDARD) if style else text for text, style in line
    )


def cut(text: str, width: int) -> str:
    """`text` in at most `width` columns, ending in dots when something was cut off."""
    if text_width(text) <= width:
        return text
    dots = MORE[: max(width, 0)]
    while text and text_width(text + dots) > width:
        text = text[: min(len(text) - 1, width)]
    return text + dots


def pad(text: str, width: int, right: bool = False) -> str:
    """`text` in exactly `width` columns, to the left, or to the right with `right`."""
    text = cut(text, width)
    space = " " * (width - text_width(text))
    return space + text if right else text + space


def wrap(text: str, width: int, *, indent: str = "", first: str | None = None, style: str = "") -> list[Line]:
    """`text` on as many lines as it takes (at least one), after `indent`, or `first` on the first line if given.

    No line begins with `::`, which a log of GitHub Actions would take for a command.
    """
    head = indent if first is None else first
    lines = _wrapped(text, width, head, indent)
    if any(line.lstrip().startswith("::") for line in lines):
        lines = _wrapped(commandless(text, anywhere=True), width, head, indent)
    return [[(line, style)] for line in lines or [head]]


def _wrapped(text: str, width: int, head: str, indent: str) -> list[str]:
    if text.isascii():
        return textwrap.wrap(text, width, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False)
    parts = _wrap_wide(text, width - max(len(indent), text_width(head)))
    return [(head if i == 0 else indent) + part for i, part in enumerate(parts)]


def _wrap_wide(text: str, room: int) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and text_width(f"{line} {word}") > room:
            yield line
            line = ""
        line = f"{line} {word}" if line else word
        while text_width(line) > room:
            size = min(len(line), room)
            while size > 1 and text_width(line[:size]) > room:
                size -= 1
            yield line[:size]
            line = line[size:]
    if line:
        yield line


def fill(head: str, items: Sequence[Line], width: int) -> Iterator[Line]:
    """`items` after `head`, two spaces apart, as many on a line as fit; later lines start below the first item."""
    line: Line = [(head, "dim")]
    used = start = len(head)
    for item in items:
        size = line_width(item)
        if size > width - start:
            item, size = [(cut("".join(text for text, _ in item), width - start), "")], width - start
        if used > start and used + 2 + size > width:
            yield line
            line, used = [(" " * start, "")], start
        line = [*line, *([("  ", "")] if used > start else []), *item]
        used += size + (2 if used > start else 0)
    yield line
