"""Making and calling pipelines around a loaded model, and what they have to leave alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import transformers

from compat.worker import bettertransformer, onnx_runtime, quantizers, stack_api
from compat.worker.calls import under_test
from compat.worker.dispatch import forced_sdpa_kernel
from compat.worker.group import Group, Loaded

if TYPE_CHECKING:
    from compat.worker.trials import Generated

SHORT_TOKENS = 4
"""New tokens of a call with the real model."""

Made = Mapping[str, "Generated | None"]
"""What the trials of the `generation` check made of the same texts, by name."""


def state(model: Any) -> dict[str, Any]:
    """What generating and pipelines have to leave alone."""
    config = getattr(model, "generation_config", None)
    parameter = next((p for p in model.parameters() if p.dtype.is_floating_point), model)
    return {
        "generation_config": None if config is None else config.to_dict(),
        "attention": stack_api.effective_attention(model),
        "dtypes": sorted({str(p.dtype) for p in model.parameters()}),
        "device": str(parameter.device),
        "training": model.training,
        "gradients": sorted({p.requires_grad for p in model.parameters()}),
        "pad_token_id": getattr(model.config, "pad_token_id", None),
    }


def make(loaded: Loaded, task: str, **parts: Any) -> Any:
    """A pipeline around the loaded model; `parts` are its tokenizer or processor. Raises StackError."""
    loaded.activate()
    with under_test("pipeline"):
        if loaded.attention.get("provider"):
            return onnx_runtime.pipeline(task, model=loaded.model.model, **parts)
        return transformers.pipeline(task, model=loaded.model, device=None, **parts)


def make_alone(group: Group, loaded: Loaded) -> tuple[Any, Any]:
    """A text-generation pipeline that loads the checkpoint itself, and its model. Raises what the libraries raise."""
    parts = {"model": group.checkpoint.location, "tokenizer": copy.deepcopy(group.tokenizer)}
    if loaded.attention.get("provider"):
        pipe = onnx_runtime.pipeline("text-generation", **parts)
        return pipe, onnx_runtime.Exported(pipe.model, group.master)
    wanted = {"attn_implementation": loaded.attention["implementation"]}
    if group.spec.quantization["library"]:
        wanted["quantization_config"] = quantizers.configuration(group.spec.quantization, group.dtype)
    pipe = transformers.pipeline(
        "text-generation",
        **parts,
        device=None if group.spec.quantization["library"] else group.device,
        model_kwargs=wanted,
        **stack_api.dtype_argument(group.dtype),
    )
    if loaded.attention.get("convert"):
        pipe.model = bettertransformer.convert(pipe.model)
    return pipe, pipe.model


def call(loaded: Loaded, pipe: Any, *arguments: Any, **settings: Any) -> Any:
    """The pipeline's answer, computed with the backend under test. Raises StackError(phase="pipeline")."""
    loaded.activate()
    kernel = loaded.attention["sdpa_kernel"]
    with under_test("pipeline"), forced_sdpa_kernel(kernel), torch.no_grad():
        return pipe(*arguments, **settings)


def batched(loaded: Loaded, pipe: Any, items: list[Any], **settings: Any) -> Any:
    """Answers to all `items` in one padded batch. Raises StackError(phase="pipeline")."""
    return call(loaded, pipe, items, batch_size=len(items), **settings)
