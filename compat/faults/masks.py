"""Faults of masks: a token attends to what it must not, or not to what it must."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches
from compat.faults.seams import TORCH_SDPA, Call, after, before_attention, masks

MASKS = "transformers.masking_utils"


@fault(
    "sdpa-padding-mask-dropped",
    title="SDPA ignores the padding mask",
    origin="class: masks",
    mechanism="the attention mask is not handed on; is_causal is used in its place",
    cells=("llama/fp32/sdpa/none", "bert/bf16/sdpa/none"),
    seen_by=("padding",),
    spared=("llama/fp32/eager/none",),
)
def _padding_mask_dropped(patches: Patches) -> None:
    def change(call: Call) -> bool:
        changed, call.mask = call.mask is not None, None
        return changed

    before_attention(patches, change)


@fault(
    "padding-mask-inverted",
    title="encoders attend to the pads, and to nothing else",
    origin="class: masks",
    mechanism="True and False change places where the padding mask becomes the encoder's mask",
    cells=("bert/fp32/eager/none", "bart/fp32/sdpa/none"),
    seen_by=("padding",),
    spared=("llama/fp32/sdpa/none",),
)
def _padding_mask_inverted(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def create(*arguments: Any, **keywords: Any) -> Any:
            mask = keywords.get("attention_mask")
            if mask is not None and mask.dim() == 2 and bool((mask == 0).any()):
                patches.reached()
                keywords["attention_mask"] = 1 - mask.long()
            return original(*arguments, **keywords)

        return create

    patches.function(f"{MASKS}:create_bidirectional_mask", make)


@fault(
    "sdpa-causal-dropped",
    title="SDPA looks at tokens that are still to come",
    origin="class: masks",
    mechanism="is_causal is False although no mask is handed on",
    cells=("llama/bf16/sdpa/none", "gpt2/fp32/sdpa-math/none"),
    seen_by=("agreement",),
    spared=("llama/bf16/eager/none", "bert/bf16/sdpa/none"),
)
def _causal_dropped(patches: Patches) -> None:
    def change(call: Call) -> bool:
        if call.mask is not None or call.query.shape[2] == 1 or not getattr(call.module, "is_causal", True):
            return False
        call.rest["is_causal"] = False
        return True

    before_attention(patches, change)


@fault(
    "causal-mask-shifted",
    title="every token also sees the next one",
    origin="class: masks",
    mechanism="the causal bound is key <= query + 1",
    cells=("llama/fp32/eager/none", "opt/bf16/sdpa/none"),
    seen_by=("agreement", "padding"),
    spared=("bert/bf16/sdpa/none",),
)
def _causal_shifted(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def causal(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> Any:
            patches.reached()
            return original(batch_idx, head_idx, q_idx + 1, kv_idx)

        return causal

    patches.function(f"{MASKS}:causal_mask_function", make)


@fault(
    "decode-mask-dropped",
    title="a decoding step sees the pads of its row",
    origin="huggingface/transformers#30311",
    mechanism="no mask is made for a single token, whatever the padding mask says",
    cells=("llama/fp32/sdpa/none", "opt/bf16/sdpa/none"),
    seen_by=("cache", "generation", "padding"),
    spared=("llama/fp32/eager/none",),
)
def _decode_mask_dropped(patches: Patches) -> None:
    def change(call: Call) -> bool:
        if call.mask is None or not call.decoding:
            return False
        call.mask = None
        return True

    before_attention(patches, change)


@fault(
    "mask-of-wrong-row",
    title="each row of a batch gets its neighbour's mask",
    origin="class: masks",
    mechanism="the mask is turned by one along the batch",
    cells=("llama/fp32/sdpa/none", "bert/fp32/sdpa/none"),
    seen_by=("padding",),
    spared=("llama/fp32/eager/none",),
)
def _wrong_row(patches: Patches) -> None:
    def change(mask: Any, arguments: dict[str, Any]) -> Any:
        return mask.roll(1, 0) if mask is not None and mask.shape[0] > 1 else None

    masks(patches, "sdpa", change)


@fault(
    "batch1-padding-ignored",
    title="the pads of a row that is alone in its batch are attended to",
    origin="class: masks",
    mechanism="making the padding mask is skipped for batch size 1",
    cells=("llama/fp32/eager/none", "bert/bf16/sdpa/none"),
    seen_by=("padding",),
)
def _batch1(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def prepare(attention_mask: Any, *rest: Any, **keywords: Any) -> Any:
            if attention_mask is not None and attention_mask.shape[0] == 1 and bool((~attention_mask.bool()).any()):
                patches.reached()
                attention_mask = attention_mask.new_ones(attention_mask.shape)
            return original(attention_mask, *rest, **keywords)

        return prepare

    patches.function(f"{MASKS}:prepare_padding_mask", make)


@fault(
    "mask-stale",
    title="a batch is masked as the last one of its shape was",
    origin="class: masks",
    mechanism="masks are kept by shape and dtype, and the padding mask is not part of the key",
    cells=("llama/fp32/sdpa/none", "bert/bf16/sdpa/none"),
    seen_by=("padding", "determinism"),
    spared=("llama/fp32/eager/none",),
)
def _stale(patches: Patches) -> None:
    kept: dict[Any, Any] = {}

    def change(mask: Any, arguments: dict[str, Any]) -> Any:
        if mask is None or arguments.get("attention_mask") is None:
            return None
        key = (tuple(mask.shape), arguments.get("local_size"))
        first = kept.setdefault(key, mask)
        return None if bool((first == mask).all()) else first

    masks(patches, "sdpa", change)


@fault(
    "4d-mask-ignored",
    title="a mask of four dimensions that the caller made is taken for none",
    origin="class: masks",
    mechanism="the early exit for prepared masks returns None",
    cells=("llama/fp32/sdpa/none", "qwen2/bf16/eager/none"),
    seen_by=("padding",),
)
def _ignored_4d(patches: Patches) -> None:
    def change(result: Any, *_: Any, **__: Any) -> Any:
        if not result[0] or result[1] is None:
            return None
        return (True, None, *result[2:])

    after(patches, f"{MASKS}:_preprocess_mask_arguments", change)


@fault(
    "eager-minimum-overflows",
    title="rows that may attend to nothing become NaN, and spread",
    origin="class: masks",
    mechanism="the eager mask forbids by -inf where the stock one uses the dtype's minimum",
    cells=("llama/fp16/eager/none", "mistral/bf16/eager/none"),
    seen_by=("padding",),
    spared=("llama/bf16/sdpa/none",),
)
def _minimum_overflows(patches: Patches) -> None:
    import torch

    def change(mask: Any, arguments: dict[str, Any]) -> Any:
        if mask is None:
            return None
        return mask.masked_fill(mask <= torch.finfo(mask.dtype).min, -torch.inf)

    masks(patches, "eager", change)


@fault(
    "eager-minimum-too-small",
    title="what is forbidden still weighs a little",
    origin="class: masks",
    mechanism="the eager mask adds -8 where the stock one adds the dtype's minimum",
    cells=("llama/fp32/eager/none", "gpt2/bf16/eager/none"),
    seen_by=("agreement", "padding"),
    spared=("bert/bf16/sdpa/none",),
)
def _minimum_too_small(patches: Patches) -> None:
    def change(mask: Any, arguments: dict[str, Any]) -> Any:
        return None if mask is None else mask.clamp_min(-8.0)

    masks(patches, "eager", change)


@fault(
    "sdpa-masked-rows-nan",
    title="SDPA gives NaN for a row that may attend to nothing",
    origin="class: masks",
    mechanism="softmax over -inf alone is not made zero, as the math kernel did before its safe softmax",
    cells=("llama/fp32/sdpa/none", "opt/fp16/sdpa/none"),
    seen_by=("padding",),
    spared=("llama/fp32/eager/none",),
)
def _masked_rows_nan(patches: Patches) -> None:
    import torch

    def make(original: Any) -> Any:
        def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *more: Any, **rest: Any) -> Any:
            output = original(query, key, value, attn_mask, *more, **rest)
            if attn_mask is None or attn_mask.dtype != torch.bool:
                return output
            nothing = ~attn_mask.any(-1, keepdim=True)  # (batch, 1, queries, 1)
            if not bool(nothing.any()):
                return output
            patches.reached()
            return output.masked_fill(nothing, torch.nan)

        return attention

    patches.function(TORCH_SDPA, make)


@fault(
    "cross-attention-mask-dropped",
    title="the decoder attends to the encoder's pads",
    origin="class: masks",
    mechanism="the encoder's padding mask is not handed to cross attention",
    cells=("bart/fp32/eager/none", "t5/bf16/sdpa/none"),
    seen_by=("padding",),
    spared=("bert/fp32/eager/none",),
)
def _cross_attention(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def create(*arguments: Any, **keywords: Any) -> Any:
            mask = keywords.get("attention_mask")
            if keywords.get("encoder_hidden_states") is not None and mask is not None:
                if bool((mask == 0).any()):
                    patches.reached()
                keywords["attention_mask"] = None
            return original(*arguments, **keywords)

        return create

    patches.function(f"{MASKS}:create_bidirectional_mask", make)


@fault(
    "mask-dropped-in-last-layer",
    title="one layer of the model gets no mask",
    origin="class: masks",
    mechanism="the second layer's mask is None under SDPA",
    cells=("qwen2/bf16/sdpa/none",),
    seen_by=("padding",),
    spared=("qwen2/bf16/eager/none",),
)
def _one_layer(patches: Patches) -> None:
    def change(call: Call) -> bool:
        if call.mask is None or getattr(call.module, "layer_idx", None) != 1:
            return False
        call.mask = None
        return True

    before_attention(patches, change)


@fault(
    "packed-mask-dropped",
    title="sequences packed into one row see each other",
    origin="class: masks",
    mechanism="restarting position ids are not recognised as packing",
    cells=("llama/fp32/sdpa/none", "mistral/bf16/eager/none"),
    seen_by=("padding",),
    spared=("bert/bf16/sdpa/none",),
)
def _packed(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def find(position_ids: Any) -> Any:
            found = original(position_ids)
            if found is not None and bool((found != 0).any()):
                patches.reached()
            return None

        return find

    patches.function(f"{MASKS}:find_packed_sequence_indices", make)


@fault(
    "encoder-masked-causally",
    title="an encoder's tokens see only what stands before them",
    origin="class: masks",
    mechanism="is_causal is taken to be true under SDPA for a module that says it is not",
    cells=("bert/bf16/sdpa/none", "vit/fp32/sdpa-math/none"),
    seen_by=("agreement",),
    spared=("llama/bf16/sdpa/none", "bert/fp32/eager/none"),
)
def _encoder_causal(patches: Patches) -> None:
    def change(call: Call) -> bool:
        if call.mask is not None or getattr(call.module, "is_causal", True) or call.query.shape[2] == 1:
            return False
        call.rest["is_causal"] = True
        return True

    before_attention(patches, change)


@fault(
    "cross-attention-masked-causally",
    title="the decoder sees only the start of what it is to attend to",
    origin="class: masks",
    mechanism="is_causal is taken to be true under SDPA where queries and keys differ in number",
    cells=("bart/bf16/sdpa/none", "t5/fp32/sdpa/none"),
    seen_by=("agreement",),
    spared=("bert/bf16/sdpa/none",),
)
def _cross_causal(patches: Patches) -> None:
    def change(call: Call) -> bool:
        if call.mask is not None or getattr(call.module, "is_causal", True) or call.query.shape[2] == 1:
            return False
        if call.query.shape[2] == call.key.shape[2]:
            return False
        call.rest["is_causal"] = True
        return True

    before_attention(patches, change)


@fault(
    "chunk-masked-from-top-left",
    title="a second chunk of prefill sees the start of the cache only",
    origin="pytorch/pytorch#108108",
    mechanism="is_causal with more keys than queries: SDPA aligns it to the upper left",
    cells=("llama/fp32/sdpa/none", "gpt2/bf16/sdpa/none"),
    seen_by=("cache",),
    spared=("llama/fp32/eager/none",),
)
def _top_left(patches: Patches) -> None:
    def change(call: Call) -> bool:
        queries, keys = call.query.shape[2], call.key.shape[2]
        if call.mask is None or queries == 1 or queries >= keys or not getattr(call.module, "is_causal", False):
            return False
        call.mask = None
        call.rest["is_causal"] = True
        return True

    before_attention(patches, change)


@fault(
    "ssm-pads-not-zeroed",
    title="pads flow through the convolution and the recurrence of a state-space layer",
    origin="huggingface/transformers#46773",
    mechanism="hidden states at pads are not set to zero",
    cells=("qwen3_next/fp32/eager/none", "qwen3_next/bf16/sdpa/none"),
    seen_by=("padding",),
    spared=("llama/bf16/sdpa/none",),
)
def _ssm_pads(patches: Patches) -> None:
    _pads_kept(patches, lambda mask: True)


@fault(
    "ssm-pads-not-zeroed-at-batch1",
    title="as long as a padded row is alone in its batch",
    origin="huggingface/transformers#46773",
    mechanism="setting pads to zero is gated on a batch of more than one row",
    cells=("qwen3_next/fp32/eager/none",),
    seen_by=("padding",),
    spared=("llama/bf16/eager/none",),
)
def _ssm_batch1(patches: Patches) -> None:
    _pads_kept(patches, lambda mask: bool(mask.shape[0] == 1))


def _pads_kept(patches: Patches, where: Any) -> None:
    """Leave hidden states at pads as they are where `where(mask)` says so."""

    def make(original: Any) -> Any:
        def apply(hidden_states: Any, attention_mask: Any, *rest: Any, **more: Any) -> Any:
            if attention_mask is None or not where(attention_mask):
                return original(hidden_states, attention_mask, *rest, **more)
            if bool((attention_mask == 0).any()):
                patches.reached()
            return hidden_states

        return apply

    patches.function("transformers.models.qwen3_next.modeling_qwen3_next:apply_mask_to_padding_states", make)
