"""Faults of pipelines: what they hand to the model, what they make of its answer, what they change on the way."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches

TEXT = "transformers.pipelines.text_generation:TextGenerationPipeline"
BASE = "transformers.pipelines.base:Pipeline"
OTHER_TASK = "t5/fp32/eager/none"


@fault(
    "pipeline-drops-mask",
    title="the text-generation pipeline hands no attention mask to generate",
    origin="class: pipelines",
    mechanism="attention_mask is None, so pads are attended to or guessed",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=(OTHER_TASK,),
)
def _drops_mask(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(self: Any, model_inputs: Any, **more: Any) -> Any:
            patches.reached()
            model_inputs["attention_mask"] = None
            return original(self, model_inputs, **more)

        return forward

    patches.method(f"{TEXT}._forward", make)


@fault(
    "pipeline-pads-right",
    title="pipelines pad every batch on the right",
    origin="class: pipelines",
    mechanism="the tokenizer's padding side is not asked",
    cells=("opt/fp32/eager/none",),
    seen_by=("generation",),
    spared=(OTHER_TASK,),
)
def _pads_right(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def pad(items: Any, key: str, padding_value: Any, padding_side: str) -> Any:
            if padding_side == "left":
                patches.reached()
            return original(items, key, padding_value, "right")

        return pad

    patches.function("transformers.pipelines.base:_pad", make)


@fault(
    "pipeline-defaults-over-config",
    title="the pipeline's defaults win over a config that the call passes",
    origin="class: pipelines",
    mechanism="defaults are written over what the passed config sets",
    cells=("gpt2/bf16/sdpa/none",),
    seen_by=("generation",),
    spared=(OTHER_TASK,),
)
def _defaults_win(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def prepare(self: Any, generate_kwargs: Any, **overrides: Any) -> Any:
            prepared = original(self, generate_kwargs, **overrides)
            config = prepared.get("generation_config")
            if config is not None:
                patches.reached()
                config.update(**self._generation_defaults)
            return prepared

        return prepare

    patches.method(f"{BASE}._prepare_generate_kwargs", make)


@fault(
    "pipeline-ignores-model-config",
    title="the pipeline's defaults win over the model's own generation config",
    origin="class: pipelines",
    mechanism="what the model's config sets is taken for unset",
    cells=("llama/fp32/eager/none",),
    seen_by=("generation",),
    spared=(OTHER_TASK,),
)
def _ignores_model_config(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def prepare(self: Any, generate_kwargs: Any, **overrides: Any) -> Any:
            prepared = original(self, generate_kwargs, **overrides)
            patches.reached()
            given = {k: v for k, v in self._generation_defaults.items() if k not in generate_kwargs}
            return prepared if "generation_config" in prepared else {**given, **prepared, **given}

        return prepare

    patches.method(f"{BASE}._prepare_generate_kwargs", make)


@fault(
    "pipeline-no-special-tokens",
    title="the text-generation pipeline leaves out the tokenizer's special tokens",
    origin="class: pipelines",
    mechanism="add_special_tokens=False where the caller says nothing",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=(OTHER_TASK,),
)
def _no_special_tokens(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def preprocess(self: Any, prompt_text: Any, *rest: Any, **more: Any) -> Any:
            if more.get("add_special_tokens") is None:
                patches.reached()
                more["add_special_tokens"] = False
            return original(self, prompt_text, *rest, **more)

        return preprocess

    patches.method(f"{TEXT}.preprocess", make)


@fault(
    "pipeline-chat-starts-twice",
    title="a chat gets the start token from its template and once more from the tokenizer",
    origin="class: pipelines",
    mechanism="the template's text is tokenized with special tokens",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=(OTHER_TASK,),
)
def _starts_twice(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def apply(self: Any, conversation: Any, *rest: Any, **more: Any) -> Any:
            if not more.pop("return_dict", False):
                return original(self, conversation, *rest, **more)
            patches.reached()
            more.pop("return_tensors", None)
            text = original(self, conversation, *rest, **{**more, "tokenize": False})
            return self(text, return_tensors="pt")

        return apply

    patches.method("transformers.tokenization_utils_base:PreTrainedTokenizerBase.apply_chat_template", make)


@fault(
    "pipeline-changes-model-config",
    title="making a pipeline changes the model's generation config",
    origin="class: pipelines",
    mechanism="the pipeline's defaults are written into the model's own config",
    cells=("opt/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=(OTHER_TASK,),
)
def _changes_model_config(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def init(self: Any, *rest: Any, **more: Any) -> None:
            original(self, *rest, **more)
            patches.reached()
            self.model.generation_config.temperature = 0.7

        return init

    patches.method(f"{TEXT}.__init__", make)


@fault(
    "pipeline-seeds-itself",
    title="every call of a pipeline starts from the same seed, whatever the user set",
    origin="class: pipelines",
    mechanism="torch.manual_seed in __call__",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=(OTHER_TASK,),
)
def _seeds_itself(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def call(self: Any, *rest: Any, **more: Any) -> Any:
            import torch

            patches.reached()
            torch.manual_seed(42)
            return original(self, *rest, **more)

        return call

    patches.method(f"{BASE}.__call__", make)


@fault(
    "pipeline-upcasts-on-cpu",
    title="a pipeline turns a 16-bit model into fp32",
    origin="class: pipelines",
    mechanism="model.float() when the pipeline is made on a CPU",
    cells=("llama/bf16/sdpa/none",),
    seen_by=("generation",),
    spared=("t5/bf16/eager/none",),
    device="cpu",
)
def _upcasts(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def init(self: Any, *rest: Any, **more: Any) -> None:
            original(self, *rest, **more)
            patches.reached()
            self.model.float()

        return init

    patches.method(f"{TEXT}.__init__", make)


@fault(
    "pipeline-loads-eager",
    title="a pipeline that loads the checkpoint itself drops model_kwargs",
    origin="class: pipelines",
    mechanism="attn_implementation of model_kwargs is not handed to from_pretrained",
    cells=("llama/fp32/eager/none", "mistral/fp32/eager/none"),
    seen_by=("generation",),
    spared=("llama/fp32/sdpa/none",),
)
def _loads_eager(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def load(model: Any, *rest: Any, **more: Any) -> Any:
            if isinstance(model, str) and more.pop("attn_implementation", None) is not None:
                patches.reached()
            return original(model, *rest, **more)

        return load

    patches.function("transformers.pipelines.base:load_model", make)


@fault(
    "pipeline-returns-prompt",
    title="return_full_text=False returns the prompt all the same",
    origin="class: pipelines",
    mechanism="new text is taken for full text when decoding",
    cells=("gpt2/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=(OTHER_TASK,),
)
def _returns_prompt(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def postprocess(self: Any, model_outputs: Any, return_type: Any = None, **more: Any) -> Any:
            full = type(return_type).FULL_TEXT if return_type is not None else None
            if return_type is None:
                return original(self, model_outputs, **more)
            if return_type == type(return_type).NEW_TEXT:
                patches.reached()
                return_type = full
            return original(self, model_outputs, return_type, **more)

        return postprocess

    patches.method(f"{TEXT}.postprocess", make)


@fault(
    "fill-mask-drops-mask",
    title="fill-mask attends to the pads of a batch",
    origin="class: pipelines",
    mechanism="the attention mask is not handed to the model",
    cells=("bert/fp32/sdpa/none", "roberta/bf16/eager/none"),
    seen_by=("generation",),
    spared=("llama/fp32/sdpa/none",),
)
def _fill_mask_drops_mask(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(self: Any, model_inputs: Any, **more: Any) -> Any:
            patches.reached()
            return original(self, {k: v for k, v in model_inputs.items() if k != "attention_mask"}, **more)

        return forward

    patches.method("transformers.pipelines.fill_mask:FillMaskPipeline._forward", make)


@fault(
    "image-pipeline-channels-swapped",
    title="image-classification reads blue as red",
    origin="class: pipelines",
    mechanism="the channels are reversed before the model",
    cells=("vit/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=("bert/fp32/sdpa/none",),
)
def _channels_swapped(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def preprocess(self: Any, image: Any, *rest: Any, **more: Any) -> Any:
            patches.reached()
            inputs = original(self, image, *rest, **more)
            inputs["pixel_values"] = inputs["pixel_values"].flip(1)
            return inputs

        return preprocess

    patches.method("transformers.pipelines.image_classification:ImageClassificationPipeline.preprocess", make)


@fault(
    "pipeline-returns-one-sequence",
    title="the text-generation pipeline returns the first of several sequences of a prompt",
    origin="huggingface/transformers#20207",
    mechanism="what was generated beside the first sequence is dropped after decoding",
    cells=("llama/fp32/sdpa/none", "opt/bf16/eager/none"),
    seen_by=("generation",),
    spared=(OTHER_TASK,),
)
def _one_sequence(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def postprocess(self: Any, *rest: Any, **more: Any) -> Any:
            answers = original(self, *rest, **more)
            if len(answers) > 1:
                patches.reached()
            return answers[:1]

        return postprocess

    patches.method(f"{TEXT}.postprocess", make)


@fault(
    "pipeline-chat-loses-history",
    title="the answer to a chat holds the last message alone",
    origin="class: pipelines",
    mechanism="the messages that were given are not put before the new one",
    cells=("llama/fp32/sdpa/none",),
    seen_by=("generation",),
    spared=(OTHER_TASK,),
)
def _loses_history(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def postprocess(self: Any, *rest: Any, **more: Any) -> Any:
            answers = original(self, *rest, **more)
            for answer in answers:
                if isinstance(answer.get("generated_text"), list):
                    patches.reached()
                    answer["generated_text"] = answer["generated_text"][-1:]
            return answers

        return postprocess

    patches.method(f"{TEXT}.postprocess", make)


@fault(
    "text-pair-dropped",
    title="text-classification reads the first text of a pair alone",
    origin="huggingface/transformers#17006",
    mechanism="text_pair of a dict is not handed to the tokenizer",
    cells=("bert/fp32/sdpa/none", "roberta/fp32/eager/none"),
    seen_by=("generation",),
    spared=("llama/fp32/sdpa/none",),
)
def _pair_dropped(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def preprocess(self: Any, inputs: Any, **more: Any) -> Any:
            if isinstance(inputs, dict) and "text_pair" in inputs:
                patches.reached()
                inputs = inputs["text"]
            return original(self, inputs, **more)

        return preprocess

    patches.method("transformers.pipelines.text_classification:TextClassificationPipeline.preprocess", make)
