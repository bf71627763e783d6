"""Loading a model the way users load, and what can be read off the loaded model.

In: a checkpoint, a dtype, an attention implementation, a quantization. Out: the model, and facts about it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from compat.worker import stack_api
from compat.worker.checkpoints import Checkpoint

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def from_pretrained(
    checkpoint: Checkpoint,
    task: str,
    dtype: torch.dtype,
    implementation: str,
    device: torch.device,
    quantization: dict[str, Any] | None = None,
) -> Any:
    """The model of `task` in eval mode on `device`. Raises whatever the library raises."""
    arguments: dict[str, Any] = {
        **checkpoint.arguments,
        **stack_api.dtype_argument(dtype),
        "attn_implementation": implementation,
    }
    if quantization and quantization["library"] == "bitsandbytes":
        arguments["quantization_config"] = stack_api.bitsandbytes_config(quantization["arguments"], dtype)
        arguments["device_map"] = {"": str(device)}
    model = stack_api.auto_class(task).from_pretrained(checkpoint.location, **arguments)
    if "device_map" not in arguments:
        model = model.to(device)
    return model.eval()


def quantized_modules(model: Any) -> dict[str, Any]:
    """Module path -> module, for every module whose weight is stored quantized."""
    names = ("Linear4bit", "Linear8bitLt")
    return {path: module for path, module in model.named_modules() if type(module).__name__ in names}


def dequantized_weight(module: Any) -> torch.Tensor:
    """The weight of a quantized linear as fp32, shape (out_features, in_features).

    Call it before the first forward: bitsandbytes repacks 4-bit weights for CPU kernels then. int8 rows are
    CB * SCB / 127 (LLM.int8(), https://arxiv.org/abs/2208.07339, eq. 3).
    """
    weight = module.weight
    if type(module).__name__ == "Linear8bitLt":
        codes = weight.CB if getattr(weight, "CB", None) is not None else weight.data
        return codes.float() * weight.SCB.float()[:, None] / 127.0
    import bitsandbytes.functional as bnb

    return bnb.dequantize_4bit(weight.data, weight.quant_state).float()


def quantizable_parameters(master: Any) -> dict[str, int]:
    """Parameter path -> element count, of the matrices that a weight-only scheme is meant to cover.

    Linear and Conv1D weights and stacked expert matrices, without output embeddings (libraries skip them by default)
    and without modules that the architecture keeps in fp32.
    """
    head = master.get_output_embeddings() if hasattr(master, "get_output_embeddings") else None
    found: dict[str, int] = {}
    for path, module in master.named_modules():
        if module is head or kept_in_fp32(master, path):
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


def dtype_shares(model: Any) -> dict[str, float]:
    """Share of the bytes of floating parameters held in each dtype, e.g. {"bfloat16": 0.98, "float32": 0.02}."""
    held: Counter[str] = Counter()
    for parameter in model.parameters():
        if parameter.dtype.is_floating_point:
            held[str(parameter.dtype).removeprefix("torch.")] += parameter.numel() * parameter.element_size()
    total = sum(held.values()) or 1
    return {name: n / total for name, n in held.most_common()}


def weights_bytes(model: Any) -> int:
    """Bytes held by parameters, buffers and quantization statistics; tied tensors count once."""
    storages: dict[int, int] = {}

    def add(tensor: Any) -> None:
        if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()

    for tensor in [*model.parameters(), *model.buffers()]:
        add(tensor)
        for name in ("CB", "SCB"):
            add(getattr(tensor, name, None))
        _add_state(getattr(tensor, "quant_state", None), add)
    for module in model.modules():
        for value in vars(module).values():  # plain attributes: where a kept copy would hide
            add(value)
            if type(value).__name__ == "MatmulLtState":
                for name in ("CB", "SCB", "CxB", "SB"):
                    add(getattr(value, name, None))
    storages.pop(0, None)
    return int(sum(storages.values()))


def _add_state(state: Any, add: Any) -> None:
    if state is None:
        return
    for name in ("absmax", "code", "offset"):
        add(getattr(state, name, None))
    _add_state(getattr(state, "state2", None), add)


def scheme_bytes(
    master: Any, model: Any, dtype: torch.dtype, bits: float | None, overhead_bytes_per_parameter: float
) -> int:
    """Bytes that the weights of `master` take by the scheme's own arithmetic.

    Quantizable parameters at `bits` plus statistics, everything else (embeddings, norms, head) at the size of `dtype`;
    what the architecture keeps in fp32, at 4 bytes where the loaded `model` does keep it.
    """
    quantizable = quantizable_parameters(master) if bits else {}
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
