"""memory: does the model hold what its scheme says, before and after it runs?

Weights bytes against the scheme's own arithmetic; bytes that forwards leave behind in the model since it was loaded, or
anywhere else; peak activation memory of one forward, by the device's own counter or by our account of what operators
return. What a KV cache holds is measured by the cache check.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from compat.worker.allocations import Allocations
from compat.worker.calls import StackError
from compat.worker.group import Group, NoYardstick
from compat.worker.inputs import unpadded
from compat.worker.load import held_bytes_growth, held_tensors, scheme_bytes, weights_bytes
from compat.worker.report import Report

LENGTH = 64

EAGER_PEAK = "memory: eager peak"
"""Where a group keeps what eager's forward took."""


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    loaded = group.loaded(attention)
    scheme = group.spec.quantization
    model = loaded.model
    inputs = unpadded(group.source.rows(700, [LENGTH] * 2), group.device, group.dtype)
    before = weights_bytes(model)
    expected = scheme_bytes(group.master, model, group.dtype, scheme["bits"], scheme["overhead_bytes"])
    report.measure("weights_bytes", before, unit="bytes")
    report.measure("weights_expected_bytes", expected, unit="bytes", better="none")
    report.measure("weights_over_scheme", before / expected)
    # flex_attention compiles itself, and a dispatch mode would stop it
    account = Allocations() if attention["implementation"] != "flex_attention" else None
    if group.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(group.device)
        held = torch.cuda.memory_allocated(group.device)
    with account or nullcontext():
        output = loaded.forward(**inputs, **({"use_cache": True} if group.task == "causal-lm" else {}))
    if group.device.type == "cuda":
        report.measure("activation_peak_bytes", torch.cuda.max_memory_allocated(group.device) - held, unit="bytes")
    elif account is not None:
        report.measure("activation_peak_bytes", account.peak_bytes, unit="bytes")
    del output
    after = weights_bytes(model)
    allowed = held_bytes_growth(group.stored(model))
    kept = after - min(before, group.bytes_at_load(model)) - allowed
    report.measure("left_behind_bytes", max(0, kept), unit="bytes")
    if account is not None:
        report.measure("left_elsewhere_bytes", account.left(_storages(model)), unit="bytes")
        if attention["name"] == "eager":
            group.kept[EAGER_PEAK] = account.peak_bytes
        elif not scheme["library"]:
            base = group.kept.get(EAGER_PEAK) or _eager_peak(group, inputs)
            report.measure("peak_over_eager", account.peak_bytes / base)
    return report


def _eager_peak(group: Group, inputs: dict[str, torch.Tensor]) -> int:
    """Bytes that operators returned and that lived at once in eager's forward; kept. Raises NoYardstick."""
    eager, account = group.eager, Allocations()
    try:
        with account:
            eager.forward(**inputs, **({"use_cache": True} if group.task == "causal-lm" else {}))
    except StackError as error:
        raise NoYardstick(f"eager attention did not run: {error}") from error
    group.kept[EAGER_PEAK] = account.peak_bytes
    return account.peak_bytes


def _storages(model: Any) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in held_tensors(model)}
