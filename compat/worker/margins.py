"""Generated tokens and the logits that they were chosen from, judged by the reference, on their way into a report.

A token that is not the reference's best is excused within 4 max|e - r| (docs/criteria.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from compat.worker.metrics import Agreement
from compat.worker.report import Report


@dataclass
class Margins:
    """Counts over the tokens of a cell."""

    unexcused: int = 0
    decisive: int = 0
    flipped: int = 0
    worst: float = 0.0

    def add(self, scores: torch.Tensor, token: int, excuse: float) -> None:
        """Judge `token` by the reference's `scores`, fp64 (vocabulary,); `excuse`: how far eager's error could have
        moved two of them apart."""
        best = scores.topk(2).values
        gap = float(best[0] - scores[token])
        self.decisive += float(best[0] - best[1]) > excuse
        self.flipped += gap > 0
        self.unexcused += not gap <= excuse
        self.worst = max(self.worst, gap / max(excuse, torch.finfo(scores.dtype).tiny))

    def record(self, report: Report) -> None:
        """The counts, into `report`."""
        report.measure("unexcused_tokens", self.unexcused, unit="tokens")
        report.measure("decisive_tokens", self.decisive, unit="tokens", better="higher")
        report.measure("flipped_tokens", self.flipped, unit="tokens", better="none")
        report.measure("worst_margin", self.worst, unit="of allowed")


def record_logits(report: Report, by_path: Mapping[str, Agreement], longest: str) -> None:
    """The figures of recorded logits, path -> figures, into `report`; kl_excess of the `longest` path only: a mean over
    a few tokens says little."""
    figures, most = list(by_path.values()), by_path[longest]
    report.measure("nonfinite_elements", [f.nonfinite for f in figures], unit="elements", method="sum")
    report.measure("yardstick_error", [f.yardstick_eps for f in figures], unit="eps rms(r)")
    report.measure("candidate_error", [f.candidate_eps for f in figures], unit="eps rms(r)")
    report.measure("ratio_rms", [f.ratio_rms for f in figures])
    report.measure("ratio_token", [f.ratio_token for f in figures])
    report.measure("ratio_max", [f.ratio_max for f in figures])
    report.measure("kl_excess", None if most.kl is None else most.kl - 4 * most.kl_yardstick, unit="nats")
