"""Faults of rows: what is decided for one row of a batch, or for one text of a row, is taken from another."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches

MASKS = "transformers.masking_utils"


@fault(
    "packing-seen-in-first-row",
    title="texts packed in one row see each other when the first row of the batch is one text",
    origin="huggingface/transformers#39310",
    mechanism="whether rows are packed is read off row 0",
    cells=("llama/fp32/sdpa/none", "qwen2/bf16/eager/none"),
    seen_by=("padding",),
    spared=("bert/fp32/sdpa/none",),
)
def _first_row(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def find(position_ids: Any) -> Any:
            found = original(position_ids)
            if found is None or len(found) == 1 or bool(found[0].any()):
                return found
            patches.reached()
            return None

        return find

    patches.function(f"{MASKS}:find_packed_sequence_indices", make)


@fault(
    "third-text-joins-second",
    title="of three texts in a row the third sees the second",
    origin="huggingface/transformers#39194",
    mechanism="only the first boundary counts",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("padding",),
    spared=("bert/fp32/sdpa/none",),
)
def _third_text(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def find(position_ids: Any) -> Any:
            found = original(position_ids)
            if found is not None and int(found.max()) > 1:
                patches.reached()
                found = found.clamp_max(1)
            return found

        return find

    patches.function(f"{MASKS}:find_packed_sequence_indices", make)


@fault(
    "holes-unmasked",
    title="masked tokens in the middle of a row are attended to",
    origin="huggingface/transformers#32348",
    mechanism="whether a mask is needed is read off the first and last column",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("padding",),
    spared=("llama/fp32/eager/none",),
)
def _holes(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def ignore(padding_mask: Any, *arguments: Any, **keywords: Any) -> Any:
            if padding_mask is not None and not bool(padding_mask.all()) and bool(padding_mask[:, [0, -1]].all()):
                patches.reached()
                padding_mask = None
            return original(padding_mask, *arguments, **keywords)

        return ignore

    patches.function(f"{MASKS}:_ignore_causal_mask_sdpa", make)


@fault(
    "class-from-last-column",
    title="the class of a text padded on the right is read off a pad",
    origin="class: heads",
    mechanism="the last column in place of the last token that is no pad",
    cells=("llama/fp32/eager/none",),
    seen_by=("padding",),
    spared=("bert/fp32/sdpa/none",),
)
def _last_column(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(self: Any, input_ids: Any = None, *arguments: Any, **keywords: Any) -> Any:
            if input_ids is None or not bool((input_ids[:, -1] == self.config.pad_token_id).any()):
                return original(self, input_ids, *arguments, **keywords)
            patches.reached()
            kept, self.config.pad_token_id = self.config.pad_token_id, -1
            try:
                return original(self, input_ids, *arguments, **keywords)
            finally:
                self.config.pad_token_id = kept

        return forward

    patches.method("transformers.modeling_layers:GenericForSequenceClassification.forward", make)


@fault(
    "decoder-mask-ignored",
    title="the decoder of an encoder-decoder attends to tokens that its own mask hides",
    origin="class: masks",
    mechanism="decoder_attention_mask is dropped",
    cells=("t5/fp32/eager/none", "bart/fp32/sdpa/none"),
    seen_by=("padding",),
    spared=("llama/fp32/sdpa/none",),
)
def _decoder_mask(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(self: Any, *arguments: Any, **keywords: Any) -> Any:
            mask = keywords.get("attention_mask")
            if keywords.get("encoder_hidden_states") is not None and mask is not None and not bool(mask.all()):
                patches.reached()
                keywords["attention_mask"] = None
            return original(self, *arguments, **keywords)

        return forward

    patches.method("transformers.models.bart.modeling_bart:BartDecoder.forward", make)
    patches.method("transformers.models.t5.modeling_t5:T5Stack.forward", make)


@fault(
    "given-positions-ignored",
    title="position ids that are handed over are not looked at",
    origin="class: positions",
    mechanism="each token gets the position of the column that it stands in",
    cells=("bert/fp32/sdpa/none",),
    seen_by=("padding",),
    spared=("llama/fp32/eager/none",),
)
def _given_positions(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(self: Any, *arguments: Any, **keywords: Any) -> Any:
            if keywords.get("position_ids") is not None:
                patches.reached()
                keywords["position_ids"] = None
            return original(self, *arguments, **keywords)

        return forward

    patches.method("transformers.models.bert.modeling_bert:BertEmbeddings.forward", make)
