"""Shapes: models at full size with random weights, made on the device in seconds; no file, no download.

For what the values of weights do not change: speed and memory. The weights reach the model through `from_pretrained`,
as those of a checkpoint do: dtype, attention, quantization, ties and everything else that loading does is the library's
own work. Each tensor is drawn when the library asks for it, on the device and in the dtype asked for, so that little
more than the model itself is held at any time.

In: a `Checkpoint` that is a configuration alone. Out: the model without values (on the meta device), the loaded model.
Matrices are N(0, 1 / fan_in), embeddings and biases N(0, 0.02), norms the identity: activations stay finite at any
depth. Each tensor has a generator of its own, seeded by its name.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import ItemsView, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from compat import device as machine
from compat.worker import probes, stack_api
from compat.worker.calls import Unavailable
from compat.worker.checkpoints import Checkpoint
from compat.worker.load import scheme_bytes

SMALL_STD = 0.02
"""Standard deviation of embeddings and biases."""

_EMBEDDINGS = ("cls_token", "position_embeddings", "mask_token")


def on_meta(checkpoint: Checkpoint, task: str) -> Any:
    """The model of a shape as the library builds it, in fp32, without values: names, shapes, ties and classes."""
    with torch.device("meta"):
        return stack_api.auto_class(task).from_config(copy.deepcopy(checkpoint.config)).eval()


@dataclass(frozen=True)
class Tensor:
    """One weight that does not exist yet; indexing makes it, as for a tensor in a safetensors file."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    std: float
    mean: float = 0.0

    def __getitem__(self, index: Any) -> torch.Tensor:
        value = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        if not self.std:
            return value.fill_(self.mean)[index]
        generator = torch.Generator(self.device).manual_seed(zlib.crc32(self.name.encode()))
        return value.normal_(self.mean, self.std, generator=generator)[index]


class Drawn(dict[str, Any]):
    """`Tensor` by name, for stacks that want tensors: each is made when it is looked at, and not kept."""

    def __getitem__(self, name: str) -> torch.Tensor:
        value: torch.Tensor = super().__getitem__(name)[...]
        return value

    def items(self) -> ItemsView[str, torch.Tensor]:  # type: ignore[override]
        return ItemsView(self)

    def values(self) -> Iterator[torch.Tensor]:  # type: ignore[override]
        return (self[name] for name in self)

    def copy(self) -> Drawn:
        return Drawn({name: super(Drawn, self).__getitem__(name) for name in self})


def weights(model: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Parameter name -> what is to be drawn for it; tied parameters once. `model` is on the meta device."""
    hidden = int(getattr(model.config, "hidden_size", 0) or getattr(model.config, "d_model", 0))
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    centres: dict[type, float] = {}
    for path, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            name = f"{path}.{own}" if path else own
            if "norm" in type(module).__name__.lower() and own == "weight":
                if type(module) not in centres:
                    centres[type(module)] = _identity_weight(module)
                found[name] = Tensor(name, parameter.shape, dtype, device, 0.0, centres[type(module)])
                continue
            small = isinstance(module, torch.nn.Embedding) or own in _EMBEDDINGS or parameter.dim() < 2
            std = SMALL_STD if small else probes.fan_in(name, parameter.shape, hidden, module) ** -0.5
            found[name] = Tensor(name, parameter.shape, dtype, device, std)
    return found


def _identity_weight(norm: torch.nn.Module) -> float:
    """The weight with which `norm` (on the meta device) only normalises: 1, or 0 for families that compute
    (1 + weight)."""
    tried = copy.deepcopy(norm).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in tried.parameters():
            parameter.zero_()
        size = tried.get_parameter("weight").shape[-1]
        return 0.0 if bool(tried(torch.arange(1.0, size + 1).unsqueeze(0)).any()) else 1.0


def from_pretrained(
    checkpoint: Checkpoint,
    empty: Any,
    dtype: torch.dtype,
    implementation: str,
    device: torch.device,
    scheme: dict[str, Any],
) -> Any:
    """The shape `checkpoint` on `device` through the library's own loader, as `load.from_pretrained` gives a model;
    `empty` is the same model on the meta device.

    Raises what the library raises, ValueError where it did not place every weight, and Unavailable where the device has
    no room for them or the stack takes no weights from memory for this cell.
    """
    _require_room(scheme_bytes(empty, empty, dtype, scheme["bits"], scheme["overhead_bytes"]), device)
    quantization = scheme if scheme["library"] else None
    if not stack_api.takes_state_dict(bool(quantization)):
        raise Unavailable(
            f"transformers {transformers.__version__} quantizes files only, and a shape has none: take 4.57 or newer"
        )
    drawn: dict[str, Any] = dict(weights(empty, dtype, device))
    if not stack_api.takes_slices():
        drawn = Drawn(drawn)
    arguments = stack_api.loading_arguments(dtype, implementation, device, quantization)
    if device.type != "cpu" and stack_api.takes_state_dict(quantized=True):
        arguments["device_map"] = {"": str(device)}
    model, account = type(empty).from_pretrained(
        None, config=copy.deepcopy(checkpoint.config), state_dict=drawn, output_loading_info=True, **arguments
    )
    buffers = {name for name, _ in empty.named_buffers()}
    left = {kind: sorted({str(key) for key in keys} - buffers)[:6] for kind, keys in account.items()}
    if any(left.values()):
        raise ValueError(f"from_pretrained did not place every weight: {left}")
    return model if "device_map" in arguments else model.to(device)


def _require_room(needed: int, device: torch.device) -> None:
    """Raises Unavailable when `needed` bytes of weights are more than a device of this size is given."""
    if device.type == "cuda":
        memory: int | None = int(torch.cuda.get_device_properties(device).total_memory)
    else:
        memory = machine.memory_bytes("cpu")
    reason = machine.no_room(needed, memory, str(device))
    if reason:
        raise Unavailable(reason)
