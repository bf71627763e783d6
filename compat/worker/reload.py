"""Other ways to the same model: saved and loaded again, in shards, by a device map, offloaded to disk and host.

In: a group. Out: counts of what differs from the model that the group loaded, and the library's own account of missing
keys. Each way is walked as users walk it; everything is compared bit for bit, since nothing here computes otherwise.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from compat.worker import stack_api
from compat.worker.calls import under_test
from compat.worker.dispatch import synchronize
from compat.worker.group import Group, Loaded
from compat.worker.inputs import CLASSIFYING, output_of, unpadded
from compat.worker.metrics import distance

LENGTH = 17

SHARDS = 3
"""A saved checkpoint is cut so that it fills about as many files."""

LARGE_PARAMETERS = 50_000_000
"""Above this many parameters saving and loading again takes seconds, and is asked at depth deep only."""

SAMPLING = {"do_sample": True, "temperature": 0.7, "top_k": 33, "top_p": 0.9, "repetition_penalty": 1.1}
"""Settings of generation that a checkpoint is saved with, and has to come back with."""

HELD_SHARE = 0.7
"""Share of the weights that the device map may keep; the rest goes to the disk."""


@dataclass
class Elsewhere:
    """What other ways of loading gave."""

    state_differing: int = 0
    """Parameters and buffers of the reloaded model that are not those that were saved, missing ones counted."""
    keys_unaccounted: int = 0
    """Keys that the library says were missing, unexpected or of another shape when it loaded what it had saved."""
    output_differing: int = 0
    offload_difference: float = 0.0
    """Largest distance of an output of the offloaded models, in eps rms(output)."""
    settings_lost: int = 0
    """Entries of the configuration, or of that of generation, that come back otherwise."""
    defaults_differing: int = 0
    """What loading without a word of dtype and attention makes otherwise than the library says."""
    dispatched_differing: int | None = None
    """Parameters that accelerate's own loader gives otherwise; None where it was not asked, or where a checkpoint's
    names are not the model's."""
    resize_differing: int | None = None
    """Rows of the embeddings that resizing them by a few rows changes, or does not add; None without token
    embeddings."""
    facts: dict[str, Any] = field(default_factory=dict)


def affordable(group: Group) -> bool:
    """Whether the group's depth asks for a model of its size to be saved and loaded again."""
    large = sum(p.numel() for p in group.master.parameters()) > LARGE_PARAMETERS
    return not large or group.spec.at_least("deep")


def elsewhere(group: Group, loaded: Loaded) -> Elsewhere:
    """Walk the other ways. Raises StackError (phases `save`, `reload`, `offload`)."""
    found = Elsewhere()
    rows = group.source.rows(1000 * group.spec.seed + 900, [LENGTH] * 2)
    inputs = unpadded(rows, group.device, group.dtype)
    output = loaded(**inputs)
    with tempfile.TemporaryDirectory(prefix="compat-") as name:
        folder = Path(name)
        restored = _saved_and_reloaded(group, loaded, folder, found)
        again = _forward(group, restored, inputs, "reload")
        found.output_differing = int((again != output).sum())
        if group.task not in CLASSIFYING:
            found.resize_differing = _resized(copy.deepcopy(restored))
        if group.spec.at_least("deep"):
            _dispatched(group, loaded, folder, found)
        offloaded = {"to the host": _host_offloaded(group, restored)}
        if stack_api.maps_devices(restored):
            offloaded["to the disk"] = _disk_offloaded(group, loaded, folder / "offload")
        else:
            found.facts["offloaded to the disk"] = "not asked: the class takes no device_map='auto' in this version"
        for way, model in offloaded.items():
            other = _forward(group, model, inputs, "offload")
            far = distance(other, output)
            if far:
                found.facts.setdefault("offload_differing", []).append(way)
            found.offload_difference = max(found.offload_difference, far)
            found.facts[f"offloaded {way}"] = sum(p.device.type == "meta" for p in model.parameters())
    return found


def ties(model: Any) -> set[frozenset[str]]:
    """The sets of parameter names that are one tensor."""
    names: dict[int, set[str]] = defaultdict(set)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].add(name)
    return {frozenset(own) for own in names.values() if len(own) > 1}


def _saved_and_reloaded(group: Group, loaded: Loaded, folder: Path, found: Elsewhere) -> Any:
    model = loaded.model
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    kept = copy.deepcopy(getattr(model, "generation_config", None))
    if kept is not None:
        model.generation_config.update(**SAMPLING)
    try:
        with under_test("save"):
            model.save_pretrained(folder, max_shard_size=max(1, total // SHARDS))
        return _reloaded(group, loaded, folder, found)
    finally:
        if kept is not None:
            model.generation_config = kept


def _reloaded(group: Group, loaded: Loaded, folder: Path, found: Elsewhere) -> Any:
    model = loaded.model
    found.facts["shards"] = len(list(folder.glob("*.safetensors")))
    with under_test("reload"):
        # "auto" is the dtype that was saved
        restored, account = stack_api.auto_class(group.task).from_pretrained(
            folder,
            **stack_api.dtype_argument("auto"),
            attn_implementation="eager",
            device_map={"": str(group.device)},
            output_loading_info=True,
        )
        restored.eval()
    differing = _state_differing(model, restored)
    found.state_differing = len(differing)
    if differing:
        found.facts["state_differing_in"] = differing[:6]
    if ties(restored) != ties(model):
        found.state_differing += 1
        found.facts["ties"] = sorted(sorted(t) for t in ties(restored) ^ ties(model))[:3]
    lost = _settings_lost(model, restored)
    found.settings_lost = len(lost)
    if lost:
        found.facts["settings_lost_in"] = lost[:6]
    left = {kind: sorted(map(str, keys)) for kind, keys in account.items() if keys}
    found.keys_unaccounted = sum(len(keys) for keys in left.values())
    if left:
        found.facts["keys_unaccounted"] = {kind: keys[:6] for kind, keys in left.items()}
    apart = _unlike_asked(group, folder)
    found.defaults_differing = len(apart)
    if apart:
        found.facts["defaults_differing_in"] = apart
    return restored


def _unlike_asked(group: Group, folder: Path) -> list[str]:
    """What loading gives otherwise than the library says: the checkpoint in `folder` without a word (SDPA where the
    class declares it, else eager; for the dtype see stack_api.default_dtype), and the group's own with a configuration
    of the caller's that says that attention, beside which eager and, by its older name, the dtype are asked for."""
    auto = stack_api.auto_class(group.task)
    with under_test("reload"):
        untold = auto.from_pretrained(folder)
    best = "sdpa" if stack_api.declared(type(untold)).get("sdpa") else "eager"
    found = _unlike(untold, best, stack_api.default_dtype(group.dtype), "by default")
    place, more = group.checkpoint.location, group.checkpoint.arguments
    with under_test("reload"):
        config = transformers.AutoConfig.from_pretrained(place, **more, attn_implementation=best)
        asked = {"torch_dtype": group.dtype, "attn_implementation": "eager"}
        told = auto.from_pretrained(place, config=config, **more, **asked)
    return found + _unlike(told, "eager", group.dtype, "asked for beside a config:")


def _unlike(model: Any, attention: str, dtype: torch.dtype, how: str) -> list[str]:
    own, stated = stack_api.effective_attention(model), stack_api.stated_dtype(model)
    held = {p.dtype for name, p in model.named_parameters() if p.is_floating_point()}
    found = [] if own == attention else [f"attention {own}, {how} {attention}"]
    if stated != dtype or dtype not in held:
        found.append(f"dtype {stated}, {how} {dtype}")
    return found + ([] if not model.training else ["in training mode"])


def without_head(group: Group, loaded: Loaded) -> list[str]:
    """Parameters that are lost or changed on the way from a checkpoint with a head to the model without one, and back
    from that one's checkpoint to the model with the head. Raises StackError (phases `save`, `reload`)."""
    model, found = loaded.model, []
    own = dict(model.named_parameters())
    told = {**stack_api.dtype_argument("auto"), "attn_implementation": "eager"}
    with tempfile.TemporaryDirectory(prefix="compat-") as name:
        with under_test("save"):
            model.save_pretrained(f"{name}/head")
        with under_test("reload"):
            bare = transformers.AutoModel.from_pretrained(f"{name}/head", **told)
        part = dict(model.base_model.named_parameters())
        found += [f"without its head: {n}" for n, p in bare.named_parameters() if n in part and not _equal(p, part[n])]
        with under_test("save"):
            model.base_model.save_pretrained(f"{name}/bare")
        with under_test("reload"):
            again = stack_api.auto_class(group.task).from_pretrained(f"{name}/bare", **told)
        prefix = f"{model.base_model_prefix}."
        back = {n: p for n, p in again.named_parameters() if n.startswith(prefix)}
        found += [f"back under a head: {n}" for n, p in back.items() if not _equal(p, own[n])]
    return found


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.cpu(), other.cpu())


def saved_and_loaded(group: Group, loaded: Loaded) -> list[str]:
    """Names of what differs once `loaded` is saved and loaded again as users do it. Raises StackError (phases `save`,
    `reload`)."""
    with tempfile.TemporaryDirectory(prefix="compat-") as folder:
        with under_test("save"):
            loaded.model.save_pretrained(folder)
        with under_test("reload"):
            restored = stack_api.auto_class(group.task).from_pretrained(
                folder,
                **stack_api.dtype_argument("auto"),
                attn_implementation=loaded.attention["implementation"],
                device_map={"": str(group.device)},
            )
    return _state_differing(loaded.model, restored)


def _state_differing(model: Any, restored: Any, parameters_only: bool = False) -> list[str]:
    theirs, own = dict(restored.named_parameters()), dict(model.named_parameters())
    if not parameters_only:
        bound = stack_api.length_bound_buffers(model)
        theirs |= {name: buffer for name, buffer in restored.named_buffers() if name not in bound}
        own |= {name: buffer for name, buffer in model.named_buffers() if name not in bound}
    apart = [
        name
        for name, tensor in own.items()
        if name not in theirs or theirs[name].dtype != tensor.dtype or not torch.equal(theirs[name], tensor)
    ]
    return apart + [name for name in theirs if name not in own]


def _settings_lost(model: Any, restored: Any) -> list[str]:
    """Entries that differ, by name; where a model came from, and the version that wrote it, may."""
    lost = []
    for part in ("config", "generation_config"):
        own, other = getattr(model, part, None), getattr(restored, part, None)
        if own is None and other is None:
            continue
        if own is None or other is None:
            lost.append(part)
            continue
        before, after = own.to_dict(), other.to_dict()
        lost += [
            f"{part}.{name}"
            for name in sorted(before.keys() | after.keys())
            if name not in _MAY_DIFFER and before.get(name) != after.get(name)
        ]
    return lost


_MAY_DIFFER = frozenset({"_name_or_path", "transformers_version", "architectures", "_from_model_config"})


def _dispatched(group: Group, loaded: Loaded, folder: Path, found: Elsewhere) -> None:
    """The saved shards through accelerate's own loader, where it can know the names."""
    index = folder / "model.safetensors.index.json"
    saved = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"]) if index.is_file() else set()
    tied = {name for names in ties(loaded.model) for name in names}
    own = {name for name, _ in loaded.model.named_parameters(remove_duplicate=False)}
    if not saved or own - tied - saved or not saved <= own | dict(loaded.model.named_buffers()).keys():
        return
    with under_test("dispatch"):
        model = stack_api.dispatch_checkpoint(loaded.model, folder, group.device)
    differing = _state_differing(loaded.model, model, parameters_only=True)
    found.dispatched_differing = len(differing)
    if differing:
        found.facts["dispatched_differing_in"] = differing[:6]


def _resized(model: Any, more: int = 8) -> int:
    """Rows that `resize_token_embeddings` changes of the input and the output embedding when it adds `more` and takes
    them away again; missing and non-finite rows counted."""
    parts = {"input": model.get_input_embeddings, "output": model.get_output_embeddings}
    before = {name: part().weight.detach().clone() for name, part in parts.items() if hasattr(part(), "weight")}
    rows = before["input"].shape[0]
    changed = 0
    for wanted in (rows + more, rows):
        with under_test("resize"):
            stack_api.resize_embeddings(model, wanted)
        for name, own in before.items():
            after = parts[name]().weight.detach()
            if after.shape != (wanted, own.shape[1]):
                changed += rows
            else:
                changed += int((after[:rows] != own).any(-1).sum())
                changed += int((~torch.isfinite(after[rows:])).any(-1).sum())
    return changed


def _host_offloaded(group: Group, model: Any) -> Any:
    """`model` itself, its weights fetched from host memory for each module's forward."""
    with under_test("offload"):
        return stack_api.offload_to_host(model, group.device)


def _disk_offloaded(group: Group, loaded: Loaded, folder: Path) -> Any:
    """The checkpoint, loaded by the library's own device map with too little memory for all of it."""
    total = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    memory: dict[Any, int] = {"cpu": int(HELD_SHARE * total)}
    if group.device.type == "cuda":
        memory = {group.device.index or 0: int(HELD_SHARE * total), "cpu": 0}
    with under_test("offload"):
        model = stack_api.auto_class(group.task).from_pretrained(
            group.checkpoint.location,
            **group.checkpoint.arguments,
            **stack_api.dtype_argument(group.dtype),
            attn_implementation="eager",
            device_map="auto",
            max_memory=memory,
            offload_folder=str(folder),
        )
        return model.eval()


def _forward(group: Group, model: Any, inputs: dict[str, torch.Tensor], phase: str) -> torch.Tensor:
    with under_test(phase), torch.no_grad():
        output = output_of(model(**inputs), group.task)
        synchronize(group.device)
        return output.to(group.device)
