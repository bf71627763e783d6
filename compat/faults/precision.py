"""Faults of precision: an inner step in a narrower format than it is to have, and constants of the arithmetic."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches
from compat.faults.seams import LINEAR, TORCH_SDPA, Call, after_attention, eager, plain_linear

LLAMA = "transformers.models.llama.modeling_llama"


@fault(
    "rmsnorm-half-variance",
    title="RMSNorm squares in half precision: large activations overflow",
    origin="pytorch/pytorch#133085",
    mechanism="the cast to fp32 before the mean of squares is missing",
    cells=("llama/fp16/eager/none", "llama/fp16/sdpa/none"),
    seen_by=("agreement",),
    spared=("gpt2/fp32/eager/none",),
)
def _half_variance(patches: Patches) -> None:
    import torch

    def make(original: Any) -> Any:
        def forward(self: Any, hidden_states: Any) -> Any:
            if hidden_states.dtype != torch.float16:
                return original(self, hidden_states)
            patches.reached()
            variance = (hidden_states * hidden_states).mean(-1, keepdim=True)
            turned = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
            return self.weight * turned.to(hidden_states.dtype)

        return forward

    patches.method(f"{LLAMA}:LlamaRMSNorm.forward", make)


@fault(
    "layernorm-half-variance",
    title="LayerNorm computes mean and variance in the input's format",
    origin="class: precision",
    mechanism="E[x^2] - E[x]^2 in 16 bit, every step rounded",
    cells=("gpt2/fp16/eager/none", "bert/bf16/eager/none"),
    seen_by=("agreement",),
    spared=("llama/bf16/sdpa/none",),
)
def _layer_norm(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def layer_norm(x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
            if x.element_size() != 2 or weight is None:
                return original(x, shape, weight, bias, eps)
            patches.reached()
            mean = x.mean(-1, keepdim=True)
            variance = (x * x).mean(-1, keepdim=True) - mean * mean
            return (x - mean) * (variance + eps).rsqrt() * weight + bias

        return layer_norm

    patches.function("torch.nn.functional:layer_norm", make)


@fault(
    "softmax-in-half",
    title="eager attention's softmax runs in 16 bit throughout",
    origin="class: precision",
    mechanism="exponentials and their sum are rounded to the input's format, token by token",
    cells=("llama/bf16/eager/none",),
    seen_by=("agreement",),
    spared=("gpt2/bf16/sdpa/none",),
)
def _softmax(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **rest: Any) -> Any:
            if query.element_size() != 2:
                return original(module, query, key, value, attention_mask, **rest)
            patches.reached()
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            scores = query @ key.transpose(2, 3) * rest["scaling"]
            scores = scores if attention_mask is None else scores + attention_mask
            weights = (scores - scores.amax(-1, keepdim=True)).exp()
            total = weights[..., :1] * 0
            for i in range(weights.shape[-1]):
                total = total + weights[..., i : i + 1]
            weights = weights / total
            return (weights @ value).transpose(1, 2).contiguous(), weights

        return forward

    patches.function(eager("llama"), make)


@fault(
    "rotary-in-bf16",
    title="rotary angles are made in bf16",
    origin="class: precision",
    mechanism="frequencies are cast down with the weights, and angles of later positions with them",
    cells=("llama/fp32/eager/none", "llama/bf16/eager/none"),
    seen_by=("agreement",),
    spared=("gpt2/bf16/sdpa/none",),
)
def _rotary(patches: Patches) -> None:
    import torch

    def make(original: Any) -> Any:
        def forward(self: Any, x: Any, position_ids: Any) -> Any:
            if x.dtype == torch.float64:
                return original(self, x, position_ids)
            patches.reached()
            own = self.inv_freq
            self.inv_freq = own.to(torch.bfloat16)
            try:
                return original(self, x, position_ids)
            finally:
                self.inv_freq = own

        return forward

    patches.method(f"{LLAMA}:LlamaRotaryEmbedding.forward", make)


@fault(
    "linear-accumulates-in-half",
    title="products sum in 16 bit",
    origin="class: precision",
    mechanism="the inner dimension is summed in 16 parts, each partial sum rounded to the input's format",
    cells=("llama/fp16/eager/none", "opt/bf16/eager/none"),
    seen_by=("agreement",),
    spared=("llama/fp32/eager/none",),
)
def _accumulate(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def linear(x: Any, weight: Any, bias: Any = None) -> Any:
            if not plain_linear(weight, x) or weight.element_size() != 2 or weight.shape[1] % 16:
                return original(x, weight, bias)
            patches.reached()
            total = None
            for part, columns in zip(x.chunk(16, -1), weight.chunk(16, 1), strict=True):
                product = original(part, columns)
                total = product if total is None else total + product
            return total if bias is None else total + bias

        return linear

    patches.function(LINEAR, make)


@fault(
    "sdpa-fp32-in-bf16",
    title="fp32 attention is computed in bf16",
    origin="class: precision",
    mechanism="queries, keys and values are cast down for the kernel, the result cast back",
    cells=("llama/fp32/sdpa/none", "bert/fp32/sdpa-flash/none"),
    seen_by=("agreement",),
    spared=("llama/fp32/eager/none", "llama/bf16/sdpa/none"),
)
def _fp32_in_bf16(patches: Patches) -> None:
    import torch

    def make(original: Any) -> Any:
        def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *more: Any, **rest: Any) -> Any:
            if query.dtype != torch.float32:
                return original(query, key, value, attn_mask, *more, **rest)
            patches.reached()
            low = torch.bfloat16
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.to(low)
            return original(query.to(low), key.to(low), value.to(low), attn_mask, *more, **rest).float()

        return attention

    patches.function(TORCH_SDPA, make)


@fault(
    "linear-fp32-in-tf32",
    title="fp32 products keep ten bits of mantissa",
    origin="class: precision",
    mechanism="both factors are rounded as TF32 rounds them, on every backend",
    cells=("llama/fp32/eager/none", "bert/fp32/sdpa/none"),
    seen_by=("agreement",),
    spared=("llama/bf16/eager/none",),
)
def _tf32(patches: Patches) -> None:
    import torch

    def rounded(x: Any) -> Any:
        bits = x.contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)

    def make(original: Any) -> Any:
        def linear(x: Any, weight: Any, bias: Any = None) -> Any:
            if not plain_linear(weight, x) or weight.dtype != torch.float32:
                return original(x, weight, bias)
            patches.reached()
            return original(rounded(x), rounded(weight), bias)

        return linear

    patches.function(LINEAR, make)


@fault(
    "probabilities-in-fp8",
    title="SDPA rounds probabilities to fp8",
    origin="class: precision",
    mechanism="softmax weights are cast to float8_e4m3 before they meet the values",
    cells=("llama/bf16/sdpa/none", "bert/bf16/sdpa/none"),
    seen_by=("agreement",),
    spared=("llama/bf16/eager/none",),
)
def _fp8(patches: Patches) -> None:
    import torch

    def change(output: Any, call: Call) -> Any:
        if call.query.element_size() != 2 or (call.mask is not None and call.mask.dtype != torch.bool):
            return None
        query, key, value = call.query.float(), call.key.float(), call.value.float()
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scaling = call.rest.get("scaling")
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        allowed = call.mask
        if allowed is None and scores.shape[-2] > 1 and getattr(call.module, "is_causal", True):
            allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if allowed is not None:
            scores = scores.masked_fill(~allowed, torch.finfo(torch.float32).min)
        weights = scores.softmax(-1).to(torch.float8_e4m3fn).float()
        return (weights @ value).transpose(1, 2).to(output.dtype).contiguous()

    after_attention(patches, change)


@fault(
    "logits-in-bf16",
    title="logits are rounded to bf16 and handed out as fp32",
    origin="class: precision",
    mechanism="the head's result is cast down and back",
    cells=("llama/fp32/eager/none", "llama/fp32/sdpa/none"),
    seen_by=("agreement",),
    spared=("gpt2/fp32/eager/none",),
)
def _logits(patches: Patches) -> None:
    import torch

    def make(original: Any) -> Any:
        def forward(self: Any, *arguments: Any, **keywords: Any) -> Any:
            output = original(self, *arguments, **keywords)
            if output.logits.dtype == torch.float32:
                patches.reached()
                output.logits = output.logits.to(torch.bfloat16).float()
            return output

        return forward

    patches.method(f"{LLAMA}:LlamaForCausalLM.forward", make)


@fault(
    "norm-eps-wrong",
    title="RMSNorm adds another epsilon than the config's",
    origin="class: precision",
    mechanism="eps of 0.01 on every path alike",
    cells=("llama/fp32/eager/none", "llama/bf16/sdpa/none"),
    seen_by=("agreement",),
    spared=("gpt2/bf16/eager/none",),
)
def _norm_eps(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(self: Any, hidden_states: Any) -> Any:
            own, self.variance_epsilon = self.variance_epsilon, 1e-2
            patches.reached()
            try:
                return original(self, hidden_states)
            finally:
                self.variance_epsilon = own

        return forward

    patches.method(f"{LLAMA}:LlamaRMSNorm.forward", make)


@fault(
    "gate-and-up-swapped",
    title="the activation is applied to the wrong half of the MLP",
    origin="class: precision",
    mechanism="gate_proj and up_proj change places, on every path alike",
    cells=("llama/bf16/eager/none", "llama/fp32/sdpa/none"),
    seen_by=("agreement",),
    spared=("gpt2/bf16/sdpa/none",),
)
def _gate_and_up(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(self: Any, x: Any) -> Any:
            patches.reached()
            return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))

        return forward

    patches.method(f"{LLAMA}:LlamaMLP.forward", make)


@fault(
    "gelu-approximated",
    title="GELU is its tanh approximation where the config asks for the exact one",
    origin="class: precision",
    mechanism="an error of up to 0.0005 an activation, on every path alike",
    cells=("bert/fp32/eager/none", "bert/bf16/sdpa/none"),
    seen_by=("agreement",),
    spared=("llama/bf16/sdpa/none",),
)
def _gelu(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def gelu(x: Any, approximate: str = "none") -> Any:
            if approximate == "none":
                patches.reached()
            return original(x, approximate="tanh")

        return gelu

    patches.function("torch.nn.functional:gelu", make)


@fault(
    "embedding-scale-dropped",
    title="embeddings are not multiplied by sqrt(hidden_size)",
    origin="class: precision",
    mechanism="a family's normaliser is left out, on every path alike",
    cells=("gemma3/bf16/eager/none", "gemma3/fp32/sdpa/none"),
    seen_by=("agreement",),
    spared=("llama/bf16/sdpa/none",),
)
def _embedding_scale(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(self: Any, *arguments: Any, **keywords: Any) -> Any:
            patches.reached()
            scaled = original(self, *arguments, **keywords)
            return scaled / self.embed_scale.to(scaled.dtype)

        return forward

    patches.method("transformers.models.gemma3.modeling_gemma3:Gemma3TextScaledWordEmbedding.forward", make)
