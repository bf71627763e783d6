"""Scripts for bytes held: by the weights against their scheme, by what forwards leave, and by a cache.

In: a `memory` or `cache` check and the bounds that it breaks. Out: a `Body`; None where it broke no bound on a figure
that a script here measures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compat.axes import DTYPES, QUANTIZATIONS
from compat.records import Check
from compat.reproduce.body import Body, Name
from compat.reproduce.measured import bounded

_MEMORY = '''
def main() -> bool:
    """Bytes of the model's weights, buffers and attributes against the scheme's arithmetic, before and after forwards,
    and what a forward leaves elsewhere."""
    where = checkpoint()
    model = candidate(where)
    master = master_of(where)
    allowed = held_bytes_growth({p: stored(m) for p, m in quantized_modules(model).items()}) if QUANTIZATION else 0
    before, expected = weights_bytes(model), scheme_bytes(master, model, DTYPE, BITS, OVERHEAD_BYTES)
    print(f"  {before:,} bytes when loaded; the scheme's arithmetic says {expected:,}")
    inputs = plain_inputs() | ({"use_cache": True} if TASK == "causal-lm" else {})
    values = {"weights_over_scheme": before / expected}
    if IMPLEMENTATION != "flex_attention":
        account = Allocations()
        with account, forced_sdpa_kernel(SDPA_KERNEL), torch.no_grad():
            output = model(**inputs)
        cache, each = getattr(output, "past_key_values", None), kv_cache_bytes(model.config, DTYPE.itemsize)
        if cache is not None and TASK == "causal-lm" and each:
            size = sum(t.numel() * t.element_size() for layer in cache_tensors(cache) for t in layer)
            values["kv_cache_over_arithmetic"] = size / (inputs["input_ids"].numel() * each)
        del output, cache
        known = {tensor.untyped_storage()._cdata for tensor in held_tensors(model)}
        values["left_elsewhere_bytes"] = account.left(known)
        if IMPLEMENTATION != "eager" and not QUANTIZATION:
            base, eager = Allocations(), load(where, "eager")
            with base, torch.no_grad():
                eager(**inputs)
            values["peak_over_eager"] = account.peak_bytes / base.peak_bytes
    run(model, **plain_inputs())
    values["left_behind_bytes"] = max(0, weights_bytes(model) - before - allowed)
    return beyond(values)
'''
_MEMORY_FIGURES = (
    "weights_over_scheme", "left_elsewhere_bytes", "peak_over_eager", "left_behind_bytes", "kv_cache_over_arithmetic",
)  # fmt: skip

_CACHE = '''
def main() -> bool:
    """Prefill and single tokens through the cache that the model makes: the bytes of its keys and values against
    2 x key/value heads x head_dim x bytes a token and layer, windows holding no more than themselves."""
    model = candidate(checkpoint())
    config, named = model.config.get_text_config(decoder=True), cache_argument(model)
    fed = torch.tensor([tokens(64, 0), tokens(64, 1)], device=DEVICE)
    cache, encoder = None, {}
    name = "input_ids"
    if TASK == "seq2seq-lm":
        encoder, name = {"input_ids": fed[:, :33]}, "decoder_input_ids"
    for first, last in ((0, 40), *((i, i + 1) for i in range(40, 64))):
        with forced_sdpa_kernel(SDPA_KERNEL), torch.no_grad():
            output = model(**encoder, **{name: fed[:, first:last], named: cache}, use_cache=True)
        cache = getattr(output, named)
    layers = cache_tensors(decoder_cache(cache))
    found = [tensor for layer in layers for tensor in layer]
    expected = sum(2 * min(64, window or 64) * _bytes_a_token(config, DTYPE, layer[0].shape[1] == 1)
                   for layer, window in zip(layers, windows(config, len(layers))) if layer)
    size = sum(t.numel() * t.element_size() for t in found)
    print(f"  {size:,} bytes for 2 rows of 64 tokens; arithmetic says {expected:,}; first layer: "
          f"{[list(t.shape) for t in layers[0]]}")
    return beyond({"cache_over_arithmetic": size / expected, "cache_other_dtype": sum(t.dtype != DTYPE for t in found)})
'''
_CACHE_FIGURES = ("cache_over_arithmetic", "cache_other_dtype")


def memory(check: Check, axes: Mapping[str, str]) -> Body | None:
    """Bytes of the weights, and those that forwards leave behind."""
    needs: tuple[Name, ...] = (("load", "weights_bytes"), ("load", "held_bytes_growth"), ("load", "quantized_modules"),
                               ("load", "scheme_bytes"), ("load", "held_tensors"), ("dequantize", "stored"),
                               ("allocations", "Allocations"), ("checks.memory", "kv_cache_bytes"),
                               ("stack_api", "cache_tensors"))  # fmt: skip
    scheme = QUANTIZATIONS[axes["quantization"]]
    arithmetic: dict[str, Any] = {"BITS": scheme.bits, "OVERHEAD_BYTES": scheme.overhead(DTYPES[axes["dtype"]].bytes)}
    return _with(bounded(check, _MEMORY, _MEMORY_FIGURES, needs), arithmetic)


def cache(check: Check, axes: Mapping[str, str]) -> Body | None:
    """Bytes of keys and values."""
    needs: tuple[Name, ...] = (("caches", "windows"), ("caches", "_bytes_a_token"), ("stack_api", "cache_argument"),
                               ("stack_api", "cache_tensors"), ("stack_api", "decoder_cache"))  # fmt: skip
    return bounded(check, _CACHE, _CACHE_FIGURES, needs)


def _with(body: Body | None, constants: Mapping[str, Any]) -> Body | None:
    return None if body is None else Body(body.main, {**body.constants, **constants}, body.needs)
