"""quality: are the weights quantized as asked, and at what loss? Three questions, asked apart.

1. Weights: are codes and statistics what the scheme makes of the checkpoint's weights, matrix by matrix? Does
   bitsandbytes dequantize them to what the format's definition says, and does a saved model come back bit for bit?
2. Kernel: is every quantized linear's output on the inputs that it really gets its own weight times the input, in fp64?
   Also with outlier columns, with one row, with a gradient, and for the gradient itself.
3. Loss: how far are the logits from the unquantized model's? Asked in the eager cell only: an attention backend is not
   to blame for it.

The answers to 1 and 2 hold for every attention backend that shares the model; they are worked out once.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from compat.worker import dequantize, reload, schemes
from compat.worker.calls import under_test
from compat.worker.checks.agreement import cases
from compat.worker.group import LARGE_PARAMETERS, Group, Loaded
from compat.worker.metrics import mean_kl, top1_agreement
from compat.worker.quantized_products import Kernels, kernels_of
from compat.worker.report import Report
from compat.worker.round_trip import RoundTrip, round_trip
from compat.worker.weight_figures import Figures

EVERY = 7
"""Of a large checkpoint's linears one in so many is looked at, except at depth deep."""


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    loaded = group.loaded(attention)
    own = group.once(f"quality {id(loaded.model)} {loaded.alone}", lambda: _Answers(group, loaded))
    own.record(report)
    if attention["name"] == "eager" and own.held:
        _loss(group, report)
    return report


class _Answers:
    """The answers to questions 1 and 2 for one loaded model."""

    def __init__(self, group: Group, loaded: Loaded) -> None:
        self.group = group
        self.held = group.stored(loaded.model)
        self.paths = _chosen(group, list(self.held))
        self.facts: dict[str, Any] = {"linears": len(self.held), "looked_at": len(self.paths)}
        self.figures = [self._figures(path) for path in self.paths]
        self.scheme = schemes.differences(group, loaded.model, self.held)
        self.kernels = Kernels()
        self.round_trip = RoundTrip()
        if self.held:
            self.kernels = kernels_of(group, loaded, self.held, self.paths)
            if group.spec.at_least("standard") and reload.affordable(group):
                self.round_trip = round_trip(group, self.held, self.kernels)

    def _figures(self, path: str) -> Figures:
        master = self.group.master_weight(path)
        held = self.held[path]
        with under_test("quantized state"):  # parts that do not fit together are the stack's fault
            found = dequantize.dequantize(held).cpu()
            return dequantize.figures(held, found, master.to(self.group.dtype).float(), master)

    def record(self, report: Report) -> None:
        """Everything that was measured, into `report`."""
        report.measure("weights_compared", len(self.figures), unit="matrices", better="higher")
        if self.figures:
            self._record_weights(report)
        self.kernels.record(report)
        self.round_trip.record(report)
        report.facts |= self.facts | self.kernels.facts | self.round_trip.facts
        if self.scheme:
            report.facts["scheme_differing_in"] = self.scheme[:6]

    def _record_weights(self, report: Report) -> None:
        figures = self.figures
        report.measure("codes_differing", [f.codes_differing for f in figures], unit="codes", method="sum")
        report.measure("statistics_error", [f.statistics_error for f in figures], unit="of the scale")
        report.measure("table_error", [f.table_error for f in figures], unit="of the largest code")
        sqnr = [f.sqnr_db for f in figures]
        report.measure("weight_sqnr_db", sqnr, unit="dB", better="higher", method="min")
        report.measure("weight_mean_error", [f.mean_error for f in figures], unit="of rms(w)")
        report.measure("weight_worst_block", [f.worst_block for f in figures], unit="of the block's largest")
        report.measure("scheme_differing", len(self.scheme), unit="layers")


def _chosen(group: Group, paths: list[str]) -> list[str]:
    large = sum(p.numel() for p in group.master.parameters()) > LARGE_PARAMETERS
    return paths[::EVERY] if large and not group.spec.at_least("deep") else paths


# -- loss --------------------------------------------------------------------------------------------------------


def _loss(group: Group, report: Report) -> None:
    """Eager's output against the unquantized checkpoint's in fp32, on the first inputs of `agreement`."""
    ours, theirs = [], []
    for rows in cases(group)[:2]:
        theirs += list(group.eager_outputs(rows))
        ours += group.master_outputs(rows)
    r, o = torch.cat(ours).double(), torch.cat(theirs).double().cpu()
    noise = float((o - r).square().mean())
    report.measure("output_sqnr_db", 10 * math.log10(float(r.square().mean()) / noise) if noise else 300.0, unit="dB",
                   better="higher")  # fmt: skip
    if group.task == "feature-extraction":
        return
    report.measure("output_kl", mean_kl(torch.log_softmax(r, -1), torch.log_softmax(o, -1)), unit="nats")
    report.measure("top1_agreement", top1_agreement(r, o), better="higher")
