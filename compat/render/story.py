"""The story of a cell for a terminal, and as Markdown.

In: a `Story`. Out: text that ends in a newline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compat.render.markdown import _block, _plain, _table, code
from compat.render.symbols import symbol
from compat.render.telling import Block, Code, Pair, Table, blocks
from compat.render.terminal_lines import Line, pad, paint, text_width, wrap
from compat.story import Story

MIN_WIDTH = 60
COLUMN = 44
"""Columns that a name or a figure may take; what is longer goes below its row."""

Scripts = Sequence[tuple[str, str]]


def story_terminal(
    story: Story, check: str = "", scripts: Scripts = (), *, width: int = 80, color: bool = False
) -> str:
    """`story` for a terminal of `width` columns (never fewer than 60); only commands may be longer than a line."""
    width = max(width, MIN_WIDTH)
    lines: list[Line] = []
    for block in blocks(story, check, scripts):
        lines += [[]] if lines else []
        style = symbol(block.outcome).style if block.outcome is not None else "bold"
        lines += wrap(block.title, width, indent="    ", first="", style=style)
        for item in block.items:
            lines += _item(item, width)
    return "\n".join(paint(line, color) for line in lines) + "\n"


def _item(item: Pair | Table | Code, width: int) -> Iterator[Line]:
    if isinstance(item, Pair):
        head = f"  {item.name}: "
        if text_width(head) > width // 2:
            yield from wrap(f"{item.name}:", width, indent="    ", first="  ", style="dim")
            yield from wrap(item.text, width, indent="    ")
            return
        first, *rest = wrap(item.text, width, indent="    ", first=" " * text_width(head))
        yield [(head, "dim"), *((t[text_width(head) :] if i == 0 else t, s) for i, (t, s) in enumerate(first))]
        yield from rest
    elif isinstance(item, Code):
        prompt = "  $ " if item.language == "sh" else "  | "
        for line in item.text.split("\n"):
            yield [(prompt, "dim"), (line, "bold" if item.language == "sh" else "")]
    else:
        yield from _rows(item, width)


def _rows(item: Table, width: int) -> Iterator[Line]:
    """Columns to the left; a row that is wider than the screen continues on lines of its own."""
    sizes = [min(max(text_width(r[i]) for r in (item.head, *item.rows)), COLUMN) for i in range(len(item.head))]
    for number, row in enumerate((item.head, *item.rows)):
        style = "dim" if number == 0 else ""
        if all(text_width(t) <= s for t, s in zip(row, sizes, strict=True)) and sum(sizes) + 2 * len(sizes) <= width:
            yield [("  " + "  ".join(pad(t, s) for t, s in zip(row, sizes, strict=True)), style)]
        else:
            yield from wrap("  ".join(row), width, indent="      ", first="  ", style=style)


def story_markdown(story: Story, check: str = "", scripts: Scripts = ()) -> str:
    """`story` as a page for GitHub; all text of the run stands in code."""
    parts = []
    for number, block in enumerate(blocks(story, check, scripts)):
        parts += [f"{'#' if number == 0 else '##'} {_title(block)}", *_items(block)]
    return "\n\n".join(parts) + "\n"


def _title(block: Block) -> str:
    return _plain(block.title) if block.outcome is None else code(block.title, 400)


def _items(block: Block) -> Iterator[str]:
    pairs: list[str] = []
    for item in block.items:
        if isinstance(item, Pair):
            pairs.append(f"- {_plain(item.name)}: {code(item.text, 1000)}")
            continue
        if pairs:
            yield "\n".join(pairs)
            pairs = []
        if isinstance(item, Code):
            yield _block(item.text, item.language, lines=True)
        else:
            rows = [[code(t, 300) for t in row] for row in item.rows]
            yield _table([_plain(h) for h in item.head], rows, "l" * len(item.head))
    if pairs:
        yield "\n".join(pairs)
