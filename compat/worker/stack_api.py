"""Every difference between library versions, here and nowhere else.

In: the installed torch and transformers. Out: functions with one meaning on every stack (transformers 4.45 to 5.23,
torch 2.5 to 2.13).
"""

from __future__ import annotations

import importlib.metadata
import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
import transformers


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


def dtype_argument(dtype: torch.dtype) -> dict[str, torch.dtype]:
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
        }[task],
    )


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


def use_plain_experts(model: Any) -> None:
    """Compute experts one by one: grouped kernels (transformers 5) take no fp64. No effect where there is no choice."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_experts_implementation_internal", None) is not None:
            config._experts_implementation_internal = "eager"


def accepts(model: Any, argument: str) -> bool:
    """Whether `model.forward` names `argument`."""
    return argument in inspect.signature(model.forward).parameters


def bitsandbytes_config(arguments: dict[str, Any], compute_dtype: torch.dtype) -> Any:
    """A BitsAndBytesConfig; `bnb_4bit_compute_dtype = "cell"` stands for the dtype of the cell."""
    resolved = {k: (compute_dtype if v == "cell" else v) for k, v in arguments.items()}
    return transformers.BitsAndBytesConfig(**resolved)


def pipeline_tasks() -> list[str]:
    """The pipeline tasks that this stack knows."""
    from transformers.pipelines import get_supported_tasks

    return sorted(get_supported_tasks())


def quiet_logs() -> None:
    """Progress bars off, log level error: a worker's stderr is kept as evidence and should hold little else.

    bitsandbytes logs a line for every int8 product in bf16.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    disable = getattr(transformers.logging, "disable_progress_bar", None)
    if disable is not None:
        disable()
