"""agreement: is the backend as close to the fp64 reference as eager attention in the same dtype is?

Five seeds, each with a length of its own at or beside a block edge. For the eager cell the figure is its own error in
units of eps * rms(r), since it is its own yardstick; the others report the ratios of docs/criteria.md.
"""

from __future__ import annotations

from typing import Any

import torch

from compat.worker import reference
from compat.worker.group import Group
from compat.worker.inputs import Rows, unpadded
from compat.worker.metrics import Agreement
from compat.worker.report import Report

LENGTHS = (33, 64, 65, 31, 129)
"""Block edges of flash kernels (32, 64, 128) and one more or less; longer than the probes' windows of 32."""

REAL_LENGTHS = (33, 64, 65, 31, 48)
"""For real checkpoints, whose every token costs a hundred times as much."""

IMAGES = 16


def cases(group: Group) -> list[Rows]:
    """One case a seed: two rows of a length (one row for real checkpoints), or a few images."""
    first = 1000 * group.spec.seed
    if group.task == "image-classification":
        return [group.source.rows(first + i, [0] * IMAGES) for i in range(len(LENGTHS))]
    batch, lengths = (2, LENGTHS) if group.row["source"] == "probe" else (1, REAL_LENGTHS)
    return [group.source.rows(first + i, [length] * batch) for i, length in enumerate(lengths)]


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    loaded = group.loaded(attention)
    figures: list[Agreement] = []
    repeats = 0
    for rows in cases(group):
        inputs = unpadded(rows, group.device, group.dtype)
        o = _flat(list(loaded(**inputs)))
        if not figures:
            repeats = int((_flat(list(loaded(**inputs))) != o).sum())
        figures.append(group.yardstick(rows).compare(o))
    record(report, figures, own_yardstick=attention["name"] == "eager")
    report.measure("repeat_difference", repeats, unit="elements")
    report.measure("compared_elements", [f.elements for f in figures], unit="elements", better="higher", method="sum")
    if reference.ENTROPY.ratio is not None:
        report.measure("attention_entropy", round(reference.ENTROPY.ratio, 3), unit="of log n")
    report.facts["reference"] = {
        "dtype": str(group.reference.dtype).removeprefix("torch."),
        "attention": group.reference.attention,
        "inv_freq": group.reference.inv_freq_dtype,
    }
    return report


def record(report: Report, figures: list[Agreement], own_yardstick: bool, prefix: str = "") -> None:
    """Put the figures of several comparisons into `report`: raw values, worst as the value."""
    report.measure(f"{prefix}nonfinite_elements", [f.nonfinite for f in figures], unit="elements", method="sum")
    report.measure(f"{prefix}yardstick_error", [f.yardstick_eps for f in figures], unit="eps rms(r)")
    if own_yardstick:
        return
    report.measure(f"{prefix}candidate_error", [f.candidate_eps for f in figures], unit="eps rms(r)")
    report.measure(f"{prefix}ratio_rms", [f.ratio_rms for f in figures])
    report.measure(f"{prefix}ratio_token", [f.ratio_token for f in figures])
    report.measure(f"{prefix}ratio_max", [f.ratio_max for f in figures])
    kl = [None if f.kl is None else f.kl - 4 * f.kl_yardstick for f in figures]
    if any(v is not None for v in kl):
        report.measure(f"{prefix}kl_excess", kl, unit="nats")


def _flat(outputs: list[torch.Tensor]) -> torch.Tensor:
    """Rows of (positions, features) as one (tokens, features)."""
    return torch.cat(outputs)
