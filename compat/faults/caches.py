"""Faults of caches: what a step finds is not what earlier steps left there."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches

CACHES = "transformers.cache_utils"
MASKS = "transformers.masking_utils"
GENERATE = "transformers.generation.utils:GenerationMixin"


# -- crop --------------------------------------------------------------------------------------------------------


@fault(
    "cache-crop-keeps-rejected",
    title="rolling a cache back keeps a rejected token in place of the last good one",
    origin="huggingface/transformers#46629",
    mechanism="the last slot that stays is taken from one position later",
    cells=("llama/fp32/sdpa/none", "opt/bf16/eager/none"),
    seen_by=("cache",),
    spared=("bert/fp32/sdpa/none",),
)
def _crop_keeps_rejected(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def crop(layer: Any, tokens_to_remove: int) -> None:
            left = layer.keys.shape[-2] + tokens_to_remove if layer.is_initialized else 0
            if tokens_to_remove >= 0 or left < 2:
                original(layer, tokens_to_remove)
                return
            patches.reached()
            kept = [*range(left - 1), left]
            layer.keys, layer.values = layer.keys[..., kept, :], layer.values[..., kept, :]

        return crop

    patches.method(f"{CACHES}:DynamicLayer.crop", make)


@fault(
    "cache-crop-one-short",
    title="rolling a cache back leaves one token too many",
    origin="class: caches",
    mechanism="one token less than asked for is removed when there are several",
    cells=("gpt2/bf16/sdpa/none",),
    seen_by=("cache",),
    spared=("bert/fp32/sdpa/none",),
)
def _crop_one_short(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def crop(layer: Any, tokens_to_remove: int) -> None:
            if tokens_to_remove < -1:
                patches.reached()
                tokens_to_remove += 1
            original(layer, tokens_to_remove)

        return crop

    patches.method(f"{CACHES}:DynamicLayer.crop", make)


@fault(
    "window-crop-shifted",
    title="rolling back a window that is full moves it by one token",
    origin="class: caches",
    mechanism="a sliding layer that recorded its past keeps window - 1 tokens that end one too early",
    cells=("mistral/fp32/sdpa/none", "gemma3/bf16/eager/none"),
    seen_by=("cache",),
    spared=("llama/fp32/sdpa/none",),
)
def _window_crop_shifted(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def crop(layer: Any, tokens_to_remove: int) -> None:
            full = layer.get_seq_length() >= layer.sliding_window
            if not (full and tokens_to_remove < 0):
                original(layer, tokens_to_remove)
                return
            patches.reached()
            keys, values = layer.keys, layer.values
            original(layer, tokens_to_remove)
            stop = keys.shape[-2] + tokens_to_remove - 1
            start = max(0, stop - layer.keys.shape[-2])
            layer.keys, layer.values = keys[..., start:stop, :], values[..., start:stop, :]

        return crop

    patches.method(f"{CACHES}:DynamicSlidingWindowLayer.crop", make)


# -- rows --------------------------------------------------------------------------------------------------------


@fault(
    "cache-reorder-keys-only",
    title="beams change places with their keys and leave their values behind",
    origin="class: caches",
    mechanism="reorder_cache selects rows of the keys alone",
    cells=("llama/bf16/eager/none", "bart/fp32/sdpa/none"),
    seen_by=("cache",),
    spared=("bert/fp32/sdpa/none",),
)
def _reorder_keys_only(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def reorder(layer: Any, beam_idx: Any) -> None:
            values = layer.values
            original(layer, beam_idx)
            if values is not None and values.shape == layer.values.shape and not bool((layer.values == values).all()):
                patches.reached()
                layer.values = values

        return reorder

    patches.method(f"{CACHES}:CacheLayerMixin.reorder_cache", make)


@fault(
    "cross-cache-not-reordered",
    title="beams of an encoder-decoder model look at the encoder's output of other rows",
    origin="class: caches",
    mechanism="reorder_cache leaves the cross-attention's cache as it was",
    cells=("t5/fp32/eager/none", "bart/bf16/sdpa/none"),
    seen_by=("cache",),
    spared=("llama/fp32/sdpa/none",),
)
def _cross_not_reordered(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def reorder(cache: Any, beam_idx: Any) -> None:
            patches.reached()
            cache.self_attention_cache.reorder_cache(beam_idx)

        return reorder

    patches.method(f"{CACHES}:EncoderDecoderCache.reorder_cache", make)


@fault(
    "cross-cache-recomputed",
    title="keys and values of the cross-attention are made again in every step",
    origin="class: caches",
    mechanism="the flag that they are there is never found set; what the step's encoder output gives replaces them",
    cells=("bart/fp32/eager/none", "t5/bf16/sdpa/none"),
    seen_by=("cache",),
    spared=("llama/fp32/sdpa/none",),
)
def _cross_recomputed(patches: Patches) -> None:
    class Forgetful(dict[int, bool]):
        """Says that no layer has been updated, and empties the layer that asks."""

        def __init__(self, cache: Any) -> None:
            super().__init__()
            self.cache = cache

        def get(self, layer: int, default: Any = None) -> bool:
            if super().get(layer):
                patches.reached()
                self.cache.cross_attention_cache.layers[layer].reset()
            return False

    def make(original: Any) -> Any:
        def init(cache: Any, *caches: Any) -> None:
            original(cache, *caches)
            cache.is_updated = Forgetful(cache)

        return init

    patches.method(f"{CACHES}:EncoderDecoderCache.__init__", make)


@fault(
    "cache-select-first-rows",
    title="selecting rows of a cache keeps the first ones",
    origin="class: caches",
    mechanism="as many rows as were asked for, from the front",
    cells=("llama/fp32/eager/none",),
    seen_by=("cache",),
    spared=("bert/fp32/sdpa/none",),
)
def _select_first_rows(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def select(layer: Any, indices: Any) -> None:
            patches.reached()
            layer.keys, layer.values = layer.keys[: len(indices)], layer.values[: len(indices)]

        return select

    patches.method(f"{CACHES}:DynamicLayer.batch_select_indices", make)


@fault(
    "cache-repeat-tiled",
    title="repeating rows of a cache puts the copies in the wrong order",
    origin="class: caches",
    mechanism="the batch is tiled instead of interleaved",
    cells=("qwen2/bf16/sdpa/none",),
    seen_by=("cache",),
    spared=("bert/fp32/sdpa/none",),
)
def _repeat_tiled(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def repeat(layer: Any, repeats: int) -> None:
            patches.reached()
            layer.keys = layer.keys.repeat(repeats, 1, 1, 1)
            layer.values = layer.values.repeat(repeats, 1, 1, 1)

        return repeat

    patches.method(f"{CACHES}:DynamicLayer.batch_repeat_interleave", make)


# -- state that stays or is shared -------------------------------------------------------------------------------


@fault(
    "static-cache-not-reset",
    title="a static cache that is used again begins at its second slot",
    origin="class: caches",
    mechanism="reset leaves the length at one",
    cells=("llama/fp32/sdpa/none", "gpt2/bf16/eager/none"),
    seen_by=("cache",),
    spared=("bert/fp32/sdpa/none",),
)
def _static_not_reset(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def reset(layer: Any) -> None:
            original(layer)
            if type(layer).__name__ == "StaticLayer" and layer.is_initialized:
                patches.reached()
                layer.cumulative_length.add_(1)

        return reset

    patches.method(f"{CACHES}:CacheLayerMixin.reset", make)


@fault(
    "cache-copy-shares-layers",
    title="a copied cache grows with the cache that it was copied from",
    origin="class: caches",
    mechanism="deepcopy of a dynamic cache copies the container and shares the layers",
    cells=("llama/bf16/sdpa/none",),
    seen_by=("cache",),
    spared=("bert/fp32/sdpa/none",),
)
def _copy_shares_layers(patches: Patches) -> None:
    import copy

    from transformers.cache_utils import DynamicCache

    def shallow(cache: Any, memo: Any) -> Any:
        patches.reached()
        return copy.copy(cache)

    patches.attribute(DynamicCache, "__deepcopy__", shallow)


@fault(
    "cache-mask-stale",
    title="a mask is kept from an earlier call with the same shapes",
    origin="class: caches",
    mechanism="masks of single steps are kept by batch and number of keys, whatever the pads are",
    cells=("llama/fp32/eager/none", "qwen2/bf16/sdpa/none"),
    seen_by=("cache",),
    spared=("bert/fp32/sdpa/none",),
)
def _mask_stale(patches: Patches) -> None:
    def make(original: Any) -> Any:
        kept: dict[Any, Any] = {}

        def create(*arguments: Any, **keywords: Any) -> Any:
            mask, embeddings = keywords.get("attention_mask"), keywords.get("inputs_embeds")
            if mask is None or embeddings is None or mask.dim() != 2 or embeddings.shape[1] != 1:
                return original(*arguments, **keywords)
            config = keywords.get("config") or arguments[0]
            key = (*mask.shape, embeddings.dtype, config._attn_implementation)
            if key in kept and not bool((kept[key][0] == mask).all()):
                patches.reached()
            kept.setdefault(key, (mask.clone(), original(*arguments, **keywords)))
            return kept[key][1]

        return create

    patches.function(f"{MASKS}:create_causal_mask", make)


# -- slots and windows -------------------------------------------------------------------------------------------


@fault(
    "static-cache-slot-late",
    title="single tokens go into a static cache one slot too late",
    origin="class: caches",
    mechanism="the length is advanced before it is used as the index; the slot between stays empty and is attended to",
    cells=("llama/bf16/eager/none", "gpt_neox/fp32/sdpa/none"),
    seen_by=("cache",),
    spared=("bert/fp32/sdpa/none",),
)
def _static_slot_late(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def update(layer: Any, keys: Any, values: Any, *rest: Any, **keywords: Any) -> Any:
            at = int(layer.cumulative_length)
            back = original(layer, keys, values, *rest, **keywords)
            if keys.shape[-2] == 1 and 0 < at < layer.max_cache_len - 1:
                patches.reached()
                for held in (layer.keys, layer.values):
                    held[:, :, at + 1] = held[:, :, at]
                    held[:, :, at] = 0
            return back

        return update

    patches.method(f"{CACHES}:StaticLayer.update", make)


@fault(
    "window-cache-one-short",
    title="once a window is full, decoding sees one token less than it should",
    origin="class: caches",
    mechanism="the sliding layer holds window - 2 tokens beside the new one, and says so to the mask",
    cells=("mistral/bf16/sdpa/none", "gemma2/fp32/eager/none"),
    seen_by=("cache",),
    spared=("llama/fp32/sdpa/none",),
)
def _window_one_short(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def init(layer: Any, sliding_window: int, **keywords: Any) -> None:
            patches.reached()
            original(layer, sliding_window=sliding_window - 1, **keywords)

        return init

    patches.method(f"{CACHES}:DynamicSlidingWindowLayer.__init__", make)


@fault(
    "static-window-rolls-wrong",
    title="a full static window throws out its second oldest token",
    origin="class: caches",
    mechanism="the oldest token stays in its slot while the others roll",
    cells=("mistral/fp32/eager/none",),
    seen_by=("cache",),
    spared=("llama/fp32/sdpa/none",),
)
def _static_window_rolls_wrong(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def update(layer: Any, keys: Any, values: Any, *rest: Any, **keywords: Any) -> Any:
            full = layer.is_initialized and layer.cumulative_length_int >= layer.max_cache_len
            oldest = (layer.keys[:, :, :1].clone(), layer.values[:, :, :1].clone()) if full else None
            back = original(layer, keys, values, *rest, **keywords)
            if oldest is not None and keys.shape[-2] == 1:
                patches.reached()
                layer.keys[:, :, :1], layer.values[:, :, :1] = oldest
            return back

        return update

    patches.method(f"{CACHES}:StaticSlidingWindowLayer.update", make)


@fault(
    "window-cache-grows",
    title="layers with a window keep every token",
    origin="class: caches",
    mechanism="the sliding layer records its past although nobody will roll it back: memory, not results",
    cells=("mistral/bf16/sdpa/none",),
    seen_by=("cache",),
    spared=("llama/fp32/sdpa/none",),
)
def _window_grows(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def init(layer: Any, *arguments: Any, **keywords: Any) -> None:
            original(layer, *arguments, **keywords)
            patches.reached()
            layer.record_past = True

        return init

    patches.method(f"{CACHES}:DynamicSlidingWindowLayer.__init__", make)


@fault(
    "static-unused-slots-seen",
    title="single steps attend to the empty slots of a static cache",
    origin="class: caches",
    mechanism="for one query the causal mask is taken to be unnecessary, and the mask of the pads does not reach there",
    cells=("llama/fp32/sdpa/none", "phi3/bf16/eager/none"),
    seen_by=("cache",),
    spared=("bert/fp32/sdpa/none",),
)
def _unused_slots_seen(patches: Patches) -> None:
    from torch.nn import functional
    from transformers.masking_utils import bidirectional_mask_function

    def make(original: Any) -> Any:
        def mask(*arguments: Any, **keywords: Any) -> Any:
            offset, pads = keywords.get("q_offset"), keywords.get("attention_mask")
            if keywords.get("q_length") == 1 and hasattr(offset, "numel") and pads is not None:
                patches.reached()
                keywords["mask_function"] = bidirectional_mask_function
                unused = max(0, keywords["kv_length"] - pads.shape[-1])
                keywords["attention_mask"] = functional.pad(pads, (0, unused), value=True)
            return original(*arguments, **keywords)

        return mask

    patches.function(f"{MASKS}:sdpa_mask", make)


@fault(
    "chunk-mask-top-left",
    title="a chunk attends as if it stood at the beginning of the sequence",
    origin="class: caches",
    mechanism="the mask is skipped for several queries with more keys; is_causal aligns the first query and first key",
    cells=("llama/bf16/sdpa/none", "qwen3/fp32/sdpa-math/none"),
    seen_by=("cache",),
    spared=("llama/fp32/eager/none",),
)
def _chunk_top_left(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def ignore(padding_mask: Any, q_length: int, kv_length: int, *rest: Any, **keywords: Any) -> bool:
            if 1 < q_length < kv_length and (padding_mask is None or bool(padding_mask.all())):
                patches.reached()
                return True
            return bool(original(padding_mask, q_length, kv_length, *rest, **keywords))

        return ignore

    patches.function(f"{MASKS}:_ignore_causal_mask_sdpa", make)


# -- what is stored ----------------------------------------------------------------------------------------------


@fault(
    "cache-values-in-fp8",
    title="values are stored with three bits of mantissa",
    origin="class: caches",
    mechanism="values go through float8_e4m3fn on their way into a dynamic cache",
    cells=("llama/bf16/sdpa/none", "t5/fp32/eager/none"),
    seen_by=("cache",),
    spared=("bert/fp32/sdpa/none",),
)
def _values_in_fp8(patches: Patches) -> None:
    import torch

    def make(original: Any) -> Any:
        def update(layer: Any, keys: Any, values: Any, *rest: Any, **keywords: Any) -> Any:
            patches.reached()
            low = values.clamp(-448, 448).to(torch.float8_e4m3fn).to(values.dtype)
            return original(layer, keys, low, *rest, **keywords)

        return update

    patches.method(f"{CACHES}:DynamicLayer.update", make)


@fault(
    "cache-held-in-fp32",
    title="a cache takes twice the memory that its dtype asks for",
    origin="class: caches",
    mechanism="keys and values are stored in fp32 and cast back for each step: memory, not results",
    cells=("llama/bf16/eager/none",),
    seen_by=("cache",),
    spared=("llama/fp32/eager/none",),
)
def _held_in_fp32(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def update(layer: Any, keys: Any, values: Any, *rest: Any, **keywords: Any) -> Any:
            if keys.element_size() != 2:
                return original(layer, keys, values, *rest, **keywords)
            patches.reached()
            back = original(layer, keys.float(), values.float(), *rest, **keywords)
            return back[0].to(keys.dtype), back[1].to(values.dtype)

        return update

    patches.method(f"{CACHES}:DynamicLayer.update", make)


@fault(
    "fp8-cache-scale-of-step",
    title="a quantized cache reads later tokens with the scale of the first ones",
    origin="class: caches",
    mechanism="each step is quantized with a scale of its own, which is not kept",
    cells=("llama/fp32/eager/none",),
    seen_by=("cache",),
    spared=("mistral/bf16/sdpa/none",),
)
def _fp8_scale_of_step(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def quantize(layer: Any, tensor: Any, scale: Any = None) -> Any:
            if scale is None:
                return original(layer, tensor)
            patches.reached()
            return original(layer, tensor)[0], scale

        return quantize

    patches.method(f"{CACHES}:Fp8QuantizedLayer._quantize", make)


# -- generate with a cache ---------------------------------------------------------------------------------------


@fault(
    "second-turn-fed-twice",
    title="the second turn of a chat feeds a token that the cache holds already",
    origin="class: caches",
    mechanism="one token too many is taken from the end of the prompt when generation goes on from a cache",
    cells=("llama/bf16/sdpa/none",),
    seen_by=("cache",),
    spared=("bert/fp32/sdpa/none",),
)
def _second_turn_twice(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def prepare(
            model: Any, input_ids: Any, next_sequence_length: Any = None, past_key_values: Any = None, **rest: Any
        ) -> Any:
            held = past_key_values.get_seq_length() if past_key_values is not None else 0
            if rest.get("is_first_iteration") and next_sequence_length is not None and int(held) > 0:
                patches.reached()
                next_sequence_length += 1
            return original(
                model, input_ids, next_sequence_length=next_sequence_length, past_key_values=past_key_values, **rest
            )

        return prepare

    patches.method(f"{GENERATE}.prepare_inputs_for_generation", make)


@fault(
    "prefill-chunk-positions-restart",
    title="each chunk of a long prompt is read as if it stood at the beginning",
    origin="class: caches",
    mechanism="position ids of a chunk start at zero when generate prefills in chunks",
    cells=("qwen2/fp32/sdpa/none", "gpt2/bf16/eager/none"),
    seen_by=("cache",),
    spared=("bert/fp32/sdpa/none",),
)
def _chunk_positions_restart(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def prepare(model: Any, input_ids: Any, **rest: Any) -> Any:
            inputs = original(model, input_ids, **rest)
            positions, past = inputs.get("position_ids"), rest.get("past_key_values")
            chunk = rest.get("next_sequence_length") is None and past is not None and int(past.get_seq_length()) > 0
            if rest.get("is_first_iteration") and chunk and positions is not None:
                patches.reached()
                inputs["position_ids"] = positions - positions[:, :1]
            return inputs

        return prepare

    patches.method(f"{GENERATE}.prepare_inputs_for_generation", make)


@fault(
    "draft-positions-late",
    title="drafted tokens are checked at positions one too far",
    origin="class: caches",
    mechanism="position ids of candidates go on from the length instead of the last position",
    cells=("gpt2/fp32/sdpa/none", "llama/bf16/eager/none"),
    seen_by=("cache",),
    spared=("bert/fp32/sdpa/none",),
)
def _draft_positions_late(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def prepare(keywords: Any, new_length: int, *rest: Any) -> Any:
            before = keywords["position_ids"].shape[-1]
            keywords = original(keywords, new_length, *rest)
            if new_length > before:
                patches.reached()
                positions = keywords["position_ids"].clone()
                positions[..., before:] += 1
                keywords["position_ids"] = positions
            return keywords

        return prepare

    patches.function("transformers.generation.candidate_generator:_prepare_position_ids", make)


# -- prompts at the edges of blocks -------------------------------------------------------------------------------


@fault(
    "window-of-long-batched-prompt",
    title="of a batch whose prompt is longer than the window, other tokens are kept",
    origin="class: caches",
    mechanism="a sliding layer keeps the window that ends one token too early; one row alone is right",
    cells=("mistral/fp32/sdpa/none", "gemma3/bf16/eager/none"),
    seen_by=("cache",),
    spared=("llama/fp32/sdpa/none",),
)
def _window_of_long_prompt(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def update(layer: Any, keys: Any, values: Any, *arguments: Any, **keywords: Any) -> Any:
            fresh, window = layer.get_seq_length() == 0, layer.sliding_window
            found = original(layer, keys, values, *arguments, **keywords)
            if fresh and keys.shape[-2] > window and keys.shape[0] > 1:
                patches.reached()
                layer.keys, layer.values = keys[:, :, -window:-1], values[:, :, -window:-1]
            return found

        return update

    patches.method("transformers.cache_utils:DynamicSlidingWindowLayer.update", make)


@fault(
    "static-cache-not-reordered",
    title="beams change places, a static cache does not",
    origin="class: caches",
    mechanism="reorder_cache of a static layer does nothing",
    cells=("llama/fp32/sdpa/none", "gpt2/bf16/eager/none"),
    seen_by=("cache",),
    spared=("bert/fp32/sdpa/none",),
)
def _static_not_reordered(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def reorder_cache(layer: Any, order: Any) -> None:
            if type(layer).__name__.startswith("Static"):
                patches.reached()
            else:
                original(layer, order)

        return reorder_cache

    patches.method("transformers.cache_utils:CacheLayerMixin.reorder_cache", make)


@fault(
    "state-lost-at-block-edge",
    title="a prompt of whole blocks leaves no state behind",
    origin="class: caches",
    mechanism="the recurrent state of the last block is zero when blocks divide the prompt",
    cells=("mamba2/fp32/eager/none", "mamba2/bf16/eager/none"),
    seen_by=("cache",),
    spared=("llama/fp32/eager/none",),
)
def _state_lost(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(mixer: Any, hidden_states: Any, cache_params: Any = None, *rest: Any, **keywords: Any) -> Any:
            tokens = hidden_states.shape[1]
            found = original(mixer, hidden_states, cache_params, *rest, **keywords)
            if cache_params is not None and tokens > 1 and tokens % mixer.chunk_size == 0:
                patches.reached()
                cache_params.layers[mixer.layer_idx].recurrent_states[0].zero_()
            return found

        return forward

    patches.method("transformers.models.mamba2.modeling_mamba2:Mamba2Mixer.forward", make)


@fault(
    "prefill-cache-is-a-view",
    title="the cache of a prefill keeps the whole fused projection alive",
    origin="huggingface/transformers#30860",
    mechanism="the first keys and values are kept as they come, as parts of the tensor of queries, keys and values",
    cells=("phi3/fp32/sdpa/none", "gpt_neox/bf16/eager/none"),
    seen_by=("cache",),
    spared=("llama/fp32/sdpa/none",),
)
def _prefill_is_a_view(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def update(layer: Any, key_states: Any, value_states: Any, *more: Any, **rest: Any) -> Any:
            if type(layer).__name__ != "DynamicLayer" or layer.is_initialized:
                return original(layer, key_states, value_states, *more, **rest)
            if value_states.untyped_storage().nbytes() > value_states.numel() * value_states.element_size():
                patches.reached()
            layer.lazy_initialization(key_states, value_states)
            layer.keys, layer.values = key_states, value_states
            return key_states, value_states

        return update

    patches.method(f"{CACHES}:DynamicLayer.update", make)


@fault(
    "handed-cache-dropped",
    title="the second turn of a chat computes the first one again",
    origin="class: caches",
    mechanism="generate makes a new cache although one is handed over",
    cells=("llama/fp32/sdpa/none", "opt/bf16/sdpa/none"),
    seen_by=("cache",),
    spared=("bert/fp32/sdpa/none",),
)
def _handed_cache(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def generate(self: Any, *arguments: Any, **keywords: Any) -> Any:
            if keywords.get("past_key_values") is not None:
                patches.reached()
                del keywords["past_key_values"]
            return original(self, *arguments, **keywords)

        return generate

    patches.method(f"{GENERATE}.generate", make)
