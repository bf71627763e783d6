"""memory: does the model hold what its scheme says, before and after it runs?

Weights bytes against the scheme's own arithmetic; bytes that a forward leaves behind in the model; KV-cache bytes a
token against layers x heads x head_dim; on a GPU the peak activation memory of one forward.
"""

from __future__ import annotations

from typing import Any

import torch

from compat.worker.group import Group
from compat.worker.inputs import unpadded
from compat.worker.load import scheme_bytes, weights_bytes
from compat.worker.report import Report

LENGTH = 64


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable."""
    report = Report(seed=group.spec.seed)
    loaded = group.loaded(attention)
    scheme = group.spec.quantization
    inputs = unpadded(group.source.rows(700, [LENGTH] * 2), group.device, group.dtype)
    before = weights_bytes(loaded.model)
    expected = scheme_bytes(group.master, loaded.model, group.dtype, scheme["bits"], scheme["overhead_bytes"])
    report.measure("weights_bytes", before, unit="bytes")
    report.measure("weights_expected_bytes", expected, unit="bytes", better="none")
    report.measure("weights_over_scheme", before / expected)
    if group.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(group.device)
        held = torch.cuda.memory_allocated(group.device)
    output = loaded.forward(**inputs, **({"use_cache": True} if group.task == "causal-lm" else {}))
    if group.device.type == "cuda":
        report.measure("activation_peak_bytes", torch.cuda.max_memory_allocated(group.device) - held, unit="bytes")
    cache = getattr(output, "past_key_values", None)
    if group.task == "causal-lm" and cache is not None and hasattr(cache, "layers"):
        tokens = inputs["input_ids"].numel()
        held_bytes = sum(t.numel() * t.element_size() for layer in cache.layers for t in _tensors(layer))
        report.measure("cache_bytes_per_token", held_bytes / tokens, unit="bytes/token")
        own = cache_bytes_per_token(group)
        if own:
            report.measure("cache_over_arithmetic", held_bytes / tokens / own)
    del output, cache
    report.measure("left_behind_bytes", weights_bytes(loaded.model) - before, unit="bytes")
    return report


def _tensors(layer: Any) -> list[torch.Tensor]:
    return [t for t in (getattr(layer, "keys", None), getattr(layer, "values", None)) if isinstance(t, torch.Tensor)]


def cache_bytes_per_token(group: Group) -> float | None:
    """2 x layers x key/value heads x head_dim x bytes an element; None where the config does not say."""
    config = group.master.config
    queries = _first(config, "num_attention_heads", "n_head", "n_heads")
    heads = _first(config, "num_key_value_heads", "num_kv_heads") or queries
    layers = _first(config, "num_hidden_layers", "n_layer", "n_layers")
    hidden = _first(config, "hidden_size", "n_embd", "d_model")
    if not (heads and queries and layers and hidden):
        return None
    head_dim = getattr(config, "head_dim", None) or hidden // queries
    return float(2 * layers * heads * head_dim * group.dtype.itemsize)


def _first(config: Any, *names: str) -> int | None:
    """The first of several spellings that the config has a value for."""
    return next((int(value) for name in names if (value := getattr(config, name, None))), None)
