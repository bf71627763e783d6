"""Ranked answers of a pipeline (class, probability) against those of our own forward, and of the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from compat.worker.answers import records
from compat.worker.report import Report

Ranked = list[tuple[int, float]]
"""(class, probability) as a pipeline ranks them."""


def ranked(answer: Any, number: Callable[[dict[str, Any]], Any]) -> Ranked:
    """The records of an answer that name a class, by `number` of the record, and a score."""
    pairs = [(number(r), r.get("score")) for r in records(answer)]
    return [(i, float(p)) for i, p in pairs if isinstance(i, int) and isinstance(p, (int, float))]


@dataclass
class Answers:
    """Probabilities of a pipeline against those of the reference, and of our own forward."""

    differing: int = 0
    compared: int = 0
    apart: float = 0.0
    margin: float = 0.0

    def each(self, answers: Any, count: int) -> list[Any]:
        """The answers to `count` items: None for one that is missing; those missing or there beside count."""
        given = list(answers) if isinstance(answers, (list, tuple)) else []
        self.differing += abs(len(given) - count)
        return (given + [None] * count)[:count]

    def add(self, own: torch.Tensor, answer: Ranked, count: int = 5, among: Sequence[int] = ()) -> None:
        """`own`: probabilities by class from forward, of which the best `count` are asked for, of all classes or of
        those in `among`. Classes of exactly equal probability may stand in either order; one that is missing counts."""
        asked = own[list(among)] if among else own
        best = asked.topk(min(count, len(asked))).values
        self.differing += abs(len(best) - len(answer))
        self.compared += len(best)
        for (i, score), p in zip(answer, best, strict=False):
            known = 0 <= i < len(own) and (not among or i in among)
            self.differing += not known or float(own[i]) != float(p)
            self.apart = max(self.apart, abs(score - float(p)))

    def judge(self, r: torch.Tensor, e: torch.Tensor, answer: Ranked, among: Sequence[int] = ()) -> None:
        """`r`, `e`: logits of the reference and of eager attention on the row alone. The log-probability of each answer
        may be off by 4 max|e - r| (docs/criteria.md), or by what fp32 rounds."""
        logs = r.double().log_softmax(-1)
        asked = logs[list(among)] if among else logs
        answer = [(i, p) for i, p in answer if 0 <= i < len(logs)][: len(asked)]
        excuse = 4 * float((e.double() - r.double()).abs().max()) + 1e-5
        for token, score in answer:
            off = abs(float(torch.tensor(score).double().clamp_min(1e-300).log() - logs[token]))
            self.margin = max(self.margin, off / (excuse + score_rounding(score)))
        found = sorted((logs[token].item() for token, _ in answer), reverse=True)
        missed = asked.topk(len(answer)).values.tolist()
        self.margin = max([self.margin, *((m - o) / (2 * excuse) for m, o in zip(missed, found, strict=True))])

    def record(self, report: Report, task: str) -> None:
        report.facts["pipeline"] = task
        report.measure("pipeline_differences", self.differing, unit="answers")
        report.measure("pipeline_compared", self.compared, unit="answers", better="higher")
        report.measure("pipeline_score_difference", self.apart, unit="probability")
        report.measure("pipeline_batch_margin", self.margin, unit="of allowed")


def score_rounding(score: float) -> float:
    """How far a log-probability moves when its probability is rounded to bf16 (8 bits)."""
    return 2.0**-8 if score else 0.0
