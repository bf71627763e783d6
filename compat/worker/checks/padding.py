"""padding: does padding change anything that it must not?

Rows of unequal length are padded on each side that the family supports and judged, row by row, against the fp64
reference of the row alone, with the unpadded eager error as yardstick. Exact tests beside it: other token ids under
the pads, and one more row that is masked everywhere, must leave every valid position bit for bit as it was.
"""

from __future__ import annotations

from typing import Any

import torch

from compat.worker.checks.agreement import record
from compat.worker.group import Group, Loaded
from compat.worker.inputs import Padded, Rows, padded
from compat.worker.report import Report

LENGTHS = (49, 46, 40, 34)
"""Pads of 0, 3, 9 and 15: the longest row fills the batch, every row is longer than the probes' windows."""

SIDES = {"causal-lm": ("left", "right")}
"""Sides by task; the others pad on the right only, as their tokenizers do, unless a model row says otherwise."""


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    loaded = group.loaded(attention)
    rows = group.source.rows(500 + 1000 * group.spec.seed, list(LENGTHS))
    yardstick = group.yardstick(rows)
    sides: list[str] = group.row.get("padding_sides") or list(SIDES.get(group.task, ("right",)))
    figures = []
    for side in sides:
        o = _valid(loaded, _batch(group, loaded, rows, side))
        figures.append(yardstick.compare(o))
        if side == sides[0]:
            other = _valid(loaded, _batch(group, loaded, rows, side, pad=_other_pad(group)))
            report.measure("pad_content_changes", int((other != o).sum()), unit="elements")
            more = _valid(loaded, _batch(group, loaded, rows, side, all_pad_row=True))
            report.measure("neighbour_changes", int((more != o).sum()), unit="elements")
            # equal bits give equal figures: compare again only what has changed
            apart = [figures[0] if torch.equal(x, o) else yardstick.compare(x) for x in (other, more)]
            report.measure("neighbour_ratio_token", [f.ratio_token for f in apart])
    record(report, figures, own_yardstick=False)
    report.measure("compared_elements", [f.elements for f in figures], unit="elements", better="higher", method="sum")
    report.facts["sides"] = list(sides)
    return report


def _batch(
    group: Group, loaded: Loaded, rows: Rows, side: str, pad: int | None = None, all_pad_row: bool = False
) -> Padded:
    pad = group.source.pad if pad is None else pad
    return padded(rows, side, loaded.model, group.device, pad, all_pad_row)


def _other_pad(group: Group) -> int:
    """A token id that is not the pad token's."""
    return group.source.vocab - 2


def _valid(loaded: Loaded, batch: Padded) -> torch.Tensor:
    """Outputs at the valid positions of every real row, as one (tokens, features)."""
    output = loaded(**batch.arguments)
    return torch.cat([output[i, where] for i, where in enumerate(batch.valid)])
