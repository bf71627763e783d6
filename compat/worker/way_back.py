"""The way back from a converted model: is it the model that it was, and are misuses refused?

In: a group and a backend that converts. Out: counts of what differs from a model that was never converted, and of
misuses that were accepted. Converting happens in place and shares modules, so every model here is loaded for itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch

from compat.worker import bettertransformer
from compat.worker.calls import StackError, under_test
from compat.worker.dispatch import synchronize
from compat.worker.group import EAGER, Group
from compat.worker.inputs import output_of, unpadded
from compat.worker.report import Report

LENGTH = 19

NAMED = 6
"""Names that a fact lists."""


def measure(group: Group, attention: dict[str, Any], report: Report) -> None:
    """Convert a model, misuse it, convert it back, and put into `report` what differs from one that was never
    converted; bit for bit, since converting moves weights and computes nothing. Raises StackError of the phases `load`
    and `convert`; what raises on the way back is a fact and a count."""
    rows = group.source.rows(1000 * group.spec.seed + 950, [LENGTH] * 2)
    inputs = unpadded(rows, group.device, group.dtype)
    plain, model = group.fresh(EAGER).model, group.fresh(attention).model
    before = {name: tensor.detach().clone() for name, tensor in plain.state_dict().items()}
    refusals = {
        "saving a converted model": _refusal(lambda: _save(model)),
        "converting twice": _refusal(lambda: bettertransformer.convert(model)),
        "reversing a model that is not converted": _refusal(lambda: bettertransformer.reverse(plain)),
    }
    report.facts["misuses"] = {name: said or "accepted" for name, said in refusals.items()}
    report.measure("misuses_accepted", sum(not said for said in refusals.values()), unit="misuses")
    try:
        with under_test("reverse"), torch.no_grad():
            restored = bettertransformer.reverse(model)
            after = restored.state_dict()
            output = output_of(restored(**inputs), group.task)
            synchronize(group.device)
    except StackError as error:
        report.measure("reversals_raised", 1, unit="reversals")
        report.facts["reverse"] = f"raised {type(error.original).__name__}: {error.original}"[:300]
        return
    report.measure("reversals_raised", 0, unit="reversals")
    apart = [n for n, own in before.items() if n not in after or not _same(own, after[n])]
    apart += [n for n in after if n not in before]
    report.measure("reverse_differing", len(apart), unit="tensors")
    if apart:
        report.facts["reverse_differing_in"] = apart[:NAMED]
    with under_test("forward"), torch.no_grad():
        expected = output_of(plain(**inputs), group.task)
        synchronize(group.device)
    differing = int((output != expected).sum()) if output.shape == expected.shape else expected.numel()
    report.measure("reverse_output_differing", differing, unit="elements")
    report.measure("compared_tensors", len(before), unit="tensors", better="higher")


def _same(own: torch.Tensor, other: torch.Tensor) -> bool:
    return own.dtype == other.dtype and own.shape == other.shape and torch.equal(own, other)


def _save(model: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="compat-") as folder:
        model.save_pretrained(folder)


def _refusal(call: Callable[[], Any]) -> str:
    """What `call` raised, in one line; "" where it was accepted."""
    try:
        with under_test("misuse"):
            call()
    except StackError as error:
        return f"{type(error.original).__name__}: {error.original}"[:160]
    return ""
