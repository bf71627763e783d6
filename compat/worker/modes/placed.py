"""Placement: the same weights elsewhere, by a device map or by accelerate's hooks.

The yardstick and the reference are those of the group; beside them everything is compared bit for bit with the model
on one device, since nothing here computes otherwise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compat.worker import stack_api
from compat.worker.calls import Unavailable, under_test
from compat.worker.inputs import unpadded
from compat.worker.metrics import distance

if TYPE_CHECKING:
    from compat.worker.group import Group, Loaded
    from compat.worker.report import Report

HELD_SHARE = 0.6
"""Share of the weights' bytes that a device may keep where they are to be split."""

LENGTHS = (33, 57)


class Placed:
    """Where the weights of one model are."""

    missed = 0

    def __init__(self, folder: tempfile.TemporaryDirectory[str] | None) -> None:
        self.folder = folder
        self.model: Any = None

    @property
    def elsewhere(self) -> list[str]:
        """Names of the parameters that are not in the model now, but fetched for each module's forward."""
        return [n for n, p in self.model.named_parameters() if p.device.type == "meta"]

    @property
    def devices(self) -> list[str]:
        """Devices of the parameters, `meta` for those that are fetched."""
        return sorted({str(p.device) for p in self.model.parameters()})

    @property
    def map(self) -> dict[str, str]:
        """The library's own map, module -> device; empty where there is none."""
        return {k or "(all)": str(v) for k, v in (getattr(self.model, "hf_device_map", None) or {}).items()}

    def files(self) -> int:
        """Files of weights on the disk."""
        return (
            sum(p.suffix in (".dat", ".safetensors") for p in Path(self.folder.name).rglob("*")) if self.folder else 0
        )

    def close(self) -> None:
        """Take the files away."""
        if self.folder is not None:
            self.folder.cleanup()


def way(group: Group, attention: dict[str, Any]) -> Loaded:
    """See compat.worker.modes. Raises Unavailable without accelerate, or with fewer GPUs than are asked for."""
    gpus = torch.cuda.device_count() if group.device.type == "cuda" else 0
    if group.mode.gpus > gpus:
        raise Unavailable(f"needs {group.mode.gpus} GPUs, and there are {gpus}")
    if not stack_api.version_of("accelerate"):
        raise Unavailable("package accelerate is not installed, which places weights: pip install accelerate")
    folder = tempfile.TemporaryDirectory(prefix="compat-offload-") if _to_disk(group) else None
    placed = Placed(folder)
    loaded = _MADE[group.mode.name](group, attention, folder.name if folder else "")
    placed.model, loaded.way = loaded.model, placed
    return loaded


def _to_disk(group: Group) -> bool:
    return group.mode.name in ("disk-offload", "max-memory")


def _hooked(group: Group, attention: dict[str, Any], folder: str) -> Loaded:
    """Loaded whole, and then given accelerate's hooks."""
    loaded = group.fresh(attention)
    with under_test("place"):
        if folder:
            stack_api.offload_to_disk(loaded.model, group.device, folder)
        else:
            stack_api.offload_to_host(loaded.model, group.device)
    return loaded


def _mapped(group: Group, attention: dict[str, Any], folder: str) -> Loaded:
    """Loaded by the library's own device map."""
    total = sum(p.numel() * p.element_size() for p in group.eager.model.parameters())
    arguments: dict[str, Any] = {"device_map": "auto"}
    part = int(HELD_SHARE * total)
    if group.mode.name == "max-memory":
        here = group.device.index or 0
        arguments["max_memory"] = {"cpu": part} if group.device.type == "cpu" else {here: part, "cpu": 2 * total}
        arguments["offload_folder"] = folder
    if group.mode.name == "two-gpus":
        arguments |= {"device_map": "balanced", "max_memory": dict.fromkeys(range(group.mode.gpus), part)}
    return group.fresh(attention, arguments)


_MADE: dict[str, Callable[[Group, dict[str, Any], str], Loaded]] = {
    "device-map-auto": _mapped,
    "max-memory": _mapped,
    "two-gpus": _mapped,
    "cpu-offload": _hooked,
    "disk-offload": _hooked,
}


def seen(group: Group, loaded: Loaded) -> dict[str, Any]:
    """See compat.worker.modes."""
    own: Placed = loaded.way
    elsewhere, devices = len(own.elsewhere), own.devices
    total = sum(1 for _ in own.model.parameters())
    facts = {"fetched": elsewhere, "parameters": total, "device_map": own.map, "files": own.files()}
    words = f"{elsewhere} of {total} parameters are fetched for each forward, the others on {', '.join(devices)}"
    if group.mode.name == "device-map-auto":
        if own.map:
            return facts | {"held": "yes", "words": f"hf_device_map names {', '.join(sorted(set(own.map.values())))}"}
        return facts | {"held": "nothing to do", "words": f"the library set no hf_device_map: all on {devices[0]}"}
    gpus = sum(d.startswith("cuda") for d in devices)
    held = {
        "max-memory": 0 < elsewhere < total or len(devices) > 1,
        "cpu-offload": elsewhere == total,
        "disk-offload": elsewhere == total and own.files() > 0,
        "two-gpus": gpus >= 2,
    }[group.mode.name]
    return facts | {"held": "yes" if held else "no", "words": words}


def measure(group: Group, attention: dict[str, Any], report: Report) -> None:
    """Distance of the output from the model's on one device, and what stays where after a forward."""
    loaded, plain = group.loaded(attention), group.plain(attention)
    own: Placed = loaded.way
    before = own.elsewhere
    differing, distances = 0, []
    for length in LENGTHS:
        rows = group.source.rows(700 + 1000 * group.spec.seed + length, [length] * 2)
        inputs = unpadded(rows, group.device, group.dtype)
        ours, theirs = loaded(**inputs), plain(**inputs)
        differing += int(ours.device != theirs.device)
        distances.append(distance(ours.to(theirs.device), theirs))
    report.measure("difference", distances, unit="eps rms(output)")
    report.measure("outputs_elsewhere", differing, unit="outputs")
    report.measure("left_behind", len(set(before) ^ set(own.elsewhere)), unit="parameters")
    report.facts["device_map"] = own.map
