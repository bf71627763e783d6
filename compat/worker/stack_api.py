"""Every difference between library versions, here and nowhere else.

In: the installed torch and transformers. Out: functions with one meaning on every stack (transformers 4.45 to 5.23,
torch 2.5 to 2.13).
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.metadata
import inspect
import logging
import re
import types
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
import transformers

from compat.worker import quantizers


def version_of(distribution: str) -> tuple[int, ...]:
    """Release numbers of an installed distribution, e.g. (5, 23, 0); () when it is not installed."""
    try:
        text = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ()
    numbers = []
    for part in text.split("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


TRANSFORMERS = version_of("transformers")


CAUSAL_TASKS = ("causal-lm", "image-text-to-text")
"""Tasks whose output at a position is judged by the label of the next one."""


def dtype_argument(dtype: torch.dtype | str) -> dict[str, torch.dtype | str]:
    """The keyword that `from_pretrained` takes for the dtype: `dtype` since 4.56, `torch_dtype` before."""
    return {"dtype" if TRANSFORMERS >= (4, 56) else "torch_dtype": dtype}


def auto_class(task: str) -> Any:
    """The AutoModel class of a task. Raises KeyError for a task that is not in the table."""
    return getattr(
        transformers,
        {
            "causal-lm": "AutoModelForCausalLM",
            "masked-lm": "AutoModelForMaskedLM",
            "seq2seq-lm": "AutoModelForSeq2SeqLM",
            "feature-extraction": "AutoModel",
            "image-classification": "AutoModelForImageClassification",
            "audio-classification": "AutoModelForAudioClassification",
            "image-text-to-text": "AutoModelForImageTextToText",
            "speech-seq2seq": "AutoModelForSpeechSeq2Seq",
        }[task],
    )


def model_class(config: Any, task: str) -> Any:
    """The class that the auto class of `task` takes for `config`. Raises KeyError where it has none."""
    return model_class_of(auto_class(task), config)


def model_class_of(auto: Any, config: Any) -> Any:
    """The class that `auto`, an AutoModel class, takes for `config`. Raises KeyError where it has none."""
    found = auto._model_mapping[type(config)]
    return found[0] if isinstance(found, (list, tuple)) else found


DECLARATIONS = {
    "sdpa": ("_supports_sdpa",),
    "flash": ("_supports_flash_attn", "_supports_flash_attn_2"),  # renamed in 4.54
    "flex": ("_supports_flex_attn",),
    "compile": ("_can_compile_fullgraph", "_supports_static_cache"),  # renamed in 4.54
}
"""What a class can declare -> the attributes that versions have for it."""


def default_dtype(held: torch.dtype) -> torch.dtype:
    """The dtype that `from_pretrained` loads a checkpoint of dtype `held` in when it is told none: that one since
    transformers 5, fp32 before."""
    return held if TRANSFORMERS >= (5,) else torch.float32


def length_bound_buffers(model: Any) -> set[str]:
    """Names of the rotary frequencies of `model` that hold for the last text only: of kinds that depend on its
    length."""
    found = set()
    for path, module in model.named_modules():
        kind = getattr(module, "rope_type", None)
        kinds = kind.values() if isinstance(kind, dict) else (kind,)
        if any(k in ("dynamic", "longrope") for k in kinds):
            found |= {f"{path}.{name}" for name, _ in module.named_buffers(recurse=False) if "inv_freq" in name}
    return {name for name in found if "original" not in name}


def classifier_class(config: Any) -> Any:
    """The class that reads a text's class off the last token of a decoder with `config`, or None."""
    try:
        return model_class_of(transformers.AutoModelForSequenceClassification, config)
    except KeyError:
        return None


def declared(cls: Any) -> dict[str, bool | None]:
    """What a model class of transformers says of itself; None where this version has no words for it, empty for a class
    of another library.

    `sdpa`, `flash`, `flex`: it works with that attention. `compile`: its forward compiles as one graph. `paged`: it has
    `generate_batch` (continuous batching), which every class with `generate` has since 4.53. `switch`: it lets
    `set_attn_implementation` take effect.
    """
    found: dict[str, bool | None] = {}
    if not issubclass(cls, transformers.PreTrainedModel):
        return found
    for name, attributes in DECLARATIONS.items():
        known = any(hasattr(transformers.PreTrainedModel, a) for a in attributes)
        found[name] = any(bool(getattr(cls, a, False)) for a in attributes) if known else None
    batches = hasattr(transformers.GenerationMixin, "generate_batch")
    found["paged"] = hasattr(cls, "generate_batch") if batches else None
    can = getattr(cls, "_can_set_attn_implementation", None)
    found["switch"] = None if can is None else bool(can())
    return found


def takes_slices() -> bool:
    """Whether `from_pretrained(state_dict=...)` reads a weight by indexing it when it needs it, as it reads those of a
    safetensors file: since transformers 5."""
    return TRANSFORMERS >= (5,)


def takes_state_dict(quantized: bool) -> bool:
    """Whether `from_pretrained(state_dict=...)` works where it has to place weights itself, to quantize them or by a
    device map: older loaders then look for files only."""
    return not quantized or TRANSFORMERS >= (4, 57)


def switch_attention(model: Any, implementation: str) -> bool:
    """Ask `model` to use `implementation` without reloading; False where the stack or the class cannot.

    transformers has `set_attn_implementation` since 4.54. Classes that do not follow its attention interface only log a
    warning, so what the model then says of itself decides here, and the kernels seen decide afterwards.
    Raises what the library raises for an implementation that it refuses.
    """
    setter = getattr(model, "set_attn_implementation", None)
    if setter is None:
        return False
    can = getattr(model, "_can_set_attn_implementation", None)
    if can is not None and not can():
        return False
    setter(implementation)
    return effective_attention(model) == implementation


def knows_switching() -> bool:
    """Whether this transformers has `set_attn_implementation` at all: since 4.54."""
    return hasattr(transformers.PreTrainedModel, "set_attn_implementation")


def effective_attention(model: Any) -> str:
    """The attention implementation that the loaded model's config names (private attribute, stable since 4.36)."""
    return str(getattr(model.config, "_attn_implementation", "") or "")


def register_attention(name: str, function: Callable[..., Any]) -> bool:
    """Register an attention function under `name`; False on stacks without the attention interface (before 4.48)."""
    try:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    except ImportError:
        return False
    if hasattr(ALL_ATTENTION_FUNCTIONS, "register"):
        ALL_ATTENTION_FUNCTIONS.register(name, function)
    else:
        ALL_ATTENTION_FUNCTIONS[name] = function
    return True


def set_attention_unchecked(model: Any, implementation: str) -> None:
    """Write `implementation` into every config of `model`, past the library's own checks (for the reference only)."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation_internal"):
            config._attn_implementation_internal = implementation
        elif hasattr(config, "_attn_implementation"):
            config._attn_implementation = implementation


def built_with(model: Any, implementation: str) -> Any:
    """A model like `model` whose attention modules are those of `implementation`, with the same weights. Before
    transformers 5 many families choose the class of each attention module when they are built, and what the config says
    afterwards changes their masks alone; where that is not so, a copy."""
    if TRANSFORMERS >= (5,) or uses_attention_interface(model):
        return copy.deepcopy(model)
    parameter = next(model.parameters())
    arguments = {**dtype_argument(parameter.dtype), "attn_implementation": implementation}
    made = type(model)._from_config(copy.deepcopy(model.config), **arguments)
    made.load_state_dict(model.state_dict())
    return made.to(parameter.device)


@contextlib.contextmanager
def default_dtype_kept() -> Iterator[None]:
    """torch's default dtype after the block is the one before it: loaders before transformers 5 set theirs, and leave
    it where they refuse a backend."""
    before = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def maps_devices(model: Any) -> bool:
    """Whether `device_map="auto"` may be asked of the class: before transformers 5 one that does not say which of its
    modules stay whole is refused."""
    return TRANSFORMERS >= (5,) or getattr(model, "_no_split_modules", None) is not None


def takes_packed_rows(model: Any) -> bool:
    """Whether position ids that restart keep rows in one sequence apart without a mask: every family since
    transformers 5; before, those that have the library make their masks."""
    return TRANSFORMERS >= (5,) or _library_makes_masks(model)


def answers_as_stored() -> bool:
    """Whether the stored answers of probes hold here: they were made with transformers 5. Older versions read a probe's
    config in their own way and name its parameters otherwise, by which weights are drawn: another model, not a wrong
    one."""
    return TRANSFORMERS >= (5,)


def sdpa_is_whole(model: Any) -> bool:
    """Whether the class of `model` computes all of its attention through scaled_dot_product_attention: before
    transformers 5 Gemma 2 left out its cap of the scores there."""
    capped = getattr(model.config, "attn_logit_softcapping", None) is not None
    return bool(getattr(model, "_supports_sdpa", False)) and (TRANSFORMERS >= (5,) or not capped)


def uses_attention_interface(model: Any) -> bool:
    """Whether the model's attention goes through the registry, so that a function of ours can stand in for it."""
    can = getattr(model, "_can_set_attn_implementation", None)
    return bool(can is not None and can())


def forget_quantizer(model: Any) -> None:
    """Make a model that was dequantized while loading (GGUF) an ordinary one, so that it can be saved."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config


def checkpoint_activations(model: Any, enable: bool) -> None:
    """Turn recomputation of layers in the backward pass on or off, with the library's own settings.

    `activation_checkpointing_enable` since transformers 5.20, `gradient_checkpointing_enable` before. Raises ValueError
    where the family has none.
    """
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_{'enable' if enable else 'disable'}")()


def divides_by_items(model: Any) -> bool:
    """Whether the class hands `num_items_in_batch` on to its loss: `**kwargs` into `self.loss_function`. A class that
    only takes `**kwargs` drops it. Read off the source, so that a wrong loss does not look like a missing feature."""
    return bool(re.search(r"self\.loss_function\([^)]*\*\*\w+", _source(type(model).forward)))


def upcasts_loss(model: Any) -> bool:
    """Whether the class leaves its loss to the library's own functions for language models, which compute it in fp32
    whatever the logits are in. A class that calls torch's cross entropy itself computes it in the model's dtype."""
    tokens = type(model).__name__.endswith(("ForCausalLM", "ForMaskedLM", "LMHeadModel", "ForConditionalGeneration"))
    return tokens and "self.loss_function(" in _source(type(model).forward)


@cache
def _source(function: Any) -> str:
    """The text of `function` below its decorators and replacements; empty where it has none."""
    try:
        return inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        return ""


def use_plain_experts(model: Any) -> None:
    """Compute experts one by one: grouped kernels (transformers 5) take no fp64. No effect where there is no choice."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_experts_implementation_internal", None) is not None:
            config._experts_implementation_internal = "eager"


def rotary_again(module: Any) -> Any:
    """A rotary module like `module`, made anew from its config, which older classes take by name only. Raises TypeError
    or AttributeError for a class that is made of something else."""
    return type(module)(config=module.config)


def resize_embeddings(model: Any, rows: int) -> None:
    """Give `model` embeddings of `rows` tokens; new ones are drawn like all weights, and not about the mean of the old
    ones, which transformers does by itself since 4.46."""
    named = "mean_resizing" in inspect.signature(model.resize_token_embeddings).parameters
    model.resize_token_embeddings(rows, **({"mean_resizing": False} if named else {}))


def takes_own_mask(model: Any) -> bool:
    """Whether `model` takes a mask of (batch, 1, queries, keys): every family since transformers 5; before, those that
    have the library make theirs (since 4.53), or whose decoder makes it in a method of its own."""
    own = any(hasattr(m, "_update_causal_mask") for m in model.modules())
    return TRANSFORMERS >= (5,) or own or _library_makes_masks(model)


def _library_makes_masks(model: Any) -> bool:
    """Whether the module of the family uses transformers' own functions for masks, which came with 4.53."""
    return hasattr(importlib.import_module(type(model).__module__), "create_causal_mask")


def use_no_cache(model: Any) -> None:
    """Let a plain forward fill no cache."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", None):
            config.use_cache = False


def accepts(model: Any, argument: str) -> bool:
    """Whether `model.forward` names `argument`."""
    return argument in inspect.signature(model.forward).parameters


def positions_from_zero(model: Any) -> bool:
    """Whether `model` takes position ids, and looks them up in a table whose first row is the first position: RoBERTa's
    begins behind the pad's."""
    tables = [m for name, m in model.named_modules() if name.rpartition(".")[2] == "position_embeddings"]
    return accepts(model, "position_ids") and bool(tables) and all(t.padding_idx is None for t in tables)


def input_embeddings(model: Any) -> Any:
    """The module that `model` calls its input embedding, or None: classes of sound, and some of pictures, have none and
    say so by an exception."""
    try:
        return model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None


def takes_embeddings(model: Any) -> bool:
    """Whether `model` can be given embeddings in place of token ids."""
    return accepts(model, "inputs_embeds") and input_embeddings(model) is not None


def generates_from_embeddings(model: Any) -> bool:
    """Whether `generate` takes embeddings in place of token ids: `prepare_inputs_for_generation` has to name them."""
    prepare = getattr(model, "prepare_inputs_for_generation", None)
    return takes_embeddings(model) and prepare is not None and "inputs_embeds" in inspect.signature(prepare).parameters


def cache_argument(model: Any) -> str:
    """The keyword of `model.forward` for the cache of past tokens, which is also its name in the output: state-space
    families call it `cache_params`."""
    states = accepts(model, "cache_params") and not accepts(model, "past_key_values")
    return "cache_params" if states else "past_key_values"


def dynamic_cache(config: Any, plain: bool = False) -> Any:
    """A cache that grows, as a user makes one. `plain`: not told of the config, so that it holds all tokens in every
    layer. Before transformers 4.56 there was only the plain one. Encoder-decoder configs get one for each attention."""
    told = not plain and "config" in inspect.signature(transformers.DynamicCache.__init__).parameters

    def make() -> Any:
        return transformers.DynamicCache(config=config) if told else transformers.DynamicCache()

    return transformers.EncoderDecoderCache(make(), make()) if config.is_encoder_decoder else make()


def static_cache(model: Any, batch: int, length: int, encoder_length: int = 0) -> Any:
    """A cache with room for `length` tokens of `batch` rows. Raises what the library raises."""
    config = model.config.get_text_config(decoder=True)

    def make(room: int) -> Any:
        arguments: dict[str, Any] = {"config": config, "max_cache_len": room}
        if TRANSFORMERS < (4, 56):
            arguments |= {"max_batch_size": batch, "device": model.device, "dtype": model.dtype}
        return transformers.StaticCache(**arguments)

    if model.config.is_encoder_decoder:
        return transformers.EncoderDecoderCache(make(length), make(encoder_length))
    return make(length)


def takes_static_cache(model: Any) -> bool:
    """Whether the class says that it works with a static cache."""
    names = ("_supports_static_cache", "_can_compile_fullgraph")  # renamed in 4.54
    return any(bool(getattr(model, name, False)) for name in names)


def quantized_cache(config: Any) -> Any:
    """A cache that stores 8-bit floats, which needs no package beside transformers; None on stacks without it."""
    kind = getattr(transformers, "QuantizedCache", None)
    if kind is None or not hasattr(transformers.cache_utils, "Fp8QuantizedLayer"):
        return None
    return kind("fp8", config=config)


def offloaded_cache(config: Any) -> Any:
    """A dynamic cache that waits in the host's memory. Raises what the library raises without an accelerator."""
    if "offloading" in inspect.signature(transformers.DynamicCache.__init__).parameters:
        return transformers.DynamicCache(config=config, offloading=True)
    return transformers.OffloadedCache()  # before 4.56


def takes_caches(model: Any) -> bool:
    """Whether `model` takes an object for its cache: every family since transformers 4.54; before, those that say so.
    The others take and return tuples of keys and values."""
    if getattr(model, "exported", False):  # graphs take tensors only
        return False
    return TRANSFORMERS >= (4, 54) or bool(getattr(model, "_supports_cache_class", True))


def returns_logits_of_drafts() -> bool:
    """Whether `generate` gives the logits of an assisted generation a step at a time: since transformers 4.46."""
    return TRANSFORMERS >= (4, 46)


def forget_generations(model: Any) -> None:
    """Take back what earlier calls of `generate` left on `model` for later ones: the length of its static caches since
    transformers 5, a static cache before."""
    for name in ("_previous_max_cache_length", "_cache"):
        vars(model).pop(name, None)


def first_cache(model: Any) -> Any:
    """What to give for the cache in a first forward so that a cache object comes back: nothing since transformers 4.48;
    before, an empty one where the family takes it, since it answers a forward without one with tuples."""
    if TRANSFORMERS >= (4, 48) or not takes_caches(model) or cache_argument(model) != "past_key_values":
        return None
    return dynamic_cache(model.config, plain=True)


def reorder_cache(model: Any, cache: Any, order: torch.Tensor) -> Any:
    """`cache` with its rows taken in `order`, as beam search does it. Raises what the library raises."""
    if isinstance(cache, (tuple, list)):
        return model._reorder_cache(cache, order)
    cache.reorder_cache(order)
    return cache


def emptied_cache(model: Any, cache: Any) -> Any:
    """`cache` without what it holds; a new one where a dynamic cache cannot be emptied (before transformers 4.48)."""
    if TRANSFORMERS < (4, 48) and not hasattr(cache, "reset"):
        return dynamic_cache(model.config, plain=True)
    cache.reset()
    return cache


def forget_input_gradients(model: Any) -> None:
    """Undo `enable_input_require_grads`, where it was called: before transformers 5 it cannot be undone otherwise."""
    if hasattr(model, "disable_input_require_grads") and (TRANSFORMERS >= (5,) or "_require_grads_hook" in vars(model)):
        model.disable_input_require_grads()


def drop_input_hooks(model: Any) -> None:
    """Undo every `enable_input_require_grads`: called twice, the library forgets the hooks of the first call, and those
    of turning recomputation on stay once it is off again (transformers 5.23)."""
    forget_input_gradients(model)
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__name__", "") == "make_inputs_require_grads":
                del module._forward_hooks[key]


def decoder_cache(cache: Any) -> Any:
    """The part of `cache` that holds the decoder's own tokens."""
    return getattr(cache, "self_attention_cache", cache)


def cache_tensors(cache: Any) -> list[list[torch.Tensor]]:
    """For each layer of `cache`, its keys and values; an empty list for a layer that holds none."""
    if isinstance(cache, (tuple, list)):  # what a forward returns before 4.48: keys and values first, or in one tensor
        return [[layer] if isinstance(layer, torch.Tensor) else list(layer[:2]) for layer in cache]
    layers = getattr(cache, "layers", None)
    if layers is None:  # before 4.54
        return [[k, v] for k, v in zip(cache.key_cache, cache.value_cache, strict=True)]
    pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
    return [[t for t in pair if isinstance(t, torch.Tensor)] for pair in pairs]


def rolls_back(model: Any) -> bool:
    """Whether a cache of `model` can be cropped: recurrent states cannot, nor can those of a convolution, which the
    class need not say of itself (LFM2)."""
    kinds = getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ()
    keyed = all(kind.endswith("attention") and not kind.startswith("linear") for kind in kinds)
    return keyed and not getattr(model, "_is_stateful", False)


def makes_positions(model: Any) -> bool:
    """Whether `model`, given no position ids, handles a left-padded batch as if it had been: relative positions do, and
    learned ones that are counted over the mask."""
    own = input_embeddings(model)
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m is not own]
    return all("attention_mask" in inspect.signature(m.forward).parameters for m in tables)


def reads_mask_width(model: Any) -> bool:
    """Whether `model` takes the number of keys from the width of the mask (ALiBi made from it), so that a static cache
    needs a mask over all its slots."""
    alibi = getattr(model.config, "alibi", False) or hasattr(model.base_model, "build_alibi_tensor")
    return bool(alibi)


def mended(library: str) -> dict[str, str]:
    """Mend what keeps a quantization `library` from loading at all on this stack, and say what was mended.

    transformers 4.45 to 4.48 asks on a CPU whether bitsandbytes has a backend for it, and in doing so removes an entry
    from a frozenset; bitsandbytes has had one since. That question is left out.
    """
    if library != "bitsandbytes" or not (4, 45) <= TRANSFORMERS < (4, 49) or torch.cuda.is_available():
        return {}
    asks: Any = importlib.import_module("transformers.integrations.bitsandbytes")
    asks._validate_bnb_multi_backend_availability = lambda raise_exception: True
    return {"mended": "transformers' question for a CPU backend of bitsandbytes, which raises here, is left out"}


def end_tokens(model: Any) -> list[int]:
    """The ids at which `model.generate` stops by its own settings."""
    value = model.generation_config.eos_token_id
    return [] if value is None else [int(v) for v in (value if isinstance(value, list) else [value])]


def loading_arguments(
    dtype: torch.dtype, implementation: str, device: torch.device, quantization: dict[str, Any] | None
) -> dict[str, Any]:
    """The keywords of `from_pretrained` for the axes of a cell; a device map only where quantization asks for one."""
    arguments: dict[str, Any] = {**dtype_argument(dtype), "attn_implementation": implementation}
    if quantization and quantization["library"]:
        arguments["quantization_config"] = quantizers.configuration(quantization, dtype)
        arguments["device_map"] = {"": str(device)}
    return arguments


class Answer(NamedTuple):
    """What continuous batching made of one request."""

    prompt: list[int]
    tokens: list[int]
    """The new ones."""
    finished: bool
    status: str
    error: str
    """What the library says went wrong, or ""."""


def batches_continuously(model: Any) -> bool:
    """Whether `model` has `generate_batch`: since transformers 4.53."""
    return hasattr(model, "generate_batch") and hasattr(transformers, "ContinuousBatchingConfig")


def generate_batch(model: Any, prompts: list[list[int]], new_tokens: int, batch_tokens: int) -> list[Answer]:
    """Greedy continuous batching of `prompts` without an end of sequence, with a pool of 64 blocks (the default takes
    nearly all of the memory) and `batch_tokens` a step. Raises what the library raises."""
    settings = transformers.GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    pool = transformers.ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=batch_tokens, use_cuda_graph=False)
    named = inspect.signature(model.generate_batch).parameters
    more = {"warmup": False} if "warmup" in named else {}
    found = model.generate_batch(prompts, generation_config=settings, continuous_batching_config=pool, **more)
    return [
        Answer(
            list(one.prompt_ids),
            list(one.generated_tokens),
            str(getattr(one.status, "name", one.status)).upper() == "FINISHED",
            str(getattr(one.status, "name", one.status)),
            str(one.error or ""),
        )
        for one in found.values()
    ]


def offload_to_host(model: Any, device: torch.device) -> Any:
    """`model` with its weights in host memory, fetched to `device` for each module's forward."""
    import accelerate  # type: ignore[import-untyped]

    return accelerate.cpu_offload(model, execution_device=device)


def offload_to_disk(model: Any, device: torch.device, folder: str) -> Any:
    """`model` with its weights in `folder`, fetched to `device` for each module's forward."""
    import accelerate

    return accelerate.disk_offload(model, folder, execution_device=device)


def dispatch_checkpoint(model: Any, folder: Any, device: torch.device) -> Any:
    """Another model like `model`, its weights read from the shards in `folder` by accelerate's own loader."""
    import accelerate

    with accelerate.init_empty_weights():
        empty = type(model)(copy.deepcopy(model.config))
    for name, own in model.named_parameters():
        path, _, last = name.rpartition(".")
        parameter = torch.nn.Parameter(torch.empty_like(own, device="meta"), requires_grad=False)
        setattr(empty.get_submodule(path), last, parameter)
    empty.tie_weights()
    return accelerate.load_checkpoint_and_dispatch(empty, str(folder), device_map={"": str(device)}).eval()


def stated_dtype(model: Any) -> torch.dtype | None:
    """The dtype that the loaded model's config names: `dtype` since 4.56, `torch_dtype` before."""
    stated = getattr(model.config, "dtype" if TRANSFORMERS >= (4, 56) else "torch_dtype", None)
    return getattr(torch, stated) if isinstance(stated, str) else stated


def dequantized_by_library(module: Any) -> torch.Tensor:
    """What the library makes of a quantized linear's weight (merging adapters, `dequantize`). Before transformers 5 its
    function wants the dtype too: that of the layer in 4 bit, fp32 for int8, which is what it gives since."""
    if hasattr(module.weight, "dequantize") and type(module.weight).__module__.startswith(("torchao", "optimum")):
        own: torch.Tensor = module.weight.dequantize()
        return own
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    named: dict[str, Any] = {"state": getattr(module, "state", None)}
    if TRANSFORMERS < (5,):
        named["dtype"] = getattr(getattr(module.weight, "quant_state", None), "dtype", torch.float32)
    weight: torch.Tensor = dequantize_bnb_weight(module.weight, **named)
    return weight


def passed_config_inherits() -> bool:
    """Whether a GenerationConfig that is passed to `generate` takes what it leaves open from the model's own: since
    transformers 4.50."""
    return TRANSFORMERS >= (4, 50)


def stated_settings(config: Any) -> Any:
    """What a GenerationConfig says itself, as attributes: since transformers 5 what it leaves open is None, and before
    that the library's default, which then counts as open."""
    if TRANSFORMERS >= (5,):
        return config
    unsaid = vars(transformers.GenerationConfig())
    return types.SimpleNamespace(**{k: v for k, v in vars(config).items() if k not in unsaid or v != unsaid[k]})


def pipeline_tasks() -> list[str]:
    """The pipeline tasks that this stack knows."""
    from transformers.pipelines import get_supported_tasks

    return sorted(get_supported_tasks())


def quiet_logs() -> None:
    """Progress bars off, log level error: a worker's stderr is kept as evidence and should hold little else.

    bitsandbytes logs a line for every int8 product in bf16, accelerate one for every offloaded model.
    """
    for name in ("bitsandbytes", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    disable = getattr(transformers.logging, "disable_progress_bar", None)
    if disable is not None:
        disable()


@contextlib.contextmanager
def wrapped_attention(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[bool]:
    """Pass every attention function that a model looks up inside the block through `wrap`; yields False on stacks where
    families do not look theirs up in one place (before transformers 4.57)."""
    try:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    except ImportError:
        yield False
        return
    kind = type(ALL_ATTENTION_FUNCTIONS)
    original = getattr(kind, "get_interface", None)
    if original is None:
        yield False
        return

    def looked_up(self: Any, *arguments: Any, **more: Any) -> Callable[..., Any]:
        return wrap(original(self, *arguments, **more))

    kind.get_interface = looked_up
    try:
        yield True
    finally:
        kind.get_interface = original


def compiler(name: str) -> Callable[..., Any]:
    """The backend that `torch.compile(backend=name)` uses: a function of a graph and its example inputs."""
    from torch._dynamo.backends.registry import lookup_backend

    found: Callable[..., Any] = lookup_backend(name)
    return found


def allow_graphs(count: int) -> int:
    """Let torch keep `count` compiled graphs of one function; how many it kept before. `recompile_limit` since torch
    2.6, `cache_size_limit` before."""
    config: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    before = int(getattr(config, name))
    setattr(config, name, count)
    return before


def static_generation() -> dict[str, Any]:
    """Settings under which `generate` takes a static cache and leaves compiling to the caller: where it would compile
    by itself, since transformers 4.50, it can be told not to."""
    told = hasattr(transformers.GenerationConfig(), "disable_compile")
    return {"cache_implementation": "static", **({"disable_compile": True} if told else {})}
