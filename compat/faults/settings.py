"""Faults of what checkpoints of the hub and calls that load them set: a value of theirs is not read."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches

ROPE = "transformers.modeling_rope_utils"
PRETRAINED = "transformers.modeling_utils:PreTrainedModel"


@fault(
    "llama3-scaling-lost",
    title="frequencies of rope type llama3 are left unscaled",
    origin="class: positions (Llama 3.1 and later)",
    mechanism="the base's plain powers in place of the scaled ones",
    cells=("llama3/fp32/eager/none",),
    seen_by=("agreement",),
    spared=("llama/fp32/eager/none",),
)
def _llama3_scaling(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def parameters(config: Any, *arguments: Any, **keywords: Any) -> Any:
            import torch

            found, factor = original(config, *arguments, **keywords)
            patches.reached()
            steps = torch.arange(len(found), dtype=torch.float32, device=found.device) / len(found)
            return config.rope_parameters["rope_theta"] ** -steps, factor

        return parameters

    patches.function(f"{ROPE}:_compute_llama3_parameters", make)


@fault(
    "longrope-always-short",
    title="a long text keeps the frequencies of short ones",
    origin="huggingface/transformers#33129",
    mechanism="the length is not handed on to where one of two sets is chosen",
    cells=("phi3-longrope/fp32/eager/none",),
    seen_by=("agreement",),
    spared=("phi3/fp32/eager/none",),
)
def _always_short(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def parameters(config: Any, device: Any = None, seq_len: Any = None, *more: Any, **keywords: Any) -> Any:
            if seq_len is not None:
                patches.reached()
            return original(config, device, None, *more, **keywords)

        return parameters

    patches.function(f"{ROPE}:_compute_longrope_parameters", make)


@fault(
    "alibi-extra-heads-repeat",
    title="ALiBi slopes of heads beyond a power of two repeat the first ones",
    origin="class: positions (BLOOM 176B has 112 heads)",
    mechanism="the second series of slopes is left out",
    cells=("bloom-6-heads/fp32/eager/none",),
    seen_by=("agreement",),
    spared=("bloom/fp32/eager/none",),
)
def _extra_slopes(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def slopes(heads: int, *arguments: Any, **keywords: Any) -> Any:
            import torch

            found = original(heads, *arguments, **keywords)
            whole = 2 ** (heads.bit_length() - 1)
            if whole == heads:
                return found
            patches.reached()
            return torch.cat([found[:whole], found[: heads - whole]])

        return slopes

    patches.function("transformers.models.bloom.modeling_bloom:_get_alibi_slopes", make)


@fault(
    "choice-bias-weighs",
    title="the bias that is there for the choice of experts also weighs them",
    origin="class: experts (DeepSeek V3)",
    mechanism="weights are gathered from the biased scores",
    cells=("deepseek_v3-biased/fp32/eager/none",),
    seen_by=("agreement",),
    spared=("qwen2_moe/fp32/eager/none",),
)
def _choice_bias(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(router: Any, hidden_states: Any) -> Any:
            logits, weights, chosen = original(router, hidden_states)
            if not bool(router.e_score_correction_bias.any()):
                return logits, weights, chosen
            patches.reached()
            biased = (logits.sigmoid() + router.e_score_correction_bias).gather(1, chosen)
            return logits, biased / biased.sum(-1, keepdim=True) * router.routed_scaling_factor, chosen

        return forward

    patches.method("transformers.models.deepseek_v3.modeling_deepseek_v3:DeepseekV3TopkRouter.forward", make)


@fault(
    "image-layer-ignored",
    title="features of an image come from the last layer, whichever the checkpoint names",
    origin="class: heads (LLaVA 1.5 names the last but one)",
    mechanism="vision_feature_layer is -1",
    cells=("llava-earlier-layer/fp32/eager/none",),
    seen_by=("agreement",),
    spared=("llava/fp32/eager/none",),
)
def _image_layer(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def features(self: Any, *arguments: Any, **keywords: Any) -> Any:
            own = self.config.vision_feature_layer
            if own == -1:
                return original(self, *arguments, **keywords)
            patches.reached()
            keywords.pop("vision_feature_layer", None)
            self.config.vision_feature_layer = -1
            try:
                return original(self, *arguments, **keywords)
            finally:
                self.config.vision_feature_layer = own

        return features

    patches.method("transformers.models.llava.modeling_llava:LlavaModel.get_image_features", make)


@fault(
    "embeddings-without-offset",
    title="positions of embeddings start elsewhere than those of token ids",
    origin="huggingface/transformers#24741",
    mechanism="the offset behind the padding index is left out where no ids are given",
    cells=("roberta/fp32/sdpa/none", "roberta/bf16/eager/none"),
    seen_by=("agreement",),
    spared=("llama/fp32/sdpa/none",),
)
def _embeddings_offset(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def positions(embeddings: Any, padding_idx: int) -> Any:
            patches.reached()
            return original(embeddings, padding_idx) - padding_idx - 1

        return positions

    name = "RobertaEmbeddings.create_position_ids_from_inputs_embeds"
    patches.method(f"transformers.models.roberta.modeling_roberta:{name}", make)


@fault(
    "eager-by-default",
    title="without a word of attention, eager is loaded in place of SDPA",
    origin="class: loading",
    mechanism="no request is taken for a request of eager",
    cells=("llama/fp32/eager/none", "bert/bf16/eager/none"),
    seen_by=("load",),
    spared=("bloom/fp32/eager/none",),
)
def _eager_by_default(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def chosen(self: Any, requested: Any, *arguments: Any, **keywords: Any) -> Any:
            if requested is None:
                if getattr(self, "_supports_sdpa", False):
                    patches.reached()
                requested = "eager"
            return original(self, requested, *arguments, **keywords)

        return chosen

    patches.method(f"{PRETRAINED}.get_correct_attn_implementation", make)


@fault(
    "new-head-unwritten",
    title="a head that the checkpoint lacks holds whatever stood in memory",
    origin="class: loading",
    mechanism="missing parameters are not initialised; large values stand for chance",
    cells=("llama/fp32/eager/none",),
    seen_by=("load",),
    spared=("bert/fp32/sdpa/none",),
)
def _head_unwritten(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def initialise(self: Any, *arguments: Any, **keywords: Any) -> Any:
            import torch

            missing = [p for p in self.parameters() if not getattr(p, "_is_hf_initialized", False)]
            found = original(self, *arguments, **keywords)
            head = getattr(self, "score", None)
            if missing and head is not None:
                patches.reached()
                with torch.no_grad():
                    head.weight.fill_(1e30)
            return found

        return initialise

    patches.method(f"{PRETRAINED}._initialize_missing_keys", make)


@fault(
    "dequantized-without-bias",
    title="a dequantized model has lost the biases of its linears",
    origin="class: quantization",
    mechanism="dequantize() makes linears without a bias",
    cells=("opt/bf16/eager/bnb-nf4",),
    seen_by=("quality",),
    spared=("opt/bf16/eager/none",),
)
def _without_bias(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def dequantize(self: Any, *arguments: Any, **keywords: Any) -> Any:
            kinds = ("Linear4bit", "Linear8bitLt")
            paths = [path for path, module in self.named_modules() if type(module).__name__ in kinds]
            found = original(self, *arguments, **keywords)
            for path in paths:
                if found.get_submodule(path).bias is not None:
                    patches.reached()
                    found.get_submodule(path).bias = None
            return found

        return dequantize

    patches.method(f"{PRETRAINED}.dequantize", make)
