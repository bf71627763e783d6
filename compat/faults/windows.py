"""Faults of sliding windows: a window that is too wide, too narrow, missing, or where none belongs."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches

MASKS = "transformers.masking_utils"
SLIDING = f"{MASKS}:create_sliding_window_causal_mask"


def _other_window(patches: Patches, more: int, implementations: tuple[str, ...]) -> None:
    """Make the window of causal masks `more` tokens wider, for these implementations."""
    now: list[str] = [""]

    def note(original: Any) -> Any:
        def create(config: Any, *arguments: Any, **keywords: Any) -> Any:
            now[0] = str(config._attn_implementation)
            try:
                return original(config, *arguments, **keywords)
            finally:
                now[0] = ""

        return create

    def widen(original: Any) -> Any:
        def overlay(sliding_window: int) -> Any:
            if now[0] not in implementations:
                return original(sliding_window)
            patches.reached()
            return original(sliding_window + more)

        return overlay

    patches.function(SLIDING, note)
    patches.function(f"{MASKS}:sliding_window_overlay", widen)


@fault(
    "sdpa-window-too-wide",
    title="the sliding window lets in one token too many on the fused paths",
    origin="huggingface/transformers#39408",
    mechanism="an inclusive bound where an exclusive one belongs",
    cells=("mistral/fp32/sdpa/none", "mistral/bf16/sdpa-math/none"),
    seen_by=("agreement",),
    spared=("mistral/bf16/eager/none", "llama/bf16/sdpa/none"),
)
def _too_wide(patches: Patches) -> None:
    _other_window(patches, 1, ("sdpa",))


@fault(
    "sdpa-window-too-narrow",
    title="the sliding window leaves out its oldest token",
    origin="class: windows",
    mechanism="the bound is one token too strict under SDPA",
    cells=("gemma3/fp32/sdpa/none",),
    seen_by=("agreement",),
    spared=("gemma3/fp32/eager/none",),
)
def _too_narrow(patches: Patches) -> None:
    _other_window(patches, -1, ("sdpa",))


@fault(
    "eager-window-too-wide",
    title="eager attention's window lets in one token too many",
    origin="class: windows",
    mechanism="as on the fused paths, in the yardstick itself",
    cells=("mistral/fp32/eager/none", "gpt_oss/bf16/eager/none"),
    seen_by=("agreement",),
    spared=("llama/bf16/sdpa/none",),
)
def _eager_too_wide(patches: Patches) -> None:
    _other_window(patches, 1, ("eager",))


@fault(
    "window-ignored",
    title="every token sees the whole sequence, window or not",
    origin="class: windows",
    mechanism="sliding layers get the plain causal mask under SDPA",
    cells=("mistral/bf16/sdpa/none", "gemma3/bf16/sdpa-math/none"),
    seen_by=("agreement",),
    spared=("mistral/bf16/eager/none",),
)
def _ignored(patches: Patches) -> None:
    _other_window(patches, 1 << 20, ("sdpa",))


@fault(
    "window-on-full-layers",
    title="layers with full attention get the sliding window too",
    origin="class: windows",
    mechanism="the causal mask of a model with both kinds of layer is made by the sliding function",
    cells=("gemma3/bf16/sdpa/none", "gemma3/bf16/eager/none"),
    seen_by=("agreement",),
    spared=("llama/bf16/sdpa/none", "mistral/bf16/sdpa/none"),
)
def _on_full_layers(patches: Patches) -> None:
    import transformers.masking_utils as masking

    def make(original: Any) -> Any:
        def create(config: Any, *arguments: Any, **keywords: Any) -> Any:
            kinds = getattr(config, "layer_types", None) or ()
            if "full_attention" not in kinds or "sliding_attention" not in kinds:
                return original(config, *arguments, **keywords)
            patches.reached()
            return masking.create_sliding_window_causal_mask(config, *arguments, **keywords)

        return create

    patches.function(f"{MASKS}:create_causal_mask", make)


@fault(
    "window-dropped-in-decode",
    title="a decoding step with a static cache sees past the window",
    origin="class: windows",
    mechanism="for a single query the sliding mask is the causal one, and nothing is cut from the cache",
    cells=("mistral/fp32/sdpa/none", "mistral/fp32/eager/none"),
    seen_by=("cache",),
    spared=("llama/bf16/sdpa/none",),
)
def _dropped_in_decode(patches: Patches) -> None:
    """The cache keeps everything and says so; the mask of a single query has no window."""

    def mask_sizes(original: Any) -> Any:
        def sizes(self: Any, query_length: int) -> tuple[int, int]:
            return self.cumulative_length + query_length, 0

        return sizes

    def update(original: Any) -> Any:
        def keep_all(self: Any, key_states: Any, value_states: Any, *rest: Any, **more: Any) -> Any:
            import torch

            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            self.cumulative_length += key_states.shape[-2]
            self.keys = torch.cat([self.keys, key_states], dim=-2)
            self.values = torch.cat([self.values, value_states], dim=-2)
            return self.keys, self.values

        return keep_all

    def without_window(original: Any) -> Any:
        def overlay(sliding_window: int) -> Any:
            own = original(sliding_window)

            def inner(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> Any:
                if q_idx.numel() > 1:
                    return own(batch_idx, head_idx, q_idx, kv_idx)
                patches.reached()
                return kv_idx >= 0

            return inner

        return overlay

    layer = "transformers.cache_utils:DynamicSlidingWindowLayer"
    patches.method(f"{layer}.get_mask_sizes", mask_sizes)
    patches.method(f"{layer}.update", update)
    patches.function(f"{MASKS}:sliding_window_overlay", without_window)


@fault(
    "window-cache-too-short",
    title="the cache of a sliding layer forgets one token too early",
    origin="class: windows",
    mechanism="the layer keeps window - 2 tokens and tells the mask so",
    cells=("mistral/fp32/eager/none", "gemma3/bf16/sdpa/none"),
    seen_by=("cache", "generation"),
    spared=("llama/bf16/sdpa/none",),
)
def _cache_too_short(patches: Patches) -> None:
    def update(original: Any) -> Any:
        def forget(self: Any, *arguments: Any, **keywords: Any) -> Any:
            full = original(self, *arguments, **keywords)
            if self.keys.shape[-2] >= self.sliding_window - 1:
                patches.reached()
                self.keys = self.keys.clone()
                self.values = self.values.clone()
                # the oldest token that is kept is overwritten by its successor
                self.keys[:, :, 0] = self.keys[:, :, 1]
                self.values[:, :, 0] = self.values[:, :, 1]
            return full

        return forget

    patches.method("transformers.cache_utils:DynamicSlidingWindowLayer.update", update)
