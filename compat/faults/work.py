"""Faults of work: the result is right, and more was multiplied, copied, kept or waited for than it takes."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches
from compat.faults.seams import LINEAR, SDPA

GENERATION = "transformers.generation.utils:GenerationMixin"


@fault(
    "linear-computed-twice",
    title="a linear layer is computed twice",
    origin="class: work",
    mechanism="the product of the first linear of each MLP is thrown away and made again",
    cells=("llama/fp32/sdpa/none", "llama/fp32/eager/none"),
    seen_by=("work",),
    spared=("bert/fp32/sdpa/none",),
)
def _twice(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(self: Any, x: Any) -> Any:
            patches.reached()
            self.gate_proj(x)
            return original(self, x)

        return forward

    patches.method("transformers.models.llama.modeling_llama:LlamaMLP.forward", make)


@fault(
    "encoder-runs-twice",
    title="a forward runs its layers twice",
    origin="class: work",
    mechanism="the encoder is called once for its shape and once for its result",
    cells=("bert/fp32/sdpa/none", "bert/fp32/eager/none"),
    seen_by=("work",),
    spared=("llama/fp32/sdpa/none",),
)
def _encoder_twice(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(self: Any, *args: Any, **rest: Any) -> Any:
            patches.reached()
            original(self, *args, **rest)
            return original(self, *args, **rest)

        return forward

    patches.method("transformers.models.bert.modeling_bert:BertEncoder.forward", make)


@fault(
    "generate-ignores-use-cache",
    title="generate recomputes the whole sequence in each step",
    origin="class: work",
    mechanism="use_cache=True is overridden",
    cells=("llama/fp32/sdpa/none", "gpt2/fp32/eager/none"),
    seen_by=("work",),
    spared=("bert/fp32/sdpa/none",),
)
def _no_cache(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def generate(self: Any, *args: Any, **rest: Any) -> Any:
            patches.reached()
            return original(self, *args, **{**rest, "use_cache": False})

        return generate

    patches.method(f"{GENERATION}.generate", make)


@fault(
    "logits-for-every-position",
    title="generate computes the logits of the whole prompt",
    origin="class: work",
    mechanism="logits_to_keep is dropped on its way to the model",
    cells=("llama/fp32/sdpa/none", "llama/bf16/eager/none"),
    seen_by=("work",),
    spared=("bert/fp32/sdpa/none",),
)
def _all_logits(patches: Patches) -> None:
    def make(_: type, original: Any) -> Any:
        def forward(self: Any, *args: Any, **rest: Any) -> Any:
            if rest.get("logits_to_keep"):
                patches.reached()
                rest["logits_to_keep"] = 0
            return original(self, *args, **rest)

        return forward

    patches.classes("ForCausalLM", "forward", make)


@fault(
    "cross-attention-projected-anew",
    title="keys and values of cross-attention are projected anew in each step",
    origin="class: work",
    mechanism="the cache forgets that it holds them; the projections replace what was held",
    cells=("bart/fp32/sdpa/none", "t5/fp32/eager/none"),
    seen_by=("work",),
    spared=("llama/fp32/sdpa/none",),
)
def _cross(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def initialise(self: Any, *caches: Any) -> None:
            original(self, *caches)
            self.is_updated = _Forgetful(self, patches)

        return initialise

    patches.method("transformers.cache_utils:EncoderDecoderCache.__init__", make)


class _Forgetful(dict[int, bool]):
    """Says of every layer that its cross-attention is not cached, and empties it, so that it is filled anew."""

    def __init__(self, cache: Any, patches: Patches) -> None:
        super().__init__(cache.is_updated)
        self.cache = cache
        self.patches = patches

    def get(self, layer: int, default: Any = None) -> Any:
        held = self.cache.cross_attention_cache.layers
        if super().get(layer) and layer < len(held):
            self.patches.reached()
            kind = type(held[layer])
            held[layer] = kind()
            return False
        return super().get(layer, default)


@fault(
    "weights-cast-in-each-call",
    title="every linear layer of a 16-bit model casts its weight to fp32 in each call",
    origin="class: work",
    mechanism="input and weight are cast up, the output is cast back",
    cells=("llama/bf16/sdpa/none", "bert/bf16/eager/none"),
    seen_by=("work",),
    spared=("llama/fp32/sdpa/none",),
    device="cpu",
)
def _weights_cast(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def linear(input: Any, weight: Any, bias: Any = None) -> Any:
            if input.element_size() != 2 or not weight.is_floating_point():
                return original(input, weight, bias)
            patches.reached()
            wide = original(input.float(), weight.float(), None if bias is None else bias.float())
            return wide.to(input.dtype)

        return linear

    patches.function(LINEAR, make)


@fault(
    "generate-records-gradients",
    title="generate leaves autograd on and keeps every activation",
    origin="class: work",
    mechanism="the guard that switches gradients off is missing",
    cells=("llama/fp32/sdpa/none", "t5/fp32/sdpa/none"),
    seen_by=("work",),
    spared=("bert/fp32/sdpa/none",),
)
def _recording(patches: Patches) -> None:
    def make(original: Any) -> Any:
        inner = original.__wrapped__

        def generate(self: Any, *args: Any, **rest: Any) -> Any:
            patches.reached()
            return inner(self, *args, **rest)

        return generate

    patches.method(f"{GENERATION}.generate", make)


@fault(
    "cache-copied-in-each-step",
    title="generate copies the whole cache in each step",
    origin="class: work",
    mechanism="the cache is copied deeply before it is handed on",
    cells=("llama/bf16/sdpa/none", "gpt2/fp32/eager/none"),
    seen_by=("work",),
    spared=("bert/fp32/sdpa/none",),
)
def _cache_copied(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def update(self: Any, outputs: Any, model_kwargs: Any, *more: Any, **rest: Any) -> Any:
            import copy

            found = original(self, outputs, model_kwargs, *more, **rest)
            if found.get("past_key_values") is not None:
                patches.reached()
                found["past_key_values"] = copy.deepcopy(found["past_key_values"])
            return found

        return update

    patches.method(f"{GENERATION}._update_model_kwargs_for_generation", make)


@fault(
    "outputs-kept",
    title="the model keeps the logits of every call",
    origin="class: work",
    mechanism="a list at module level holds what forward returned",
    cells=("llama/fp32/sdpa/none", "llama/fp32/eager/none"),
    seen_by=("work",),
    spared=("bert/fp32/sdpa/none",),
)
def _kept(patches: Patches) -> None:
    kept: list[Any] = []

    def make(original: Any) -> Any:
        def forward(self: Any, *args: Any, **rest: Any) -> Any:
            output = original(self, *args, **rest)
            patches.reached()
            kept.append(output.logits.detach())
            return output

        return forward

    patches.method("transformers.models.llama.modeling_llama:LlamaForCausalLM.forward", make)


@fault(
    "logits-cast-to-fp32-and-back",
    title="all logits of a 16-bit model pass through fp32",
    origin="class: work",
    mechanism="logits are cast up after the output head and down again before they are returned",
    cells=("llama/bf16/sdpa/none",),
    seen_by=("work",),
    spared=("llama/fp32/sdpa/none",),
)
def _logits_cast(patches: Patches) -> None:
    def make(_: type, original: Any) -> Any:
        def forward(self: Any, *args: Any, **rest: Any) -> Any:
            output = original(self, *args, **rest)
            if output.logits.element_size() == 2:
                patches.reached()
                output.logits = output.logits.float().to(output.logits.dtype)
            return output

        return forward

    patches.classes("ForCausalLM", "forward", make)


@fault(
    "host-waits-in-each-layer",
    title="every attention layer waits for the device",
    origin="class: work",
    mechanism="the layer asks for the value of one element of its mask or query",
    cells=("llama/fp32/sdpa/none", "t5/fp32/sdpa/none"),
    seen_by=("work",),
    spared=("llama/fp32/eager/none",),
)
def _waits(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def forward(module: Any, query: Any, key: Any, value: Any, *more: Any, **rest: Any) -> Any:
            patches.reached()
            query.flatten()[0].item()
            return original(module, query, key, value, *more, **rest)

        return forward

    patches.function(SDPA, make)


@fault(
    "window-cached-in-full",
    title="a sliding window's cache holds every token, and attention reads them all",
    origin="class: work",
    mechanism="the cache is not told of the window; the mask hides what it should have dropped",
    cells=("mistral/fp32/sdpa/none", "mistral/fp32/eager/none"),
    seen_by=("work",),
    spared=("llama/fp32/sdpa/none",),
)
def _window(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def initialise(self: Any, ddp_cache_data: Any = None, config: Any = None, *more: Any, **rest: Any) -> None:
            if getattr(config, "sliding_window", None):
                patches.reached()
                config = None
            original(self, ddp_cache_data, config, *more, **rest)

        return initialise

    patches.method("transformers.cache_utils:DynamicCache.__init__", make)
