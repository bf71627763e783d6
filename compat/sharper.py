"""The sharper tier: what a 16-bit cell cannot show, looked for in the same cell at a finer dtype.

In: the cells of a run. Out: the same cells; each 16-bit one that was judged says in `effective["sharper"]` which cell
of the run looked closer, and what its agreement came to. A 1% error of the softmax scale hides in bf16 (R 1.06 to 1.21)
and stands out in fp16 (4.3 and more) and fp32 (11,000 and more): docs/criteria.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from compat.records import Cell, Outcome

FINER = {"bf16": ("fp32", "fp16"), "fp16": ("fp32",)}
"""Dtypes that see more, the sharpest first."""

NOWHERE = "not in this run: an error below the dtype's own rounding would not be seen"


def linked(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """`cells` with `effective["sharper"]` as it follows from the others; an older link is replaced."""
    places = {_place(cell): cell for cell in cells}
    return tuple(_with_link(cell, places) for cell in cells)


def _place(cell: Cell) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(cell.axes.items()))


def _with_link(cell: Cell, places: dict[tuple[tuple[str, str], ...], Cell]) -> Cell:
    finer = FINER.get(cell.axes.get("dtype", ""), ())
    own = cell.check("agreement")
    if not finer or own is None or own.outcome == Outcome.NOT_RUN:
        return cell
    link: dict[str, Any] = {"cell": "", "agreement": "", "note": NOWHERE}
    for dtype in finer:
        other = places.get(tuple(sorted({**cell.axes, "dtype": dtype}.items())))
        check = other.check("agreement") if other is not None else None
        if other is not None and check is not None and check.outcome != Outcome.NOT_RUN:
            link = {"cell": other.id, "agreement": check.outcome.value}
            break
    return msgspec.structs.replace(cell, effective={**cell.effective, "sharper": link})
