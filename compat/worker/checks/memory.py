"""memory: does the model hold what its scheme says, before and after it runs?

Weights bytes against the scheme's own arithmetic; bytes that forwards leave behind in the model since it was loaded, or
anywhere else; peak activation memory of one forward, by the device's own counter or by our account of what operators
return; of a causal model what its cache holds for a token.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from compat.worker import caches, quantizers, stack_api
from compat.worker.allocations import Allocations
from compat.worker.calls import StackError
from compat.worker.group import Group, NoYardstick
from compat.worker.inputs import unpadded
from compat.worker.load import held_tensors, scheme_bytes, weights_bytes
from compat.worker.report import Report

LENGTH = 64
ROWS = 2

EAGER_PEAK = "memory: eager peak"
"""Where a group keeps what eager's forward took."""


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    loaded = group.loaded(attention)
    scheme = group.spec.quantization
    model = loaded.model
    inputs = unpadded(group.source.rows(700, [LENGTH] * ROWS), group.device, group.dtype)
    before = weights_bytes(model)
    left_alone = quantizers.left_alone(scheme)
    expected = scheme_bytes(group.master, model, group.dtype, scheme["bits"], scheme["overhead_bytes"], left_alone)
    # as loaded: a first forward may repack 4-bit codes, and then the statistics are other ones
    at_load = group.bytes_at_load(model)
    report.measure("weights_bytes", at_load, unit="bytes")
    report.measure("weights_expected_bytes", expected, unit="bytes", better="none")
    report.measure("weights_over_scheme", at_load / expected)
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
    if group.task == "causal-lm":
        _cache(output, model, report)
    del output
    after = weights_bytes(model)
    allowed = group.bytes_growth(model)
    kept = after - min(before, at_load) - allowed
    report.measure("left_behind_bytes", max(0, kept), unit="bytes")
    if account is not None:
        report.measure("left_elsewhere_bytes", account.left(_storages(model)), unit="bytes")
        if attention["name"] == "eager":
            group.kept[EAGER_PEAK] = account.peak_bytes
        elif not scheme["library"]:
            base = group.kept.get(EAGER_PEAK) or _eager_peak(group, inputs)
            report.measure("peak_over_eager", account.peak_bytes / base)
    return report


def _cache(output: Any, model: Any, report: Report) -> None:
    """Bytes a token of the cache that a forward filled, and how they compare with its arithmetic; nothing for models
    that fill none."""
    cache = getattr(output, "past_key_values", None)
    held = [] if cache is None else [t for layer in stack_api.cache_tensors(cache) for t in layer]
    if not held:
        return
    found = sum(t.numel() * t.element_size() for t in held) / (ROWS * LENGTH)
    report.measure("kv_cache_bytes_per_token", found, unit="bytes")
    expected = kv_cache_bytes(model.config, held[0].dtype.itemsize)
    if expected is not None:
        report.measure("kv_cache_over_arithmetic", caches.storage_bytes(held) / (ROWS * LENGTH) / expected)


def kv_cache_bytes(config: Any, itemsize: int) -> int | None:
    """Bytes that a token takes in a cache of keys and values: 2 x layers x key/value heads x head_dim x `itemsize`.

    None where some layers keep something else: a state, a latent vector, less than LENGTH tokens.
    """
    own = config.get_text_config()
    kinds = set(getattr(own, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    window = getattr(own, "sliding_window", None)
    if kinds or getattr(own, "kv_lora_rank", None) or (window and window < LENGTH):
        return None
    heads, hidden = own.num_attention_heads, own.hidden_size
    grouped = getattr(own, "num_key_value_heads", None) or heads
    if getattr(own, "multi_query", False):
        grouped = 1
    width = getattr(own, "head_dim", None) or hidden // heads
    return int(2 * own.num_hidden_layers * grouped * width * itemsize)


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
