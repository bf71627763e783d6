"""Changes that are none: other orders of summation, more precise inner steps, copies. No check may mind them."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches
from compat.faults.seams import LINEAR, TORCH_SDPA, Call, after_attention, before_attention, eager, masks, plain_linear


@fault(
    "benign-sdpa-in-fp32",
    title="SDPA computes in fp32 and casts back",
    origin="class: benign",
    mechanism="more precise than stock, 16-bit tensors on a CPU only",
    cells=("llama/bf16/sdpa/none", "bert/bf16/sdpa/none"),
    device="cpu",
)
def _sdpa_in_fp32(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *more: Any, **rest: Any) -> Any:
            if query.element_size() != 2 or query.device.type != "cpu":
                return original(query, key, value, attn_mask, *more, **rest)
            patches.reached()
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.float()
            wide = original(query.float(), key.float(), value.float(), attn_mask, *more, **rest)
            return wide.to(query.dtype)

        return attention

    patches.function(TORCH_SDPA, make)


@fault(
    "benign-linear-split",
    title="linear layers sum the inner dimension in two halves",
    origin="class: benign",
    mechanism="another order of summation in fp32",
    cells=("llama/fp32/eager/none", "llama/fp32/sdpa/none", "bert/fp32/sdpa/none"),
)
def _linear_split(patches: Patches) -> None:
    import torch

    def make(original: Any) -> Any:
        def linear(x: Any, weight: Any, bias: Any = None) -> Any:
            if not plain_linear(weight, x) or weight.dtype != torch.float32 or weight.shape[1] % 2:
                return original(x, weight, bias)
            patches.reached()
            half = weight.shape[1] // 2
            total = original(x[..., :half], weight[:, :half]) + original(x[..., half:], weight[:, half:])
            return total if bias is None else total + bias

        return linear

    patches.function(LINEAR, make)


@fault(
    "benign-repeat-kv",
    title="key/value heads are repeated where SDPA could group them itself",
    origin="class: benign",
    mechanism="the path that stock code takes when there is a mask",
    cells=("llama/bf16/sdpa/none", "qwen3/fp32/sdpa/none"),
)
def _repeat_kv(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def use_gqa(*_: Any, **__: Any) -> bool:
            patches.reached()
            return False

        return use_gqa

    patches.function("transformers.integrations.sdpa_attention:use_gqa_in_sdpa", make)


@fault(
    "benign-extra-copies",
    title="queries, keys and values are copied before attention",
    origin="class: benign",
    mechanism="contiguous clones, on SDPA and on eager",
    cells=("llama/bf16/sdpa/none", "llama/bf16/eager/none"),
)
def _copies(patches: Patches) -> None:
    def change(call: Call) -> bool:
        call.query, call.key, call.value = (x.contiguous().clone() for x in (call.query, call.key, call.value))
        return True

    before_attention(patches, change)
    before_attention(patches, change, eager("llama"))


@fault(
    "benign-memory-layout",
    title="attention hands out its result in another memory layout",
    origin="class: benign",
    mechanism="the same values with heads outermost in memory",
    cells=("llama/bf16/sdpa/none", "bert/fp32/sdpa/none"),
)
def _layout(patches: Patches) -> None:
    def change(output: Any, call: Call) -> Any:
        return output.transpose(1, 2).contiguous().transpose(1, 2)

    after_attention(patches, change)


@fault(
    "benign-additive-mask",
    title="SDPA gets its mask as numbers to add instead of as booleans",
    origin="class: benign",
    mechanism="0 where allowed, the dtype's minimum where not",
    cells=("mistral/bf16/sdpa/none", "bert/fp32/sdpa/none"),
    device="cpu",
)
def _additive(patches: Patches) -> None:
    import torch

    def change(call: Call) -> bool:
        if call.mask is None or call.mask.dtype != torch.bool:
            return False
        minimum = torch.finfo(call.query.dtype).min
        call.mask = torch.zeros_like(call.mask, dtype=call.query.dtype).masked_fill(~call.mask, minimum)
        return True

    before_attention(patches, change)


@fault(
    "benign-explicit-causal-mask",
    title="the causal mask is always made, where SDPA could do without",
    origin="class: benign",
    mechanism="is_causal is not relied on; on a CPU the kernel stays the same",
    cells=("llama/bf16/sdpa/none", "gpt2/fp32/sdpa/none"),
    device="cpu",
)
def _explicit(patches: Patches) -> None:
    def change(mask: Any, arguments: dict[str, Any]) -> Any:
        from transformers.masking_utils import sdpa_mask

        if mask is not None or not arguments.get("allow_is_causal_skip", True):
            return None
        return sdpa_mask(**(arguments | {"allow_is_causal_skip": False}))

    masks(patches, "sdpa", change)


@fault(
    "benign-queries-scaled-first",
    title="eager attention scales the queries instead of the scores",
    origin="class: benign",
    mechanism="one rounding earlier than stock, of the size of eps",
    cells=("llama/fp32/eager/none", "llama/bf16/eager/none"),
)
def _scaled_first(patches: Patches) -> None:
    def change(call: Call) -> bool:
        call.query = call.query * call.rest["scaling"]
        call.rest["scaling"] = 1.0
        return True

    before_attention(patches, change, eager("llama"))


@fault(
    "benign-warnings",
    title="loading and generating warn and log",
    origin="class: benign",
    mechanism="a FutureWarning and a line in the log at each call",
    cells=("llama/bf16/sdpa/none", "t5/fp32/eager/none"),
)
def _warnings(patches: Patches) -> None:
    import warnings

    from transformers.utils import logging

    logger = logging.get_logger("transformers.generation.utils")

    def make(original: Any) -> Any:
        def noisy(*arguments: Any, **keywords: Any) -> Any:
            patches.reached()
            warnings.warn("this will change in a future version", FutureWarning, stacklevel=2)
            logger.warning("Setting `pad_token_id` to `eos_token_id` for open-end generation.")
            return original(*arguments, **keywords)

        return noisy

    patches.method("transformers.generation.utils:GenerationMixin.generate", make)
    patches.method("transformers.modeling_utils:PreTrainedModel.from_pretrained", make)


@fault(
    "benign-eager-in-fp32",
    title="eager attention computes in fp32 and casts back",
    origin="class: benign",
    mechanism="queries, keys, values and mask are cast up first; more precise than stock",
    cells=("llama/bf16/eager/none", "llama/fp16/eager/none"),
)
def _eager_in_fp32(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **rest: Any) -> Any:
            if query.element_size() != 2:
                return original(module, query, key, value, attention_mask, **rest)
            patches.reached()
            mask = None if attention_mask is None else attention_mask.float()
            wide, weights = original(module, query.float(), key.float(), value.float(), mask, **rest)
            return wide.to(query.dtype), weights.to(query.dtype)

        return forward

    patches.function(eager("llama"), make)


@fault(
    "benign-norm-by-hand",
    title="RMSNorm multiplies by the inverse root in another order",
    origin="class: benign",
    mechanism="division by the root in fp32 in place of a product with its inverse",
    cells=("llama/fp32/eager/none", "llama/bf16/sdpa/none"),
)
def _norm(patches: Patches) -> None:
    import torch

    def make(original: Any) -> Any:
        def forward(self: Any, hidden_states: Any) -> Any:
            if hidden_states.dtype == torch.float64:
                return original(self, hidden_states)
            patches.reached()
            wide = hidden_states.float()
            root = (wide.square().sum(-1, keepdim=True) / wide.shape[-1] + self.variance_epsilon).sqrt()
            return self.weight * (wide / root).to(hidden_states.dtype)

        return forward

    patches.method("transformers.models.llama.modeling_llama:LlamaRMSNorm.forward", make)
