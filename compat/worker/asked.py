"""What was asked of a load against what the model is: dtypes, settings, buffers, and the checkpoint's own values.

In: a group and a loaded model. Out: names of what differs. What is expected comes from the checkpoint (its file, or the
draw that a probe's weights came from), from its configuration, or from arithmetic of our own; never from another load.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compat.worker import probes, stack_api
from compat.worker.group import Group
from compat.worker.load import expected_dtypes

FREQUENCY_TOLERANCE = 2e-6
"""Relative error that computing a power in fp32 may leave in a rotary frequency."""


_COUNTED: dict[str, Callable[[int], torch.Tensor]] = {"position_ids": torch.arange, "token_type_ids": torch.zeros}
"""Buffers that hold 0, 1, 2 ... or nothing but 0, whatever another load may say."""


def dtypes_differing(group: Group, model: Any) -> list[str]:
    """Floating parameters that are not in the dtype asked for, except those that the architecture keeps in fp32; these
    must be in fp32."""
    quantized = bool(group.spec.quantization["library"])
    return [
        f"{name}: {parameter.dtype}"
        for name, parameter in model.named_parameters()
        if parameter.dtype.is_floating_point
        and parameter.dtype not in expected_dtypes(model, name, group.dtype, quantized)
    ]


def settings_differing(group: Group, model: Any) -> list[str]:
    """What the configurations of the model and its parts say, where it is not what was asked for."""
    found = []
    stated = stack_api.stated_dtype(model)
    if stated != group.dtype:
        found.append(f"config.dtype is {stated}, asked for {group.dtype}")
    own = stack_api.effective_attention(model)
    for path, module in model.named_modules():
        other = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if other is not None and str(other) != own:
            found.append(f"{path}: attention {other}, the model's is {own}")
    return found


def buffers_differing(group: Group, model: Any) -> tuple[list[str], int]:
    """Buffers that are not as they should be, and how many were compared: rotary frequencies in fp32 and as their
    formula gives them (but those that follow the length of the last text), the others as the checkpoint's model has
    them (a shape has none with values)."""
    masters = {name: buffer for name, buffer in group.master.named_buffers() if not buffer.is_meta}
    described = _description(group)
    found, compared = [], 0
    bound = stack_api.length_bound_buffers(model)
    for name, buffer in model.named_buffers():
        if name in bound:
            continue
        if "inv_freq" in name:
            compared += 1
            if buffer.dtype.itemsize < 4:
                found.append(f"{name}: {buffer.dtype}")
                continue
            expected = rotary_frequencies(described, _layer_type(name))
            if expected is None:
                expected = masters[name].double() if name in masters else None
            if expected is not None and not _close(buffer, expected):
                found.append(f"{name}: not the frequencies of its configuration")
        elif name in masters or name.rsplit(".", 1)[-1] in _COUNTED:
            compared += 1
            counted = _COUNTED.get(name.rsplit(".", 1)[-1])
            wanted = masters[name] if counted is None else counted(buffer.numel()).reshape(buffer.shape)
            if not torch.equal(wanted.to(buffer.dtype), buffer.cpu()):
                found.append(name)
    return found, compared


def ties_differing(group: Group, model: Any) -> list[str]:
    """Whether input and output embedding are one tensor, against what the checkpoint's configuration says."""
    head, embedding = model.get_output_embeddings(), stack_api.input_embeddings(model)
    asked_for = _description(group).get("tie_word_embeddings")
    if asked_for is None or not hasattr(head, "weight") or not hasattr(embedding, "weight"):
        return []
    if (head.weight is embedding.weight) == bool(asked_for):
        return []
    own = "a tensor of its own" if asked_for else "the input embedding"
    return [f"tie_word_embeddings is {asked_for}, and the output embedding is {own}"]


def _close(buffer: torch.Tensor, expected: torch.Tensor) -> bool:
    own = buffer.double().cpu()
    return own.shape == expected.shape and bool(((own - expected).abs() <= FREQUENCY_TOLERANCE * expected.abs()).all())


def _layer_type(name: str) -> str:
    """`sliding_attention` of `rotary_emb.sliding_attention_inv_freq`; empty for families with one kind."""
    last = name.rsplit(".", 1)[-1].replace("original_", "")
    return last.removesuffix("inv_freq").rstrip("_")


def _description(group: Group) -> dict[str, Any]:
    """The checkpoint's config.json, or the loaded configuration where the checkpoint is no folder."""
    path = Path(group.checkpoint.location) / "config.json"
    if path.is_file():
        described: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return described
    config: dict[str, Any] = group.master.config.to_dict()
    return config


def rotary_frequencies(described: dict[str, Any], layer_type: str = "") -> torch.Tensor | None:
    """base ** (-2i / width) for i < width / 2 (RoPE, https://arxiv.org/abs/2104.09864, section 3.2.2), fp64.

    None where the configuration asks for a scaled kind, or does not say the base.
    """
    rope = described.get("rope_parameters") or described.get("rope_scaling") or {}
    if layer_type:
        rope = rope.get(layer_type) or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        return None
    base = rope.get("rope_theta") or described.get("rope_theta") or described.get("rotary_emb_base")
    hidden, heads = described.get("hidden_size"), described.get("num_attention_heads")
    width = described.get("head_dim") or (hidden // heads if hidden and heads else None)
    if not base or not width:
        return None
    partial = rope.get("partial_rotary_factor") or described.get("partial_rotary_factor") or described.get("rotary_pct")
    steps = torch.arange(0, int(width * (partial or 1.0)), 2, dtype=torch.float64)
    return float(base) ** (-steps / int(width * (partial or 1.0)))


def origin_differing(group: Group) -> tuple[list[str], int]:
    """Parameters of the fp32 model that are not the checkpoint's, and how many were compared.

    A probe's are drawn again, by name; of another checkpoint (a probe that another stack made or that was distilled is
    one) the tensors that its file holds under the same name are read from the file.
    """
    own = dict(group.master.named_parameters())
    own_probe = group.row["source"] == "probe" and not group.spec.checkpoint and not group.row.get("teacher")
    expected = _drawn(group) if own_probe else _in_file(group)
    found = [
        name
        for name, tensor in expected.items()
        if name in own and not torch.equal(own[name].detach(), tensor.to(own[name].dtype))
    ]
    return found, len(expected.keys() & own.keys())


def _drawn(group: Group) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(group.master)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if "norm" in type(module).__name__.lower() and name == "weight":
                    parameter.copy_(parameter.mean().round().expand_as(parameter))  # what the draw scatters about
    probes.draw(model, group.row)
    return {name: p.detach() for name, p in model.named_parameters()}


def _in_file(group: Group) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    folder = Path(group.checkpoint.location)
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        with safe_open(path, "pt") as file:
            names: list[str] = list(file.keys())
            found |= {name: file.get_tensor(name) for name in names}
    return found
