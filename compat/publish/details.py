"""The evidence of single cells, in chunks that a page loads when a cell is opened.

In: a run. Out: for every chunk of cells JSON values: what the HTML report says of a cell, and the bounds that its
figures had to keep to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from compat.records import Cell, Run
from compat.render.grids import AXES
from compat.render.html import evidence_data
from compat.rules import Context, stored_context

from .bounds import bounds

CHUNK = 48
"""Cells of one file: a few hundred kilobytes, so that opening a cell does not wait."""


def chunks(run: Run) -> Iterator[dict[str, Any]]:
    """The evidence of all cells in their order, `CHUNK` at a time."""
    for start in range(0, len(run.cells), CHUNK):
        cells = run.cells[start : start + CHUNK]
        content = evidence_data(cells)
        sources: dict[str, int] = {}
        for cell, told in zip(cells, content["cells"], strict=True):
            context = _context(run, cell)
            for check, said in zip(cell.checks, told.get("c", []), strict=False):
                if context is not None and (found := bounds(check, context, sources)):
                    said["b"] = found
        yield {**content, "sources": list(sources)}


def _context(run: Run, cell: Cell) -> Context | None:
    """What criteria may ask of the cell; None for a run that was not written by compat."""
    models = run.run.settings.get("models", {})
    if not all(axis in cell.axes for axis in AXES) or not isinstance(models, dict):
        return None
    return stored_context(run, cell) if isinstance(models.get(cell.axes["model"], {}), dict) else None
