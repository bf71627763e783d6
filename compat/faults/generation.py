"""Faults of generation: scores, choices, ends and inputs of `generate` that are not what its settings say."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches

PROCESSORS = "transformers.generation.logits_process"
MIXIN = "transformers.generation.utils:GenerationMixin"
PROBES = ("llama/fp32/sdpa/none", "opt/bf16/eager/none")
ENCODER = "bert/fp32/sdpa/none"


@fault(
    "repetition-penalty-counts-pads",
    title="the repetition penalty counts the pads of left-padded rows",
    origin="huggingface/text-generation-inference#1765",
    mechanism="the number of pads a row is not handed to the processor",
    cells=PROBES,
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _repetition_counts_pads(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def init(self: Any, penalty: float, prompt_ignore_length: Any = None) -> None:
            if prompt_ignore_length is not None and bool((prompt_ignore_length > 0).any()):
                patches.reached()
                prompt_ignore_length = None
            original(self, penalty, prompt_ignore_length)

        return init

    patches.method(f"{PROCESSORS}:RepetitionPenaltyLogitsProcessor.__init__", make)


@fault(
    "repetition-penalty-sign",
    title="the repetition penalty makes unlikely tokens likelier",
    origin="class: generation",
    mechanism="negative scores are divided by the penalty as positive ones are",
    cells=("gpt2/fp32/eager/none",),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _repetition_sign(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def call(self: Any, input_ids: Any, scores: Any) -> Any:
            patches.reached()
            right = original(self, input_ids, scores)
            return right.where((right == scores) | (scores > 0), scores / self.penalty)

        return call

    patches.method(f"{PROCESSORS}:RepetitionPenaltyLogitsProcessor.__call__", make)


@fault(
    "temperature-twice",
    title="the temperature is applied twice",
    origin="class: generation",
    mechanism="a second division of the scores by the temperature",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _temperature_twice(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def call(self: Any, input_ids: Any, scores: Any) -> Any:
            patches.reached()
            return original(self, input_ids, original(self, input_ids, scores))

        return call

    patches.method(f"{PROCESSORS}:TemperatureLogitsWarper.__call__", make)


@fault(
    "top-p-one-too-many",
    title="nucleus sampling keeps one token too many",
    origin="class: generation",
    mechanism="the best of the tokens that were left out comes back",
    cells=PROBES,
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _top_p_one_too_many(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def call(self: Any, input_ids: Any, scores: Any) -> Any:
            patches.reached()
            kept = original(self, input_ids, scores)
            left = scores.masked_fill(kept.isfinite(), -float("inf"))
            best = left.argmax(-1, keepdim=True)
            return kept.scatter(-1, best, left.gather(-1, best))

        return call

    patches.method(f"{PROCESSORS}:TopPLogitsWarper.__call__", make)


@fault(
    "top-k-one-too-few",
    title="top-k sampling keeps one token too few",
    origin="class: generation",
    mechanism="k - 1 in place of k",
    cells=("t5/fp32/eager/none",),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _top_k_one_too_few(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def call(self: Any, input_ids: Any, scores: Any) -> Any:
            patches.reached()
            own, self.top_k = self.top_k, max(1, self.top_k - 1)
            try:
                return original(self, input_ids, scores)
            finally:
                self.top_k = own

        return call

    patches.method(f"{PROCESSORS}:TopKLogitsWarper.__call__", make)


@fault(
    "min-new-tokens-ignored",
    title="rows end before min_new_tokens",
    origin="class: generation",
    mechanism="neither processor of a least length forbids the end of sequence",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _min_new_ignored(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def call(self: Any, input_ids: Any, scores: Any) -> Any:
            patches.reached()
            return scores

        return call

    for name in ("MinNewTokensLengthLogitsProcessor", "MinLengthLogitsProcessor"):
        patches.method(f"{PROCESSORS}:{name}.__call__", make)


@fault(
    "finished-rows-go-on",
    title="rows that have ended go on writing until the whole batch has",
    origin="class: generation",
    mechanism="the criterion reports a row's end only for the step in which it comes, and only to the batch as a whole",
    cells=("llama/fp32/eager/none", "bart/fp32/sdpa/none"),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _finished_rows_go_on(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def call(self: Any, input_ids: Any, scores: Any, **more: Any) -> Any:
            ended = original(self, input_ids, scores, **more)
            if bool(ended.any()) and not bool(ended.all()):
                patches.reached()
                return ended & False
            return ended

        return call

    patches.method("transformers.generation.stopping_criteria:EosTokenCriteria.__call__", make)


@fault(
    "eos-ends-neighbours",
    title="one row's end of sequence ends the whole batch",
    origin="class: generation",
    mechanism="any in place of each",
    cells=("gpt2/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _eos_ends_neighbours(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def call(self: Any, input_ids: Any, scores: Any, **more: Any) -> Any:
            ended = original(self, input_ids, scores, **more)
            if bool(ended.any()):
                patches.reached()
            return ended | ended.any()

        return call

    patches.method("transformers.generation.stopping_criteria:EosTokenCriteria.__call__", make)


@fault(
    "beam-cache-not-reordered",
    title="beam search goes on with the caches of other beams",
    origin="class: generation",
    mechanism="the cache is not reordered after beams have changed places",
    cells=("llama/fp32/sdpa/none", "t5/fp32/eager/none"),
    seen_by=("generation", "cache"),
    spared=(ENCODER,),
)
def _beam_cache_not_reordered(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def reorder(self: Any, beam_idx: Any) -> Any:
            if beam_idx.tolist() != list(range(len(beam_idx))):
                patches.reached()
            return None

        return reorder

    patches.method("transformers.cache_utils:Cache.reorder_cache", make)
    patches.method("transformers.cache_utils:EncoderDecoderCache.reorder_cache", make)


@fault(
    "length-penalty-counts-prompt",
    title="the length penalty of beam search counts the prompt",
    origin="class: generation",
    mechanism="scores are divided by (prompt + new tokens)^penalty",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _length_penalty_counts_prompt(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def update(self: Any, *rest: Any, **more: Any) -> Any:
            if more["decoder_prompt_len"]:
                patches.reached()
            return original(self, *rest, **{**more, "decoder_prompt_len": 0})

        return update

    patches.method(f"{MIXIN}._update_finished_beams", make)


@fault(
    "beams-worst-first",
    title="beam search returns the worse of its hypotheses",
    origin="class: generation",
    mechanism="finished beams are kept in reverse order",
    cells=("bart/fp32/eager/none",),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _beams_worst_first(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def update(self: Any, *rest: Any, **more: Any) -> Any:
            patches.reached()
            return tuple(x.flip(1) for x in original(self, *rest, **more))

        return update

    patches.method(f"{MIXIN}._update_finished_beams", make)


@fault(
    "decode-mask-not-extended",
    title="generated tokens are masked for the steps after them",
    origin="class: generation",
    mechanism="the attention mask grows by zeros",
    cells=("llama/fp32/sdpa/none", "bloom/fp32/eager/none"),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _mask_not_extended(patches: Patches) -> None:
    width = [0]

    def make(original: Any) -> Any:
        def update(self: Any, outputs: Any, model_kwargs: Any, *rest: Any, **more: Any) -> Any:
            before = model_kwargs.get("attention_mask")
            updated = original(self, outputs, model_kwargs, *rest, **more)
            after = updated.get("attention_mask")
            if before is None or after is None:
                return updated
            if before.shape[1] == width[0]:  # not the first step: the last column of `before` is a generated token
                patches.reached()
                updated["attention_mask"] = after = after.clone()
                after[:, before.shape[1] - 1] = 0
            width[0] = after.shape[1]
            return updated

        return update

    patches.method(f"{MIXIN}._update_model_kwargs_for_generation", make)


@fault(
    "decode-positions-from-length",
    title="positions of generated tokens count the pads before them",
    origin="unslothai/unsloth#3699",
    mechanism="the next position is the padded length, which all rows share",
    cells=("llama/fp32/eager/none", "opt/bf16/eager/none"),
    seen_by=("generation",),
    spared=("t5/fp32/eager/none", ENCODER),
)
def _positions_from_length(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def update(self: Any, *rest: Any, **more: Any) -> Any:
            updated = original(self, *rest, **more)
            positions, mask = updated.get("position_ids"), updated.get("attention_mask")
            if not self.config.is_encoder_decoder and positions is not None and mask is not None:
                patches.reached()
                positions = positions.clone()
                positions[:, -1] = mask.shape[1] - 1
                updated["position_ids"] = positions
            return updated

        return update

    patches.method(f"{MIXIN}._update_model_kwargs_for_generation", make)


@fault(
    "sampling-ignores-seed",
    title="sampling draws from a generator of its own",
    origin="class: generation",
    mechanism="torch.multinomial with another generator than the one that set_seed sets",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _sampling_ignores_seed(patches: Patches) -> None:
    import sys

    import torch

    own = torch.Generator().manual_seed(271_828)
    original = torch.multinomial

    def multinomial(probabilities: Any, num_samples: int, *rest: Any, **more: Any) -> Any:
        if not sys._getframe(1).f_globals["__name__"].startswith("transformers."):
            return original(probabilities, num_samples, *rest, **more)
        patches.reached()
        return original(probabilities, num_samples, *rest, **{**more, "generator": own})

    patches.attribute(torch, "multinomial", multinomial)


@fault(
    "return-sequences-interleaved",
    title="several samples of each prompt come with the masks of other prompts",
    origin="class: generation",
    mechanism="the mask is repeated as a whole (a b a b), the ids row by row (a a b b)",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _sequences_interleaved(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def expand(self: Any, expand_size: int = 1, *rest: Any, **more: Any) -> Any:
            own = more.get("attention_mask")
            ids, expanded = original(self, expand_size, *rest, **more)
            if expand_size > 1 and own is not None and own.shape[0] > 1:
                patches.reached()
                expanded["attention_mask"] = own.repeat(expand_size, 1)
            return ids, expanded

        return expand

    patches.method(f"{MIXIN}._expand_inputs_for_generation", make)


@fault(
    "model-config-over-passed-config",
    title="the model's own generation config wins over the one that is passed",
    origin="class: generation",
    mechanism="all of the model's values are written over those of the passed config",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _model_config_wins(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def prepare(self: Any, generation_config: Any, *rest: Any, **more: Any) -> Any:
            if generation_config is not None:
                import copy

                patches.reached()
                generation_config = copy.deepcopy(generation_config)
                own = self.generation_config.to_diff_dict()
                generation_config.update(**{k: v for k, v in own.items() if not k.startswith("_")})
            return original(self, generation_config, *rest, **more)

        return prepare

    patches.method(f"{MIXIN}._prepare_generation_config", make)


@fault(
    "max-new-tokens-one-more",
    title="generate writes one token more than max_new_tokens",
    origin="class: generation",
    mechanism="the length criterion holds one token late",
    cells=("gpt2/fp32/eager/none", "t5/fp32/eager/none"),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _one_token_more(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def init(self: Any, max_length: int, *rest: Any, **more: Any) -> None:
            patches.reached()
            original(self, max_length + 1, *rest, **more)

        return init

    patches.method("transformers.generation.stopping_criteria:MaxLengthCriteria.__init__", make)


@fault(
    "eos-in-prompt-ends",
    title="a prompt that holds an end of sequence is not continued",
    origin="class: generation",
    mechanism="the criterion looks at every token of the row, not at the last",
    cells=("llama/fp32/eager/none",),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _eos_in_prompt(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def call(self: Any, input_ids: Any, scores: Any, **more: Any) -> Any:
            import torch

            anywhere = torch.isin(input_ids, self.eos_token_id.to(input_ids.device)).any(-1)
            if bool((anywhere & ~original(self, input_ids, scores, **more)).any()):
                patches.reached()
            return anywhere

        return call

    patches.method("transformers.generation.stopping_criteria:EosTokenCriteria.__call__", make)


@fault(
    "scores-softmaxed-twice",
    title="sampling draws from a flattened distribution",
    origin="class: generation",
    mechanism="probabilities are handed on where scores are expected, so that softmax is taken twice",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _softmaxed_twice(patches: Patches) -> None:
    import sys

    import torch

    original = torch.multinomial

    def multinomial(probabilities: Any, num_samples: int, *rest: Any, **more: Any) -> Any:
        if not sys._getframe(1).f_globals["__name__"].startswith("transformers."):
            return original(probabilities, num_samples, *rest, **more)
        patches.reached()
        return original(probabilities.softmax(-1), num_samples, *rest, **more)

    patches.attribute(torch, "multinomial", multinomial)


@fault(
    "trigrams-as-bigrams",
    title="no_repeat_ngram_size=3 forbids what would repeat two tokens",
    origin="class: generation",
    mechanism="the processor counts n-grams one token too short, from three on",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=("bert/fp32/sdpa/none",),
)
def _trigrams_as_bigrams(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def __init__(processor: Any, ngram_size: int) -> None:  # noqa: N807
            original(processor, ngram_size)
            if ngram_size > 2:
                patches.reached()
                processor.ngram_size = ngram_size - 1

        return __init__

    patches.method("transformers.generation.logits_process:NoRepeatNGramLogitsProcessor.__init__", make)


@fault(
    "generate-drops-images",
    title="generate leaves out the pictures of a prompt",
    origin="class: generation",
    mechanism="pixel_values do not reach the model's first forward",
    cells=("llava/fp32/sdpa/none", "llava/bf16/eager/none"),
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _drops_images(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def generate(self: Any, *rest: Any, **more: Any) -> Any:
            if more.pop("pixel_values", None) is not None:
                patches.reached()
            return original(self, *rest, **more)

        return generate

    patches.method(f"{MIXIN}.generate", make)


@fault(
    "stop-string-of-the-first-row",
    title="a stop string in the first row ends every row, and in no other row any",
    origin="EleutherAI/lm-evaluation-harness#124",
    mechanism="what the criterion says of row 0 is taken for all rows",
    cells=PROBES,
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _stop_of_first_row(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def call(self: Any, *rest: Any, **more: Any) -> Any:
            patches.reached()
            done = original(self, *rest, **more)
            return done[:1].expand_as(done).clone()

        return call

    patches.method("transformers.generation.stopping_criteria:StopStringCriteria.__call__", make)


@fault(
    "stream-lacks-last-token",
    title="what is streamed ends one token before what is returned",
    origin="class: generation",
    mechanism="a streamer hears each value when the next one comes",
    cells=PROBES,
    seen_by=("generation",),
    spared=(ENCODER,),
)
def _stream_late(patches: Patches) -> None:
    class Late:
        def __init__(self, streamer: Any) -> None:
            self.streamer, self.held = streamer, None

        def put(self, value: Any) -> None:
            patches.reached()
            if self.held is not None:
                self.streamer.put(self.held)
            self.held = value

        def end(self) -> None:
            self.streamer.end()

    def make(original: Any) -> Any:
        def generate(self: Any, *arguments: Any, streamer: Any = None, **keywords: Any) -> Any:
            return original(self, *arguments, streamer=streamer and Late(streamer), **keywords)

        return generate

    patches.method(f"{MIXIN}.generate", make)
