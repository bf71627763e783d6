"""Faults of heads: a query head that meets another head's keys or values."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches
from compat.faults.seams import TORCH_SDPA, Call, after, after_attention, before_attention

SDPA_MODULE = "transformers.integrations.sdpa_attention"


def _tiled(original: Any, patches: Patches) -> Any:
    """repeat_kv that gives heads 0 1 0 1 where 0 0 1 1 belongs."""

    def repeat(hidden_states: Any, n_rep: int) -> Any:
        if n_rep == 1 or hidden_states.shape[1] == 1:
            return original(hidden_states, n_rep)
        patches.reached()
        return hidden_states.repeat(1, n_rep, 1, 1)

    return repeat


@fault(
    "eager-kv-tiled",
    title="grouped heads meet the wrong group in eager attention",
    origin="class: heads",
    mechanism="key/value heads are repeated by tiling where they are to be interleaved",
    cells=("llama/bf16/eager/none",),
    seen_by=("agreement",),
    spared=("qwen2/bf16/eager/none", "bert/bf16/sdpa/none"),
)
def _eager_tiled(patches: Patches) -> None:
    patches.function("transformers.models.llama.modeling_llama:repeat_kv", lambda own: _tiled(own, patches))


@fault(
    "sdpa-kv-tiled-under-mask",
    title="grouped heads meet the wrong group under SDPA as soon as there is a mask",
    origin="class: heads",
    mechanism="the path that repeats key/value heads, taken with a mask only, tiles them",
    cells=("llama/bf16/sdpa/none", "mistral/fp32/sdpa/none"),
    seen_by=("padding", "agreement"),
    spared=("llama/bf16/eager/none", "gpt2/bf16/sdpa/none"),
)
def _sdpa_tiled(patches: Patches) -> None:
    patches.function(f"{SDPA_MODULE}:repeat_kv", lambda own: _tiled(own, patches))


@fault(
    "gqa-wrong-group",
    title="SDPA's own grouping starts at the wrong key/value head",
    origin="class: heads",
    mechanism="enable_gqa with key/value heads turned by one",
    cells=("llama/bf16/sdpa/none", "qwen3/fp32/sdpa-flash/none"),
    seen_by=("agreement",),
    spared=("llama/bf16/eager/none", "gpt2/bf16/sdpa/none"),
)
def _wrong_group(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def attention(query: Any, key: Any, value: Any, *more: Any, **rest: Any) -> Any:
            if rest.get("enable_gqa") and key.shape[-3] > 1:
                patches.reached()
                key, value = key.roll(1, -3), value.roll(1, -3)
            return original(query, key, value, *more, **rest)

        return attention

    patches.function(TORCH_SDPA, make)


@fault(
    "packed-gqa-wrong-in-decode",
    title="masked decoding steps give grouped queries to the wrong key/value head",
    origin="class: heads",
    mechanism="queries are packed by stride instead of by block",
    cells=("llama/fp32/sdpa/none", "qwen3/bf16/sdpa/none"),
    seen_by=("cache", "generation", "padding"),
    spared=("llama/fp32/eager/none",),
)
def _packed_gqa(patches: Patches) -> None:
    def change(result: Any, hidden_states: Any, n_rep: int) -> Any:
        if hidden_states is None or hidden_states.shape[1] == 1 or n_rep == 1:
            return None
        batch, heads, _, width = hidden_states.shape
        return hidden_states.reshape(batch, n_rep, heads // n_rep, width).transpose(1, 2).contiguous()

    after(patches, f"{SDPA_MODULE}:pack_gqa", change)


@fault(
    "heads-swapped",
    title="two heads of the output change places",
    origin="class: heads",
    mechanism="heads 0 and 1 are swapped before the output projection",
    cells=("gpt2/bf16/sdpa/none", "bert/bf16/sdpa-math/none", "vit/fp32/sdpa/none"),
    seen_by=("agreement",),
    spared=("gpt2/bf16/eager/none",),
)
def _swapped(patches: Patches) -> None:
    def change(output: Any, call: Call) -> Any:
        if output.shape[2] < 2:
            return None
        order = [1, 0, *range(2, output.shape[2])]
        return output[:, :, order].contiguous()

    after_attention(patches, change)


@fault(
    "head-reads-neighbours-values",
    title="one head weighs its neighbour's values",
    origin="class: heads",
    mechanism="the last value head is the first one's",
    cells=("opt/bf16/sdpa/none", "bart/fp32/sdpa/none"),
    seen_by=("agreement",),
    spared=("opt/bf16/eager/none",),
)
def _neighbours_values(patches: Patches) -> None:
    def change(call: Call) -> bool:
        if call.value.shape[1] < 2:
            return False
        call.value = call.value.clone()
        call.value[:, -1] = call.value[:, 0]
        return True

    before_attention(patches, change)
