"""Faults of attention scores: scale, softcap, sinks, ALiBi, relative positions."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches
from compat.faults.seams import Call, before_attention, eager


@fault(
    "opt-scaled-twice",
    title="OPT divides by sqrt(head_dim) twice under SDPA",
    origin="huggingface/transformers#38277",
    mechanism="queries are scaled beforehand, and the explicit scaling of 1 is not handed on",
    cells=("opt/bf16/sdpa/none", "opt/fp32/sdpa-math/none"),
    seen_by=("agreement",),
    spared=("opt/bf16/eager/none", "gpt2/bf16/sdpa/none"),
)
def _opt_scaled_twice(patches: Patches) -> None:
    def change(call: Call) -> bool:
        if type(call.module).__name__ != "OPTAttention":
            return False
        call.rest["scaling"] = None
        return True

    before_attention(patches, change)


@fault(
    "sdpa-scale-dropped",
    title="SDPA does not divide by sqrt(head_dim)",
    origin="class: scores",
    mechanism="scale=1 where the family's scaling belongs",
    cells=("qwen3/bf16/sdpa/none", "bert/fp32/sdpa/none"),
    seen_by=("agreement",),
    spared=("llama/bf16/eager/none",),
)
def _scale_dropped(patches: Patches) -> None:
    def change(call: Call) -> bool:
        call.rest["scaling"] = 1.0
        return True

    before_attention(patches, change)


@fault(
    "query-scale-from-head-dim",
    title="a family's own query scale is replaced by 1/sqrt(head_dim)",
    origin="class: scores",
    mechanism="sqrt of the wrong width: head_dim where query_pre_attn_scalar belongs",
    cells=("gemma3/bf16/sdpa/none", "gemma2/fp32/eager/none"),
    seen_by=("agreement",),
    spared=("llama/bf16/sdpa/none",),
)
def _wrong_width(patches: Patches) -> None:
    def change(call: Call) -> bool:
        changed = getattr(call.module.config, "query_pre_attn_scalar", None) is not None
        if changed:
            call.rest["scaling"] = call.query.shape[-1] ** -0.5
        return changed

    before_attention(patches, change, "transformers.integrations.sdpa_attention:sdpa_attention_forward")
    before_attention(patches, change, eager("gemma2"))


@fault(
    "scale-one-percent",
    title="the softmax scale is 1% too large",
    origin="class: scores",
    mechanism="a constant rounded on its way to the kernel",
    cells=("llama/fp16/sdpa/none", "gpt2/fp32/sdpa/none"),
    seen_by=("agreement",),
    spared=("llama/fp32/eager/none",),
)
def _one_percent(patches: Patches) -> None:
    def change(call: Call) -> bool:
        own = call.rest.get("scaling")
        call.rest["scaling"] = 1.01 * (call.query.shape[-1] ** -0.5 if own is None else own)
        return True

    before_attention(patches, change)


@fault(
    "scale-lost-in-decode",
    title="decoding steps take the default scale",
    origin="class: scores",
    mechanism="scaling is not handed on for a single query",
    cells=("gemma3/fp32/sdpa/none", "t5/fp32/sdpa/none"),
    seen_by=("cache", "generation"),
    spared=("gemma3/fp32/eager/none",),
)
def _scale_in_decode(patches: Patches) -> None:
    def change(call: Call) -> bool:
        if not call.decoding:
            return False
        call.rest["scaling"] = None
        return True

    before_attention(patches, change)


@fault(
    "t5-scaled",
    title="T5 scores are divided by sqrt(head_dim), which its weights already hold",
    origin="class: scores",
    mechanism="SDPA's default scale takes the place of the explicit 1",
    cells=("t5/bf16/sdpa/none",),
    seen_by=("agreement",),
    spared=("t5/bf16/eager/none", "bart/bf16/sdpa/none"),
)
def _t5_scaled(patches: Patches) -> None:
    def change(call: Call) -> bool:
        if type(call.module).__name__ != "T5Attention":
            return False
        call.rest["scaling"] = None
        return True

    before_attention(patches, change)


@fault(
    "softcap-dropped",
    title="attention scores are not capped",
    origin="class: scores",
    mechanism="the softcap is not handed to eager attention",
    cells=("gemma2/bf16/eager/none",),
    seen_by=("agreement",),
    spared=("gemma3/fp32/eager/none",),
)
def _softcap_dropped(patches: Patches) -> None:
    def change(call: Call) -> bool:
        return call.rest.pop("softcap", None) is not None

    before_attention(patches, change, eager("gemma2"))


@fault(
    "softcap-after-mask",
    title="the cap also lifts what the mask had forbidden",
    origin="class: scores",
    mechanism="the mask is added before tanh, which makes -softcap of its minimum",
    cells=("gemma2/fp32/eager/none", "gemma2/bf16/eager/none"),
    seen_by=("agreement",),
    spared=("llama/bf16/sdpa/none",),
)
def _softcap_after_mask(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **rest: Any) -> Any:
            import torch

            cap, scaling = rest.get("softcap"), rest.get("scaling")
            if cap is None or attention_mask is None or query.dtype == torch.float64:
                return original(module, query, key, value, attention_mask, **rest)
            patches.reached()
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            scores = query @ key.transpose(2, 3) * scaling + attention_mask
            weights = (torch.tanh(scores / cap) * cap).float().softmax(-1).to(query.dtype)
            return (weights @ value).transpose(1, 2).contiguous(), weights

        return forward

    patches.function(eager("gemma2"), make)


@fault(
    "sinks-dropped",
    title="attention sinks take no part in the softmax",
    origin="class: scores",
    mechanism="the learned column is -inf",
    cells=("gpt_oss/bf16/eager/none",),
    seen_by=("agreement",),
    spared=("mistral/bf16/eager/none",),
)
def _sinks_dropped(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(module: Any, query: Any, *arguments: Any, **keywords: Any) -> Any:
            import torch

            patches.reached()
            own = module.sinks.data
            module.sinks.data = torch.full_like(own, torch.finfo(own.dtype).min)
            try:
                return original(module, query, *arguments, **keywords)
            finally:
                module.sinks.data = own

        return forward

    patches.function(eager("gpt_oss"), make)


@fault(
    "alibi-slopes-wrong",
    title="ALiBi slopes are those of twice as many heads",
    origin="class: scores",
    mechanism="the base of the slopes is taken from the wrong number of heads",
    cells=("bloom/bf16/eager/none",),
    seen_by=("agreement",),
    spared=("llama/bf16/sdpa/none",),
)
def _alibi_slopes(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def slopes(num_heads: int, *rest: Any, **more: Any) -> Any:
            patches.reached()
            return original(2 * num_heads, *rest, **more)[:num_heads]

        return slopes

    patches.function("transformers.models.bloom.modeling_bloom:_get_alibi_slopes", make)


@fault(
    "relative-bias-shifted",
    title="T5's relative positions are one off",
    origin="class: scores",
    mechanism="the distance that is put into a bucket is key - query + 1",
    cells=("t5/bf16/sdpa/none", "t5/fp32/eager/none"),
    seen_by=("agreement",),
    spared=("bart/bf16/sdpa/none",),
)
def _relative_bias(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def bucket(relative_position: Any, *rest: Any, **more: Any) -> Any:
            patches.reached()
            return original(relative_position + 1, *rest, **more)

        return bucket

    patches.method("transformers.models.t5.modeling_t5:T5Attention._relative_position_bucket", make)


@fault(
    "qk-norm-dropped",
    title="keys are not normalised before they meet the queries",
    origin="class: scores",
    mechanism="k_norm gives back what it got, on every path alike",
    cells=("qwen3/bf16/eager/none", "qwen3/fp32/sdpa/none"),
    seen_by=("agreement",),
    spared=("qwen2/bf16/eager/none",),
)
def _qk_norm(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(self: Any, *arguments: Any, **keywords: Any) -> Any:
            def unchanged(x: Any) -> Any:
                patches.reached()
                return x

            self.k_norm.forward = unchanged
            try:
                return original(self, *arguments, **keywords)
            finally:
                del self.k_norm.forward

        return forward

    patches.method("transformers.models.qwen3.modeling_qwen3:Qwen3Attention.forward", make)


@fault(
    "final-softcap-dropped",
    title="logits are not capped",
    origin="class: scores",
    mechanism="final_logit_softcapping of the config is taken for none, on every path alike",
    cells=("gemma2/bf16/eager/none",),
    seen_by=("agreement",),
    spared=("llama/bf16/sdpa/none",),
)
def _final_softcap(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(self: Any, *arguments: Any, **keywords: Any) -> Any:
            own, self.config.final_logit_softcapping = self.config.final_logit_softcapping, None
            patches.reached()
            try:
                return original(self, *arguments, **keywords)
            finally:
                self.config.final_logit_softcapping = own

        return forward

    patches.method("transformers.models.gemma2.modeling_gemma2:Gemma2ForCausalLM.forward", make)
