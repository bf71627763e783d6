"""Cells as columns of small numbers and letters, so that thousands of cells and dozens of runs stay one small file.

In: ids and axes of cells, whose texts are `names.shown`. Out: a table of the values of each axis, and for each cell the
numbers of its values; an id is written out only where it is not its values joined by slashes. An outcome is one letter
(compat.render.symbols), so the outcomes of a run are a text, and so is the history of a cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compat.records import Cell, Outcome
from compat.render.grids import AXES, in_order
from compat.render.symbols import SYMBOLS

from .names import shown

ABSENT = "."
"""The letter of a cell that a run does not hold, and of a check that was not asked."""

LETTERS: dict[Outcome, str] = {outcome: mark.letter for outcome, mark in SYMBOLS.items()}
OUTCOMES: dict[str, Outcome] = {letter: outcome for outcome, letter in LETTERS.items()}

PLAIN: dict[str, str] = {"mode": "plain"}
"""Axis -> the value that means nothing special, as runs before that axis are read."""

Key = tuple[str, int]
"""A cell's id and how often it stood before in the same run (0 but for hand-made runs)."""


@dataclass(frozen=True)
class Columns:
    """Cells as numbers. `values[a][n]` is value n of axis a; `cells[i][a]` its number, or -1."""

    axes: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    cells: tuple[tuple[int, ...], ...]
    ids: tuple[tuple[int, str], ...]
    """(position, id) of the cells whose id is not their values joined by slashes."""

    @property
    def content(self) -> dict[str, Any]:
        """The parts of a JSON object."""
        return {"axes": self.axes, "values": self.values, "cells": self.cells, "ids": self.ids}


def axes_of(cell: Cell) -> dict[str, str]:
    """The axes of `cell` with shown names; the four that every cell has come first."""
    names = [*(a for a in AXES if a in cell.axes), *sorted(a for a in cell.axes if a not in AXES)]
    return {shown(name): shown(cell.axes[name]) for name in names if PLAIN.get(name) != cell.axes[name]}


def keys_of(cells: Iterable[Cell]) -> list[Key]:
    """The key of each cell, all different."""
    seen: dict[str, int] = {}
    keys = []
    for cell in cells:
        identity = shown(cell.id)
        keys.append((identity, seen.get(identity, 0)))
        seen[identity] = seen.get(identity, 0) + 1
    return keys


def columns(rows: Sequence[tuple[str, Mapping[str, str]]]) -> Columns:
    """The cells `rows` (id, axis -> value, none of them empty) as columns, in their order."""
    every = dict.fromkeys(name for _, axes in rows for name in axes)
    names = (*AXES, *sorted(n for n in every if n not in AXES))
    values = tuple(in_order(name, (axes[name] for _, axes in rows if name in axes)) for name in names)
    numbers = [{value: i for i, value in enumerate(found)} for found in values]
    cells = tuple(
        tuple(known[axes[name]] if name in axes else -1 for name, known in zip(names, numbers, strict=True))
        for _, axes in rows
    )
    ids = tuple((i, identity) for i, (identity, axes) in enumerate(rows) if identity != _joined(names, axes))
    return Columns(names, values, cells, ids)


def rows(table: Columns) -> list[tuple[str, dict[str, str]]]:
    """What `columns` was made from."""
    written = dict(table.ids)
    found = []
    for i, numbers in enumerate(table.cells):
        axes = {a: v[n] for a, v, n in zip(table.axes, table.values, numbers, strict=True) if n >= 0}
        found.append((written.get(i, _joined(table.axes, axes)), axes))
    return found


def pooled(texts: Iterable[str]) -> tuple[list[str], list[int]]:
    """Each different text once, and for each of `texts` its number; -1 for an empty one."""
    numbers: dict[str, int] = {}
    found = [numbers.setdefault(text, len(numbers)) if text else -1 for text in texts]
    return list(numbers), found


def _joined(names: Sequence[str], axes: Mapping[str, str]) -> str:
    return "/".join(axes[name] for name in names if name in axes)
