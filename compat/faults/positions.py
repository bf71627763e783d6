"""Faults of positions: a token that takes itself, or others, to be elsewhere."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches
from compat.faults.seams import after

LLAMA = "transformers.models.llama.modeling_llama"
GPT2 = "transformers.models.gpt2.modeling_gpt2"
GENERATION = "transformers.generation.utils:GenerationMixin"


def _positions_changed(patches: Patches, path: str, change: Any) -> None:
    """Let `change(self, arguments)` replace `position_ids` among the keywords of the forward at `path`; it returns
    the new ones, or None. `arguments` holds what was given, `past` the number of tokens in the cache, `length` the
    number of new ones."""

    def make(original: Any) -> Any:
        def forward(self: Any, input_ids: Any = None, **keywords: Any) -> Any:
            past = keywords.get("past_key_values")
            given: Any = keywords.get("inputs_embeds") if input_ids is None else input_ids
            changed = change(
                keywords.get("position_ids"),
                0 if past is None else int(past.get_seq_length()),
                int(given.shape[1]),
                given.device,
            )
            if changed is not None:
                patches.reached()
                keywords["position_ids"] = changed
            return original(self, input_ids=input_ids, **keywords)

        return forward

    patches.method(path, make)


@fault(
    "decode-positions-from-cache-length",
    title="padded rows jump ahead by their pads after prefill",
    origin="unslothai/unsloth#3699",
    mechanism="a decoding step's position is the cache's length, shared by the whole batch",
    cells=("llama/fp32/eager/none", "gpt2/bf16/sdpa/none"),
    seen_by=("generation", "cache", "padding"),
    spared=("bert/bf16/sdpa/none",),
)
def _from_cache_length(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def update(self: Any, *arguments: Any, **keywords: Any) -> Any:
            import torch

            updated = original(self, *arguments, **keywords)
            mask, positions = updated.get("attention_mask"), updated.get("position_ids")
            if mask is None or positions is None or mask.dim() != 2 or bool(mask.all()):
                return updated
            patches.reached()
            positions = positions.clone()
            length = mask.shape[1]
            positions[:, -1:] = torch.arange(length - 1, length, device=positions.device)
            return updated | {"position_ids": positions}

        return update

    patches.method(f"{GENERATION}._update_model_kwargs_for_generation", make)


@fault(
    "learned-positions-count-pads",
    title="learned positions are counted from the first pad",
    origin="class: positions",
    mechanism="position ids that the caller made from the mask are replaced by 0, 1, 2, ...",
    cells=("gpt2/fp32/eager/none", "opt/bf16/sdpa/none"),
    seen_by=("padding", "generation"),
    spared=("bert/bf16/sdpa/none",),
)
def _count_pads(patches: Patches) -> None:
    import torch

    def change(positions: Any, past: int, length: int, device: Any) -> Any:
        plain = torch.arange(past, past + length, device=device)[None]
        if positions is None or positions.shape[-1] != length or bool((positions == plain).all()):
            return None
        return plain.expand(positions.shape[0], -1)

    _positions_changed(patches, f"{GPT2}:GPT2Model.forward", change)
    _positions_changed(patches, "transformers.models.opt.modeling_opt:OPTDecoder.forward", change)


@fault(
    "rotary-interleaved",
    title="rotary pairs neighbours where it is to pair halves",
    origin="class: positions",
    mechanism="dimension 2i turns with 2i+1 instead of i with i+d/2",
    cells=("llama/bf16/eager/none", "llama/fp32/sdpa/none"),
    seen_by=("agreement",),
    spared=("gpt2/bf16/sdpa/none",),
)
def _interleaved(patches: Patches) -> None:
    import torch

    def change(result: Any, x: Any) -> Any:
        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)

    after(patches, f"{LLAMA}:rotate_half", change)


@fault(
    "rotary-base-wrong",
    title="rotary turns with another base than the config's",
    origin="class: positions",
    mechanism="rope_theta is halved when the frequencies are made",
    cells=("llama/bf16/eager/none", "llama/fp32/sdpa/none"),
    seen_by=("agreement",),
    spared=("gpt2/bf16/sdpa/none",),
)
def _base(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def compute(config: Any, **rest: Any) -> Any:
            own = config.rope_parameters["rope_theta"]
            patches.reached()
            config.rope_parameters["rope_theta"] = own / 2
            try:
                return original(config, **rest)
            finally:
                config.rope_parameters["rope_theta"] = own

        return compute

    patches.method(f"{LLAMA}:LlamaRotaryEmbedding.compute_default_rope_parameters", make)


@fault(
    "decode-position-off-by-one",
    title="a token decoded from the cache stands one place too far",
    origin="huggingface/transformers#29075",
    mechanism="the position of a single query is one more than the number of tokens before it",
    cells=("llama/fp32/eager/none", "llama/bf16/sdpa/none"),
    seen_by=("cache", "generation"),
    spared=("gpt2/bf16/sdpa/none",),
)
def _decode_off_by_one(patches: Patches) -> None:
    import torch

    def change(positions: Any, past: int, length: int, device: Any) -> Any:
        if length != 1 or not past:
            return None
        return (torch.full((1, 1), past, device=device) if positions is None else positions) + 1

    _positions_changed(patches, f"{LLAMA}:LlamaModel.forward", change)


@fault(
    "positions-restart-in-chunk",
    title="a second chunk of prefill starts at position 0 again",
    origin="class: positions",
    mechanism="the cache's length is left out when a chunk of several tokens gets its positions",
    cells=("llama/fp32/eager/none", "gpt2/bf16/sdpa/none"),
    seen_by=("cache",),
    spared=("bert/bf16/sdpa/none",),
)
def _restart(patches: Patches) -> None:
    import torch

    def change(positions: Any, past: int, length: int, device: Any) -> Any:
        return torch.arange(length, device=device)[None] if past and length > 1 else None

    _positions_changed(patches, f"{LLAMA}:LlamaModel.forward", change)
    _positions_changed(patches, f"{GPT2}:GPT2Model.forward", change)


@fault(
    "learned-positions-off-by-one",
    title="learned positions start at 1",
    origin="class: positions",
    mechanism="the offset into the table of positions is one too large, on every path alike",
    cells=("gpt2/bf16/eager/none", "bert/fp32/sdpa/none"),
    seen_by=("agreement",),
    spared=("llama/bf16/sdpa/none",),
)
def _off_by_one(patches: Patches) -> None:
    def shifted(original: Any) -> Any:
        def forward(self: Any, *arguments: Any, **keywords: Any) -> Any:
            embedding = self.wpe if hasattr(self, "wpe") else self.position_embeddings
            own = embedding.weight.data
            embedding.weight.data = own.roll(-1, 0)
            patches.reached()
            try:
                return original(self, *arguments, **keywords)
            finally:
                embedding.weight.data = own

        return forward

    patches.method(f"{GPT2}:GPT2Model.forward", shifted)
    patches.method("transformers.models.bert.modeling_bert:BertEmbeddings.forward", shifted)


@fault(
    "rotary-lost-on-keys",
    title="keys are not turned in one layer",
    origin="class: positions",
    mechanism="apply_rotary_pos_emb gives back the keys of every second call as they came",
    cells=("mistral/bf16/eager/none",),
    seen_by=("agreement",),
    spared=("llama/bf16/sdpa/none",),
)
def _lost_on_keys(patches: Patches) -> None:
    calls = [0]

    def change(result: Any, query: Any, key: Any, *_: Any, **__: Any) -> Any:
        calls[0] += 1
        return (result[0], key) if calls[0] % 2 else None

    after(patches, "transformers.models.mistral.modeling_mistral:apply_rotary_pos_emb", change)
