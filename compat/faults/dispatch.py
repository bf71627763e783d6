"""Faults of dispatch: the result is right, and another kernel, layer or dtype gave it than was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches
from compat.faults.seams import LINEAR, SDPA, TORCH_SDPA, Call, plain_linear


def _by_hand(call: Call) -> tuple[Any, None]:
    """What SDPA would have returned for `call`, in the steps of eager attention."""
    import torch

    query, key, value, mask = call.query, call.key, call.value, call.mask
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scaling = call.rest.get("scaling")
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    bias, causal = call.rest.get("position_bias"), call.rest.get("is_causal")
    causal = getattr(call.module, "is_causal", True) if causal is None else causal
    if mask is None and causal and query.shape[2] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril(key.shape[2] - query.shape[2])
    if bias is not None:
        scores = scores + bias
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), None


def _eager_where(patches: Patches, chosen: Callable[[Call], bool]) -> None:
    """Compute attention by hand in calls of SDPA that are `chosen`."""

    def make(original: Any) -> Any:
        def forward(module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, **rest: Any) -> Any:
            call = Call(module, query, key, value, attention_mask, rest)
            if chosen(call):
                patches.reached()
                return _by_hand(call)
            return original(module, query, key, value, attention_mask, **rest)

        return forward

    patches.function(SDPA, make)


def _math_where(patches: Patches, chosen: Callable[[Any, Any, Any], bool]) -> None:
    """Let torch take the math kernel for queries, keys and a mask that are `chosen`, whatever was allowed."""

    def make(original: Any) -> Any:
        def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *more: Any, **rest: Any) -> Any:
            from torch.nn.attention import SDPBackend, sdpa_kernel

            if not chosen(query, key, attn_mask):
                return original(query, key, value, attn_mask, *more, **rest)
            patches.reached()
            with sdpa_kernel([SDPBackend.MATH]):
                return original(query, key, value, attn_mask, *more, **rest)

        return attention

    patches.function(TORCH_SDPA, make)


@fault(
    "sdpa-eager-in-one-layer",
    title="one layer of an SDPA model computes eager attention",
    origin="class: dispatch",
    mechanism="the second layer does not follow the switch of the implementation",
    cells=("llama/bf16/sdpa/none",),
    seen_by=("dispatch",),
    spared=("llama/fp32/eager/none",),
)
def _one_layer(patches: Patches) -> None:
    _eager_where(patches, lambda call: getattr(call.module, "layer_idx", None) == 1)


@fault(
    "sdpa-eager-in-decode",
    title="SDPA prefills, eager attention decodes",
    origin="class: dispatch",
    mechanism="calls of one query on a longer cache are computed step by step",
    cells=("llama/bf16/sdpa/none", "gpt2/fp32/sdpa/none"),
    seen_by=("dispatch",),
    spared=("bert/fp32/sdpa/none",),
)
def _decode(patches: Patches) -> None:
    _eager_where(patches, lambda call: call.decoding)


@fault(
    "sdpa-eager-when-masked",
    title="any padding sends SDPA to eager attention",
    origin="class: dispatch",
    mechanism="calls with a mask are computed step by step",
    cells=("bert/fp32/sdpa/none", "qwen2/fp32/sdpa/none"),
    seen_by=("dispatch",),
    spared=("bert/fp32/eager/none",),
)
def _masked(patches: Patches) -> None:
    _eager_where(patches, lambda call: call.mask is not None)


@fault(
    "encoder-stays-eager",
    title="the encoder of an encoder-decoder does not follow the switch to SDPA",
    origin="class: dispatch",
    mechanism="attention modules outside the decoder compute eager attention",
    cells=("bart/fp32/sdpa/none", "t5/fp32/sdpa/none"),
    seen_by=("dispatch",),
    spared=("llama/fp32/sdpa/none", "t5/fp32/eager/none"),
)
def _encoder(patches: Patches) -> None:
    _eager_where(patches, lambda call: getattr(call.module, "is_decoder", True) is False)


@fault(
    "vision-tower-stays-eager",
    title="the vision part of a composite model does not follow the switch to SDPA",
    origin="class: dispatch",
    mechanism="attention modules of the vision tower compute eager attention",
    cells=("llava/bf16/sdpa/none",),
    seen_by=("dispatch",),
    spared=("llama/fp32/sdpa/none",),
)
def _vision(patches: Patches) -> None:
    _eager_where(patches, lambda call: type(call.module).__name__ == "CLIPAttention")


@fault(
    "attention-weights-stay-eager",
    title="one call with output_attentions leaves the model on eager attention",
    origin="class: dispatch",
    mechanism="the fallback writes into the shared config and is not taken back",
    cells=("llama/bf16/sdpa/none",),
    seen_by=("dispatch",),
    spared=("llama/fp32/eager/none",),
)
def _stays(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(self: Any, *args: Any, **rest: Any) -> Any:
            if rest.get("output_attentions") and self.config._attn_implementation == "sdpa":
                patches.reached()
                self.config._attn_implementation_internal = "eager"
            return original(self, *args, **rest)

        return forward

    patches.method("transformers.models.llama.modeling_llama:LlamaForCausalLM.forward", make)


@fault(
    "sdpa-math-in-decode",
    title="decoding silently takes SDPA's math kernel, also where flash is forced",
    origin="huggingface/transformers#46960",
    mechanism="the fused kernel is ruled out for a single query",
    cells=("llama/bf16/sdpa/none", "gpt2/fp32/sdpa-flash/none"),
    seen_by=("dispatch",),
    spared=("bert/fp32/sdpa/none",),
)
def _math_in_decode(patches: Patches) -> None:
    _math_where(patches, lambda query, key, mask: query.shape[-2] < key.shape[-2])


@fault(
    "sdpa-math-when-masked",
    title="a mask silently sends SDPA to its math kernel",
    origin="huggingface/transformers#46960",
    mechanism="the fused kernel is ruled out for calls with a mask",
    cells=("bert/fp32/sdpa/none", "opt/fp32/sdpa/none"),
    seen_by=("dispatch",),
    spared=("bert/fp32/eager/none",),
)
def _math_when_masked(patches: Patches) -> None:
    _math_where(patches, lambda query, key, mask: mask is not None)


@fault(
    "sdpa-in-bf16",
    title="SDPA of an fp32 model computes in bf16",
    origin="class: dispatch",
    mechanism="queries, keys and values are cast down, the output is cast back",
    cells=("gpt2/fp32/sdpa/none",),
    seen_by=("dispatch",),
    spared=("llama/bf16/sdpa/none",),
)
def _in_bf16(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *more: Any, **rest: Any) -> Any:
            import torch

            if query.dtype != torch.float32:
                return original(query, key, value, attn_mask, *more, **rest)
            patches.reached()
            low = [t.bfloat16() for t in (query, key, value)]
            mask = attn_mask.bfloat16() if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
            return original(*low, mask, *more, **rest).to(query.dtype)

        return attention

    patches.function(TORCH_SDPA, make)


@fault(
    "one-matrix-in-fp32",
    title="one matrix of a 16-bit model is multiplied in fp32",
    origin="class: dispatch",
    mechanism="input and weight of linears with fewer outputs than inputs are cast up in each call",
    cells=("llama/bf16/sdpa/none", "llama/bf16/eager/none"),
    seen_by=("dispatch",),
    spared=("llama/fp32/sdpa/none",),
)
def _one_matrix(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def linear(input: Any, weight: Any, bias: Any = None) -> Any:
            narrows = plain_linear(weight, input) and weight.shape[0] < weight.shape[1] and bias is None
            if not narrows or weight.element_size() != 2:
                return original(input, weight, bias)
            patches.reached()
            return original(input.float(), weight.float()).to(input.dtype)

        return linear

    patches.function(LINEAR, make)


@fault(
    "int8-runs-dequantized",
    title="int8 layers multiply a dequantized copy of their weight",
    origin="class: dispatch",
    mechanism="the weight is dequantized in each call and multiplied in the compute dtype; no int8 kernel runs",
    cells=("llama/bf16/sdpa/bnb-int8",),
    seen_by=("dispatch",),
    spared=("llama/bf16/sdpa/bnb-nf4",),
)
def _int8_dequantized(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(self: Any, x: Any) -> Any:
            import torch

            codes = self.weight.CB if getattr(self.weight, "CB", None) is not None else self.state.CB
            scale = self.weight.SCB if getattr(self.weight, "SCB", None) is not None else self.state.SCB
            if codes is None or scale is None:
                return original(self, x)
            patches.reached()
            weight = (codes.float() * scale.float()[:, None] / 127).to(x.dtype)
            return torch.nn.functional.linear(x, weight, self.bias)

        return forward

    patches.method("bitsandbytes.nn.modules:Linear8bitLt.forward", make)


@fault(
    "gradients-left-off",
    title="after generate nothing is recorded for a backward pass",
    origin="class: dispatch",
    mechanism="gradients are switched off for the process, and not on again",
    cells=("llama/fp32/sdpa/none", "t5/fp32/eager/none"),
    seen_by=("dispatch",),
    spared=("bert/fp32/sdpa/none",),
)
def _gradients_left_off(patches: Patches) -> None:
    import torch

    def make(original: Any) -> Any:
        def generate(model: Any, *arguments: Any, **keywords: Any) -> Any:
            found = original(model, *arguments, **keywords)
            if torch.is_grad_enabled():
                patches.reached()
                torch.set_grad_enabled(False)
            return found

        return generate

    patches.method("transformers.generation.utils:GenerationMixin.generate", make)


@fault(
    "attention-weights-of-other-heads",
    title="the attention weights that are returned stand under other heads",
    origin="class: dispatch",
    mechanism="weights are rolled by one head after the product with the values",
    cells=("llama/fp32/eager/none",),
    seen_by=("agreement",),
    spared=("llama/fp32/sdpa/none",),
)
def _weights_of_other_heads(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def attention(*arguments: Any, **keywords: Any) -> Any:
            output, weights = original(*arguments, **keywords)
            patches.reached()
            return output, None if weights is None else weights.roll(1, 1)

        return attention

    patches.function("transformers.models.llama.modeling_llama:eager_attention_forward", make)
