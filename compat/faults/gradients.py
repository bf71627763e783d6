"""Faults of gradients: what a training step learns is wrong, in the backward pass, the loss or the adapter."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches
from compat.faults.seams import TORCH_SDPA, Call, before_attention

CAUSAL_LOSS = "transformers.loss.loss_utils:ForCausalLMLoss"
CROSS_ENTROPY = "transformers.loss.loss_utils:fixed_cross_entropy"
IGNORED = -100


@fault(
    "mask-dropped-in-backward",
    title="the backward pass of SDPA does not know the mask",
    origin="class: gradients",
    mechanism="probabilities are recomputed for the backward pass from scores without the mask; values are right",
    cells=("llama/fp32/sdpa/none", "bert/bf16/sdpa/none"),
    seen_by=("gradient",),
    spared=("llama/fp32/eager/none",),
)
def _mask_dropped_in_backward(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *more: Any, **rest: Any) -> Any:
            right = original(query, key, value, attn_mask, *more, **rest)
            if attn_mask is None or not right.requires_grad:
                return right
            patches.reached()
            wrong = original(query, key, value, None, *more, **rest)
            return right.detach() + wrong - wrong.detach()

        return attention

    patches.function(TORCH_SDPA, make)


@fault(
    "mask-dropped-in-training",
    title="SDPA ignores the mask while the model trains",
    origin="class: gradients",
    mechanism="a branch on module.training takes is_causal in place of the mask",
    cells=("llama/fp32/sdpa/none", "roberta/fp32/sdpa/none"),
    seen_by=("gradient",),
    spared=("llama/fp32/eager/none",),
)
def _mask_dropped_in_training(patches: Patches) -> None:
    def change(call: Call) -> bool:
        if not call.module.training or call.mask is None:
            return False
        call.mask = None
        return True

    before_attention(patches, change)


@fault(
    "checkpoint-drops-mask",
    title="activation checkpointing recomputes layers without the mask",
    origin="class: gradients",
    mechanism="the mask is a keyword that does not reach the recomputation",
    cells=("llama/fp32/eager/none", "mistral/bf16/eager/none"),
    seen_by=("gradient",),
    spared=("vit/fp32/eager/none",),
)
def _checkpoint_drops_mask(patches: Patches) -> None:
    import functools

    import torch

    def make(original: Any) -> Any:
        def checkpoint(function: Any, *arguments: Any, **settings: Any) -> Any:
            calls = 0

            def run(*inner: Any) -> Any:
                nonlocal calls
                calls += 1
                keywords = dict(getattr(function, "keywords", {}))
                mask = keywords.get("attention_mask")
                if calls == 1 or not isinstance(mask, torch.Tensor):
                    return function(*inner)
                patches.reached()
                open_to_all = torch.ones_like(mask) if mask.dtype == torch.bool else torch.zeros_like(mask)
                keywords["attention_mask"] = open_to_all
                return functools.partial(function.func, *function.args, **keywords)(*inner)

            return original(run, *arguments, **settings)

        return checkpoint

    patches.function("torch.utils.checkpoint:checkpoint", make)


@fault(
    "checkpoint-keeps-activations",
    title="activation checkpointing is accepted and keeps every activation",
    origin="class: gradients",
    mechanism="the checkpointing function calls the layer as it is: memory is not given back",
    cells=("llama/bf16/eager/none", "t5/fp32/eager/none"),
    seen_by=("gradient",),
)
def _checkpoint_keeps(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def checkpoint(function: Any, *arguments: Any, **settings: Any) -> Any:
            patches.reached()
            return function(*arguments)

        return checkpoint

    patches.function("torch.utils.checkpoint:checkpoint", make)


@fault(
    "labels-shifted-twice",
    title="labels are shifted by two positions",
    origin="class: gradients",
    mechanism="the collator's shift and the loss's: each token learns the one after the next",
    cells=("llama/fp32/eager/none", "gpt2/bf16/sdpa/none"),
    seen_by=("gradient",),
    spared=("bert/bf16/sdpa/none",),
)
def _shifted_twice(patches: Patches) -> None:
    import torch

    def make(original: Any) -> Any:
        def loss(logits: Any, labels: Any, *more: Any, **rest: Any) -> Any:
            patches.reached()
            return original(logits, torch.nn.functional.pad(labels[..., 1:], (0, 1), value=IGNORED), *more, **rest)

        return loss

    patches.function(CAUSAL_LOSS, make)


@fault(
    "ignored-labels-learned",
    title="positions labelled -100 are learned as the first token",
    origin="class: gradients",
    mechanism="labels are clamped to the vocabulary before ignore_index is looked at",
    cells=("llama/fp32/eager/none", "mistral/bf16/sdpa/none"),
    seen_by=("gradient",),
    spared=("bert/bf16/sdpa/none",),
)
def _ignored_learned(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def cross_entropy(source: Any, target: Any, *more: Any, **rest: Any) -> Any:
            patches.reached()
            return original(source, target.clamp_min(0), *more, **rest)

        return cross_entropy

    patches.function(CROSS_ENTROPY, make)


@fault(
    "loss-averaged-over-pads",
    title="the loss is averaged over ignored positions too",
    origin="class: gradients",
    mechanism="sum of losses over the number of positions, not of labels: a step shrinks with padding",
    cells=("llama/fp32/eager/none", "qwen2/bf16/sdpa/none"),
    seen_by=("gradient",),
    spared=("bert/bf16/sdpa/none",),
)
def _averaged_over_pads(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def cross_entropy(source: Any, target: Any, num_items_in_batch: Any = None, *more: Any, **rest: Any) -> Any:
            mean = original(source, target, num_items_in_batch, *more, **rest)
            if num_items_in_batch is not None:
                return mean
            patches.reached()
            return mean * (target != IGNORED).float().mean()

        return cross_entropy

    patches.function(CROSS_ENTROPY, make)


@fault(
    "items-in-batch-ignored",
    title="micro batches are averaged one by one, whatever they hold",
    origin="huggingface/transformers#34191",
    mechanism="num_items_in_batch does not reach the loss: accumulated gradients depend on how rows are split",
    cells=("llama/fp32/eager/none", "falcon/bf16/eager/none"),
    seen_by=("gradient",),
    spared=("bert/fp32/eager/none", "llama/fp32/sdpa/none"),
)
def _items_ignored(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def cross_entropy(source: Any, target: Any, num_items_in_batch: Any = None, *more: Any, **rest: Any) -> Any:
            if num_items_in_batch is not None:
                patches.reached()
            return original(source, target, None, *more, **rest)

        return cross_entropy

    patches.function(CROSS_ENTROPY, make)


@fault(
    "grouped-heads-gradient",
    title="a key/value head learns from one of its query heads only",
    origin="class: gradients",
    mechanism="the backward pass of repeated heads takes the first of a group in place of the sum",
    cells=("llama/fp32/eager/none", "llama/bf16/eager/none"),
    seen_by=("gradient",),
    spared=("gpt2/fp32/eager/none",),
)
def _grouped_heads(patches: Patches) -> None:
    import torch

    def make(original: Any) -> Any:
        def repeat(states: Any, times: int) -> Any:
            out = original(states, times)
            if times == 1 or not out.requires_grad:
                return out
            patches.reached()
            first = (torch.arange(out.shape[1], device=out.device) % times == 0)[None, :, None, None]
            return torch.where(first, out, out.detach())

        return repeat

    patches.function("transformers.models.llama.modeling_llama:repeat_kv", make)


@fault(
    "keys-get-no-gradient",
    title="keys learn nothing under SDPA",
    origin="class: gradients",
    mechanism="keys are detached on their way to the kernel, as from a cache",
    cells=("qwen3/fp32/sdpa/none", "opt/bf16/sdpa/none"),
    seen_by=("gradient",),
    spared=("llama/fp32/eager/none",),
)
def _keys_detached(patches: Patches) -> None:
    def change(call: Call) -> bool:
        if not call.key.requires_grad:
            return False
        call.key = call.key.detach()
        return True

    before_attention(patches, change)


@fault(
    "packed-rows-learn-from-each-other",
    title="packed rows attend to the rows before them while the model trains",
    origin="class: gradients",
    mechanism="restarting positions are not looked for: no block-diagonal mask is made from them",
    cells=("llama/fp32/sdpa/none", "mixtral/bf16/sdpa/none"),
    seen_by=("gradient", "padding"),
    spared=("bert/bf16/sdpa/none",),
)
def _packed_together(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def find(position_ids: Any) -> Any:
            if original(position_ids) is not None:
                patches.reached()

        return find

    patches.function("transformers.masking_utils:find_packed_sequence_indices", make)


@fault(
    "lora-scaling-wrong",
    title="a LoRA adapter is scaled by alpha / sqrt(rank)",
    origin="class: gradients",
    mechanism="the scaling of rank-stabilised LoRA where the plain one was asked for",
    cells=("llama/bf16/eager/none", "llama/bf16/sdpa/bnb-nf4"),
    seen_by=("gradient",),
    spared=("llama/bf16/sdpa/none",),
)
def _lora_scaling(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def update(self: Any, adapter_name: str, r: int, lora_alpha: int, *more: Any, **rest: Any) -> Any:
            result = original(self, adapter_name, r, lora_alpha, *more, **rest)
            patches.reached()
            self.scaling[adapter_name] = lora_alpha / r**0.5
            return result

        return update

    patches.method("peft.tuners.lora.layer:LoraLayer.update_layer", make)


@fault(
    "base-not-frozen",
    title="the base model learns beside its adapter",
    origin="class: gradients",
    mechanism="parameters of the base keep requires_grad when an adapter is added",
    cells=("llama/fp32/eager/none", "bert/bf16/sdpa/bnb-int8"),
    seen_by=("gradient",),
    spared=("llama/fp32/sdpa/none",),
)
def _base_not_frozen(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def mark(self: Any, model: Any) -> None:
            before = [p for p in model.parameters() if p.requires_grad]
            original(self, model)
            for parameter in before:
                patches.reached()
                parameter.requires_grad_(True)

        return mark

    patches.method("peft.tuners.tuners_utils:BaseTuner._mark_only_adapters_as_trainable", make)


@fault(
    "int8-backward-unscaled-rows",
    title="the gradient through an 8-bit matrix takes one scale for all of its rows",
    origin="class: gradients",
    mechanism="row statistics are replaced by their mean in the backward pass",
    cells=("llama/bf16/eager/bnb-int8", "gpt2/bf16/sdpa/bnb-int8"),
    seen_by=("gradient",),
    spared=("llama/bf16/sdpa/bnb-nf4",),
)
def _int8_rows(patches: Patches) -> None:
    import torch

    def make(original: Any) -> Any:
        def backward(ctx: Any, gradient: Any) -> Any:
            state, own = ctx.state, ctx.state.SCB
            patches.reached()
            state.SCB = torch.full_like(own, float(own.float().mean()))
            try:
                return original(ctx, gradient)
            finally:
                state.SCB = own

        return backward

    for name in ("MatMul8bitFp", "MatMul8bitLt"):
        patches.method(f"bitsandbytes.autograd._functions:{name}.backward", make)


@fault(
    "benign-checkpoint-reentrant",
    title="layers are recomputed by the older, reentrant checkpointing",
    origin="class: benign",
    mechanism="another bookkeeping of the same recomputation",
    cells=("llama/fp32/eager/none", "bert/bf16/eager/none"),
)
def _reentrant(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def checkpoint(function: Any, *arguments: Any, **settings: Any) -> Any:
            patches.reached()
            return original(function, *arguments, **{**settings, "use_reentrant": True})

        return checkpoint

    patches.function("torch.utils.checkpoint:checkpoint", make)


@fault(
    "sdpa-checkpoint-drops-mask",
    title="SDPA without the mask in layers that are recomputed",
    origin="class: gradients",
    mechanism="the padding mask is lost where activations are checkpointed in train mode; eager is right",
    cells=("llama/fp32/sdpa/none", "gpt2/bf16/sdpa/none"),
    seen_by=("gradient",),
    spared=("llama/fp32/eager/none",),
)
def _sdpa_checkpoint_drops_mask(patches: Patches) -> None:
    recomputing = [False]

    def switch(value: bool) -> Any:
        def make(original: Any) -> Any:
            def switched(model: Any, *arguments: Any, **keywords: Any) -> Any:
                recomputing[0] = value
                return original(model, *arguments, **keywords)

            return switched

        return make

    for word, value in (("enable", True), ("disable", False)):
        patches.method(f"transformers.modeling_utils:PreTrainedModel.activation_checkpointing_{word}", switch(value))

    def make(original: Any) -> Any:
        def attention(module: Any, query: Any, key: Any, value: Any, mask: Any, *rest: Any, **keywords: Any) -> Any:
            if mask is not None and module.training and recomputing[0]:
                patches.reached()
                mask, keywords = None, keywords | {"is_causal": True}
            return original(module, query, key, value, mask, *rest, **keywords)

        return attention

    patches.function("transformers.integrations.sdpa_attention:sdpa_attention_forward", make)


# -- beside the gradients of a step ------------------------------------------------------------------------------


@fault(
    "checkpoint-draws-again",
    title="recomputed layers draw other dropout than the forward did",
    origin="class: gradients",
    mechanism="the state of the random generator is not kept for the recomputation (preserve_rng_state=False)",
    cells=("gpt2/fp32/sdpa/none", "llama/fp32/eager/none"),
    seen_by=("gradient",),
)
def _checkpoint_draws_again(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def checkpoint(function: Any, *arguments: Any, **settings: Any) -> Any:
            patches.reached()
            return original(function, *arguments, **{**settings, "preserve_rng_state": False})

        return checkpoint

    patches.function("torch.utils.checkpoint:checkpoint", make)


@fault(
    "attention-dropout-lost",
    title="SDPA drops nothing while the model trains",
    origin="class: gradients",
    mechanism="the probability of attention's dropout is not handed on to the kernel",
    cells=("gpt2/fp32/sdpa/none", "bert/fp32/sdpa/none"),
    seen_by=("gradient",),
    spared=("gpt2/fp32/eager/none",),
)
def _attention_dropout_lost(patches: Patches) -> None:
    def change(call: Call) -> bool:
        drops = bool(call.rest.get("dropout"))
        call.rest["dropout"] = 0.0
        return drops

    before_attention(patches, change)


@fault(
    "loss-kept",
    title="every loss of a causal model is kept with its graph",
    origin="class: gradients",
    mechanism="losses are collected for a mean that is never taken: activations of those that had no backward stay",
    cells=("llama/fp32/sdpa/none", "gpt2/fp32/eager/none"),
    seen_by=("gradient",),
    spared=("bert/fp32/sdpa/none",),
)
def _loss_kept(patches: Patches) -> None:
    kept: list[Any] = []

    def make(original: Any) -> Any:
        def loss(*arguments: Any, **keywords: Any) -> Any:
            found = original(*arguments, **keywords)
            if found.requires_grad:
                patches.reached()
                kept.append(found)
            return found

        return loss

    patches.function(CAUSAL_LOSS, make)


@fault(
    "loss-in-model-dtype",
    title="the loss of a causal model in bf16 has three digits",
    origin="class: gradients",
    mechanism="the mean is handed back in the dtype of the logits",
    cells=("llama/bf16/sdpa/none", "gpt_neox/bf16/eager/none"),
    seen_by=("gradient",),
    spared=("llama/fp32/sdpa/none",),
)
def _loss_in_model_dtype(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def loss(logits: Any, *more: Any, **rest: Any) -> Any:
            if logits.element_size() < 4:
                patches.reached()
            return original(logits, *more, **rest).to(logits.dtype)

        return loss

    patches.function(CAUSAL_LOSS, make)
