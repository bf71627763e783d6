"""Draw the grids of a run in as few columns as they take.

In: panels. Out: lines. One table for each panel, models down, attention across; a table cell holds one mark for each
dtype, side by side, so that 25 models x 10 backends x 3 dtypes are one table of 80 columns. Narrow panels with the
same models stand beside each other; wide ones continue below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compat.render.grids import Grid, Panel
from compat.render.inert import label
from compat.render.palette import SHORT
from compat.render.symbols import symbol
from compat.render.terminal_lines import Line, cut, line_width, pad, text_width, wrap

MAX_HEADER = 8
MAX_DTYPES = 6
MIN_LABEL, MAX_LABEL = 12, 28
GAP = "  "
"""Between two blocks that stand beside each other, and between a label and its row."""


@dataclass(frozen=True)
class Block:
    """Some columns of a panel, which stay together."""

    title: str
    models: tuple[str, ...]
    grids: tuple[Grid, ...]
    columns: tuple[tuple[str, str], ...]
    """(attention, header)"""
    missing: tuple[str, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Width of each column."""
        return tuple(max(text_width(header), len(self.grids)) for _, header in self.columns)

    @property
    def width(self) -> int:
        """Width of all columns with the spaces between them."""
        return sum(self.sizes) + len(self.columns) - 1

    def head(self) -> str:
        """The column headers."""
        return " ".join(pad(header, size) for (_, header), size in zip(self.columns, self.sizes, strict=True))

    def row(self, model: str, ascii: bool) -> Line:
        """The marks of `model`."""
        line: Line = []
        for (attention, _), size in zip(self.columns, self.sizes, strict=True):
            for grid in self.grids:
                cell = grid.at(model, attention)
                mark = symbol(cell.outcome if cell else None)
                line.append((mark.dense(ascii), mark.style))
            line.append((" " * (size - len(self.grids) + 1), ""))
        return line[:-1]


def abbreviations(attentions: Sequence[str]) -> dict[str, str]:
    """A distinct column header of at most `MAX_HEADER` columns for each attention."""
    taken: dict[str, str] = {}
    for name in attentions:
        brief = SHORT.get(name, label(name))
        number = 1
        if text_width(brief) > MAX_HEADER:
            brief = cut(brief, MAX_HEADER)
        while brief in taken.values():
            number += 1
            brief = cut(brief.split("~")[0], MAX_HEADER - 1 - len(str(number))).replace(".", "") + f"~{number}"
        taken[name] = brief
    return taken


def row_labels(models: Sequence[str], width: int) -> dict[str, str]:
    """A distinct label of at most `width` columns for each model."""
    taken: dict[str, str] = {}
    used: set[str] = set()
    for name in models:
        brief, number = cut(label(name), width), 1
        while brief in used:
            number += 1
            brief = cut(label(name), width - 1 - len(str(number))) + f"~{number}"
        used.add(brief)
        taken[name] = brief
    return taken


def grid_lines(panels: Sequence[Panel], width: int, ascii: bool = False) -> Iterator[Line]:
    """All panels, with every cell exactly once."""
    if not panels:
        return
    every = tuple(dict.fromkeys(m for p in panels for m in p.models))
    short = abbreviations(tuple(dict.fromkeys(a for p in panels for a in p.attentions)))
    longest = max(text_width(label(m)) for m in every)
    widest = max(_block_width(p, short) for p in panels)
    room = min(max(longest, MIN_LABEL), MAX_LABEL, max(width - len(GAP) - widest, MIN_LABEL))
    labels = row_labels(every, room)
    blocks = [b for p in panels for b in _blocks(p, short, width - room - len(GAP))]
    first = True
    for beside in _side_by_side(blocks, width - room):
        if not first:
            yield []
        first = False
        yield from _table(beside, labels, room, width, ascii)


def _block_width(panel: Panel, short: dict[str, str]) -> int:
    marks = min(len(panel.grids), MAX_DTYPES)
    return sum(max(text_width(short[a]), marks) + 1 for a in panel.attentions) - 1


def _blocks(panel: Panel, short: dict[str, str], room: int) -> Iterator[Block]:
    """`panel` in blocks of at most `room` columns."""
    for start in range(0, len(panel.grids), MAX_DTYPES):
        grids = panel.grids[start : start + MAX_DTYPES]
        columns: list[tuple[str, str]] = []
        used = -1
        for attention in panel.attentions:
            size = max(text_width(short[attention]), len(grids))
            if columns and used + 1 + size > room:
                yield Block(panel.title, panel.models, grids, tuple(columns), panel.missing_models)
                columns, used = [], -1
            columns.append((attention, short[attention]))
            used += 1 + size
        yield Block(panel.title, panel.models, grids, tuple(columns), panel.missing_models)


def _side_by_side(blocks: Sequence[Block], room: int) -> Iterator[list[Block]]:
    """Blocks with the same rows, as many beside each other as fit in `room`."""
    beside: list[Block] = []
    for block in blocks:
        used = sum(len(GAP) + max(b.width, _title_width(b)) for b in [*beside, block])
        if beside and (beside[0].models != block.models or used > room):
            yield beside
            beside = []
        beside.append(block)
    if beside:
        yield beside


def _title_width(block: Block) -> int:
    return min(text_width(_title(block)), 30)


def _title(block: Block) -> str:
    return label(block.title).removeprefix("quantization ")


def _table(beside: Sequence[Block], labels: dict[str, str], room: int, width: int, ascii: bool) -> Iterator[Line]:
    dtypes = " ".join(label(g.dtype, 12) for g in beside[0].grids)
    same = all([g.dtype for g in b.grids] == [g.dtype for g in beside[0].grids] for b in beside)
    if len(beside) == 1 or not same:
        for block in beside:
            marks = " ".join(label(g.dtype, 12) for g in block.grids)
            yield from wrap(f"{label(block.title, 200)}; marks in each column: {marks}", width, style="bold")
    else:
        yield from wrap(f"one table for each quantization; marks in each column: {dtypes}", width, style="bold")
    sizes = [max(b.width, _title_width(b)) if len(beside) > 1 else b.width for b in beside]
    if len(beside) > 1:
        titles = (GAP + pad(_title(b), size) for b, size in zip(beside, sizes, strict=True))
        yield [(" " * room, ""), *((title, "bold") for title in titles)]
    heads = (GAP + pad(b.head(), size) for b, size in zip(beside, sizes, strict=True))
    yield [(pad("model", room), "dim"), *((head, "dim") for head in heads)]
    for model in beside[0].models:
        line: Line = [(pad(labels[model], room), "")]
        for block, size in zip(beside, sizes, strict=True):
            marks_line = block.row(model, ascii)
            line += [(GAP, ""), *marks_line, (" " * (size - line_width(marks_line)), "")]
        yield line
    missing = beside[0].missing
    if missing:
        few = ", ".join(label(m, 40) for m in missing[:8])
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        yield from wrap(f"not in the matrix here: {few}{more}", width, style="dim")
