"""Faults of searches and draws: beams, drafts and what a decoder begins with."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches

UTILS = "transformers.generation.utils"
MIXIN = f"{UTILS}:GenerationMixin"
ENCODER = "bert/fp32/sdpa/none"


@fault(
    "beams-never-as-false",
    title="early_stopping='never' stops as False does",
    origin="class: generation",
    mechanism="a beam search ends although longer beams could still win",
    cells=("llama/fp32/sdpa/none", "gpt2/fp32/eager/none"),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _never(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def heuristic(*arguments: Any, **keywords: Any) -> Any:
            if keywords.get("early_stopping") == "never":
                patches.reached()
                keywords["early_stopping"] = False
            return original(*arguments, **keywords)

        return heuristic

    patches.method(f"{MIXIN}._check_early_stop_heuristic", make)


@fault(
    "drawn-beams-are-searched",
    title="beam sampling is beam search",
    origin="class: generation",
    mechanism="continuations are the best ones in place of drawn ones",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _searched(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def continuations(self: Any, *arguments: Any, **keywords: Any) -> Any:
            if keywords.get("do_sample"):
                patches.reached()
                keywords["do_sample"] = False
            return original(self, *arguments, **keywords)

        return continuations

    patches.method(f"{MIXIN}._get_top_k_continuations", make)


@fault(
    "drafts-always-accepted",
    title="drafts that are drawn are all accepted",
    origin="class: generation",
    mechanism="speculative sampling takes every token of the assistant's",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("cache",),
    spared=(ENCODER,),
)
def _accepted(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def sampling(candidates: Any, logits: Any, length: int, new_logits: Any, *arguments: Any, **more: Any) -> Any:
            import torch

            patches.reached()
            last = new_logits[:, length, :].argmax(-1, keepdim=True)
            return torch.cat([candidates[:, -length:], last], -1), torch.tensor(length)

        return sampling

    patches.function(f"{UTILS}:_speculative_sampling", make)


@fault(
    "decoder-begin-cut",
    title="what the decoder is told to begin with is cut to its first token",
    origin="class: generation",
    mechanism="decoder_input_ids keep one column",
    cells=("t5/fp32/sdpa/none", "bart/fp32/eager/none"),
    seen_by=("generation",),
    spared=("llama/fp32/sdpa/none",),
)
def _begin_cut(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def prepare(self: Any, *arguments: Any, **keywords: Any) -> Any:
            ids, more = original(self, *arguments, **keywords)
            if ids.shape[1] > 1:
                patches.reached()
                ids = ids[:, :1]
            return ids, more

        return prepare

    patches.method(f"{MIXIN}._prepare_decoder_input_ids_for_generation", make)


@fault(
    "unnamed-pad-is-zero",
    title="where no token pads, rows that ended are filled with token 0",
    origin="class: generation",
    mechanism="the pad is 0 in place of the first end of sequence",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _zero_pad(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def prepare(self: Any, generation_config: Any, *arguments: Any, **keywords: Any) -> Any:
            unnamed = generation_config.pad_token_id is None
            found = original(self, generation_config, *arguments, **keywords)
            if unnamed and generation_config._pad_token_tensor is not None:
                patches.reached()
                generation_config._pad_token_tensor = generation_config._pad_token_tensor * 0
            return found

        return prepare

    patches.method(f"{MIXIN}._prepare_special_tokens", make)


@fault(
    "beam-indices-late",
    title="scores of a beam's tokens are those of other beams",
    origin="huggingface/transformers#15869",
    mechanism="compute_transition_scores reads the beams of one step before",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _indices_late(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def scores(self: Any, sequences: Any, given: Any, beam_indices: Any = None, *more: Any, **keywords: Any) -> Any:
            if beam_indices is not None:
                patches.reached()
                late = beam_indices.roll(1, -1)
                beam_indices = late.where((beam_indices >= 0) & (late >= 0), beam_indices)
            return original(self, sequences, given, beam_indices, *more, **keywords)

        return scores

    patches.method(f"{MIXIN}.compute_transition_scores", make)
