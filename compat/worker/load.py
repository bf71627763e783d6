"""Loading a model the way users load, and what can be read off the loaded model.

In: a checkpoint, a dtype, an attention implementation, a quantization. Out: the model, and facts about it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from compat.worker import dequantize, stack_api
from compat.worker.affine import Affine
from compat.worker.checkpoints import Checkpoint
from compat.worker.dequantize import Stored

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def from_pretrained(
    checkpoint: Checkpoint,
    task: str,
    dtype: torch.dtype,
    implementation: str,
    device: torch.device,
    quantization: dict[str, Any] | None = None,
    placement: dict[str, Any] | None = None,
) -> Any:
    """The model of `task` on `device`, or where the keywords `placement` put it, in the mode in which the library
    leaves it (eval). Raises whatever the library raises."""
    arguments = {**checkpoint.arguments, **stack_api.loading_arguments(dtype, implementation, device, quantization)}
    arguments |= placement or {}
    model = stack_api.auto_class(task).from_pretrained(checkpoint.location, **arguments)
    if "device_map" not in arguments:
        model = model.to(device)
    return model


def quantized_modules(model: Any) -> dict[str, Any]:
    """Module path -> module, for every module whose weight is stored quantized."""
    return {path: module for path, module in model.named_modules() if dequantize.is_quantized(module)}


def quantizable_parameters(master: Any, left_alone: tuple[str, ...] = ()) -> dict[str, int]:
    """Parameter path -> element count, of the matrices that a weight-only scheme is meant to cover.

    Linear and Conv1D weights and stacked expert matrices, without output embeddings (libraries skip them by default)
    and without modules that the architecture keeps in fp32, or with a part of their path in `left_alone`.
    """
    head = master.get_output_embeddings() if hasattr(master, "get_output_embeddings") else None
    found: dict[str, int] = {}
    for path, module in master.named_modules():
        if module is head or kept_in_fp32(master, path) or set(path.split(".")) & set(left_alone):
            continue
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":
            found[f"{path}.weight"] = module.weight.numel()
        else:
            found |= {
                f"{path}.{name}": p.numel()
                for name, p in module.named_parameters(recurse=False)
                if p.dim() == 3 and "expert" in path
            }
    return found


def kept_in_fp32(master: Any, path: str) -> bool:
    """Whether the architecture asks that the module or parameter at `path` stay in fp32 in half precision (T5's
    `wo`)."""
    kept = {
        *(getattr(master, "_keep_in_fp32_modules", None) or ()),
        *(getattr(master, "_keep_in_fp32_modules_strict", None) or ()),
    }
    return any(part in kept for part in path.split("."))


def expected_dtypes(model: Any, name: str, dtype: torch.dtype, quantized: bool) -> tuple[torch.dtype, ...]:
    """The dtypes that the parameter `name` may have in a model loaded in `dtype`.

    `_keep_in_fp32_modules` holds for fp16 (whose range is too small for them), and on some versions for quantized
    models in any dtype; `_keep_in_fp32_modules_strict` for both 16-bit dtypes.
    """
    parts = name.split(".")
    strict = any(part in parts for part in getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    kept = any(part in parts for part in getattr(model, "_keep_in_fp32_modules", None) or ())
    if (strict and dtype != torch.float32) or (kept and dtype == torch.float16):
        return (torch.float32,)
    return (torch.float32, dtype) if kept and quantized else (dtype,)


def dtype_shares(model: Any) -> dict[str, float]:
    """Share of the bytes of floating parameters held in each dtype, e.g. {"bfloat16": 0.98, "float32": 0.02}."""
    held: Counter[str] = Counter()
    for parameter in model.parameters():
        if parameter.dtype.is_floating_point:
            held[str(parameter.dtype).removeprefix("torch.")] += parameter.numel() * parameter.element_size()
    total = sum(held.values()) or 1
    return {name: n / total for name, n in held.most_common()}


def weights_bytes(model: Any) -> int:
    """Bytes held by parameters, buffers, quantization statistics and whatever else hangs on a module; tied tensors
    count once."""
    storages: dict[int, int] = {}
    for tensor in held_tensors(model):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    storages.pop(0, None)
    return int(sum(storages.values()))


def held_tensors(model: Any) -> Iterator[torch.Tensor]:
    """Every tensor that is reached from the modules of `model` through their attributes, those of parameters and of the
    libraries' state objects, and through lists and dicts: where a kept copy would hide. Tensors may come twice. The
    static cache that `generate` keeps on a model for the next call is none of its weights."""
    for module in model.modules():
        for name, value in vars(module).items():
            if module is not model or name != "_cache":
                yield from _tensors_in(value, 4)


def _tensors_in(value: Any, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        if value.device.type != "meta" and not is_traceable_wrapper_subclass(value):
            yield value  # a wrapper has no memory of its own: its parts are among its attributes
        more = vars(value).values() if hasattr(value, "__dict__") else ()
    elif isinstance(value, dict):
        more = value.values()
    elif isinstance(value, (list, tuple, set)):
        more = value
    elif type(value).__module__.split(".")[0] == "bitsandbytes" and not isinstance(value, torch.nn.Module):
        more = vars(value).values()
    else:
        return
    if depth:
        for inner in list(more):
            if not isinstance(inner, (str, int, float, torch.nn.Module)):
                yield from _tensors_in(inner, depth - 1)


def held_bytes_growth(held: dict[str, Stored | Affine]) -> int:
    """Bytes that a model with these quantized linears may hold more after a forward than before.

    A forward repacks 4-bit codes for some processors, and then holds two bytes of magnitude a block where double
    quantization held one; int8 keeps the numbers of the last outlier columns, 8 bytes each.
    """
    grown = 0
    for own in held.values():
        if own.kind == "int8":
            grown += 8 * own.shape[1]
        elif own.nested is not None:
            grown += 2 * own.nested.codes.numel()
    return grown


def scheme_bytes(
    master: Any,
    model: Any,
    dtype: torch.dtype,
    bits: float | None,
    overhead_bytes_per_parameter: float,
    left_alone: tuple[str, ...] = (),
) -> int:
    """Bytes that the weights of `master` take by the scheme's own arithmetic.

    Quantizable parameters (but modules `left_alone`) at `bits` plus statistics, everything else (embeddings, norms,
    head) at the size of `dtype`; what the architecture keeps in fp32, at 4 bytes where the loaded `model` does keep it.
    """
    quantizable = quantizable_parameters(master, left_alone) if bits else {}
    loaded = dict(model.named_parameters())
    total = 0.0
    for name, parameter in master.named_parameters():  # tied parameters appear once
        if bits and name in quantizable:
            total += parameter.numel() * (bits / 8 + overhead_bytes_per_parameter)
        elif kept_in_fp32(master, name) and name in loaded and loaded[name].dtype == torch.float32:
            total += parameter.numel() * 4
        else:
            total += parameter.numel() * dtype.itemsize
    total += sum(b.numel() * b.element_size() for b in master.buffers())
    return round(total)
