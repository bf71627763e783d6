"""load: does the combination load, and is what was asked for what runs?

Facts: attention, dtype, quantization and devices as effective; what the class declares of itself; how the backend was
reached (loaded, switched, reloaded); kernels seen in one unpadded forward. Measurements: elements that differ from
the checkpoint rounded to the dtype, parameters, settings and buffers that are not as asked, share of quantizable
parameters really quantized, load and first-forward seconds. In the eager cell of an unquantized group also what does
not depend on the backend: whether the checkpoint's own values arrived, and whether other ways of loading (saved again
and in shards, by a device map, offloaded) give the same model. In a mode whether that took effect, in words; what
depends on the weights only where the mode leaves them as they were. Of a shape (random weights) only what needs no
checkpoint to compare with: facts say what was not asked.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from compat.worker import asked, classifier, modes, onnx_runtime, reload, stack_api, way_back
from compat.worker.group import Group, Loaded
from compat.worker.inputs import unpadded
from compat.worker.load import dtype_shares, quantized_modules
from compat.worker.report import Report

PROBE_LENGTH = 33

NOT_OF_A_SHAPE = [
    "weights against the checkpoint's",
    "the checkpoint's own values",
    "saving, loading again, a device map, offloading",
]
"""What would compare a model of random weights with itself, or copy it several times."""

NOT_OF_A_MODE = ["weights against the checkpoint's", "dtypes, settings and buffers"]
"""What the check `mode` asks in its own way of a model whose weights were changed or lie elsewhere."""


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable."""
    report = Report(seed=group.spec.seed)
    loaded = group.loaded(attention)
    if attention.get("provider"):
        return _exported(group, loaded, report)
    kernels, seconds, output = _kernels(group, loaded)
    if loaded.how == "switched" and not _ran(attention, kernels):
        facts = {"switch": f"said it took effect, but the kernels were {_named(kernels)}"}
        loaded = group.reload(attention, facts)
        kernels, seconds, output = _kernels(group, loaded)
    report.kernels = kernels
    model = loaded.model
    report.facts = {
        "attention": _effective(loaded),
        "how": loaded.how,
        **loaded.facts,
        "class": type(model).__name__,
        "declares": stack_api.declared(type(model)),
        "dtype_shares": {k: round(v, 4) for k, v in dtype_shares(model).items()},
        "devices": sorted({str(p.device) for p in model.parameters()}),
        "training": any(module.training for module in model.modules()),
    }
    if attention.get("convert"):
        report.measure("converted_modules", len(loaded.facts["converted"]), unit="modules", better="higher")
    if loaded.load_seconds is not None:
        report.measure("load_seconds", loaded.load_seconds, unit="s")
    report.measure("first_forward_seconds", seconds, unit="s")
    if group.spec.quantization["library"]:
        _quantization(group, model, report)
    if group.mode.kind != "plain":
        report.facts["mode"] = modes.seen(group, loaded)
    if group.mode.kind == "what" or group.mode.family == "placement":
        report.measure("nonfinite_elements", int((~torch.isfinite(output)).sum()), unit="elements", method="sum")
        report.facts["not_asked"] = NOT_OF_A_MODE
        return report
    if not group.shape:
        _weights(group, model, report)
    _as_asked(group, model, report)
    if group.shape:
        report.measure("nonfinite_elements", int((~torch.isfinite(output)).sum()), unit="elements", method="sum")
        report.facts["not_asked"] = NOT_OF_A_SHAPE
        return report
    if group.mode.kind != "plain":
        return report
    if attention.get("convert") and group.spec.at_least("standard"):
        way_back.measure(group, attention, report)
    if attention["name"] == "eager" and not group.spec.quantization["library"]:
        _origin(group, report)
        if reload.affordable(group):
            _elsewhere(group, loaded, report)
        if classifier.small(group) and loaded.model.base_model is not loaded.model:
            lost = reload.without_head(group, loaded)
            report.measure("head_swap_differing", len(lost), unit="parameters")
            if lost:
                report.facts["head_swap_differing_in"] = lost[:6]
        if classifier.asked(group):
            wrong = classifier.head_wrong(group)
            report.measure("new_head_wrong", len(wrong), unit="parameters")
            if wrong:
                report.facts["new_head_wrong_in"] = wrong[:6]
    return report


def _exported(group: Group, loaded: Loaded, report: Report) -> Report:
    """What can be said of a graph: its providers, its weights' dtypes, the nodes that ran."""
    rows = group.source.rows(group.spec.seed, [PROBE_LENGTH] * 2)
    inputs = unpadded(rows, group.device, group.dtype)
    provider = loaded.attention["provider"]
    started = time.perf_counter()
    loaded(**inputs)
    report.measure("load_seconds", loaded.load_seconds, unit="s")
    report.measure("first_forward_seconds", time.perf_counter() - started, unit="s")
    ran = onnx_runtime.nodes(group.graph(loaded.attention), inputs)
    report.kernels = {f"{where}::{name}": n for (where, name), n in ran.items() if name in onnx_runtime.PRODUCTS}
    held = {name: session.get_providers() for name, session in onnx_runtime.sessions(loaded.model).items()}
    report.facts = {
        "attention": "onnxruntime" if all(provider in own for own in held.values()) else "another provider",
        "how": loaded.how,
        "class": type(loaded.model.model).__name__,
        "dtype_shares": {k: round(v, 4) for k, v in onnx_runtime.held_dtypes(loaded.model).items()},
        "providers": held,
        "nodes": {where: sum(n for (w, _), n in ran.items() if w == where) for where in sorted({w for w, _ in ran})},
        "io_binding": bool(loaded.model.model.use_io_binding),
        "training": False,
    }
    report.measure("compared_nodes", sum(ran.values()), unit="nodes", better="higher")
    return report


def _effective(loaded: Loaded) -> str:
    """What computes the attention of `loaded`, as far as the model itself says."""
    own = stack_api.effective_attention(loaded.model)
    return str(loaded.attention["convert"]) if loaded.facts.get("converted") else own


def _kernels(group: Group, loaded: Loaded) -> tuple[dict[str, int], float, torch.Tensor]:
    """Operators of one forward of two short rows, the seconds of the first, its output."""
    rows = group.source.rows(group.spec.seed, [PROBE_LENGTH] * 2)
    inputs = unpadded(rows, group.device, group.dtype)
    started = time.perf_counter()
    if modes.profiled(group):
        loaded(**inputs)
        seconds = time.perf_counter() - started
        with modes.kernels_of(loaded) as seen:
            output = loaded(**inputs)
        return dict(seen), seconds, output
    with modes.kernels_of(loaded) as seen:
        output = loaded(**inputs)
    return dict(seen), time.perf_counter() - started, output


def _named(kernels: dict[str, int]) -> str:
    return ", ".join(sorted(kernels)) or "none that attention uses"


def _ran(attention: dict[str, Any], kernels: dict[str, int]) -> bool:
    """Whether any operator of the requested backend was seen (the parent's registry says which belong to it)."""
    wanted = attention.get("operators", [])
    return not wanted or any(part in name for part in wanted for name in kernels)


def _quantization(group: Group, model: Any, report: Report) -> None:
    total = sum(group.quantizable.values())
    done = sum(n for path, n in group.quantized.items() if path in group.quantizable)
    report.measure("quantized_share", done / total if total else None, better="higher", method="min")
    modules = quantized_modules(model)
    missing = sorted(set(group.quantizable) - set(group.quantized))
    report.facts["quantization"] = {
        "says_quantized": bool(getattr(model, "is_quantized", False)),
        "modules": len(modules),
        "kinds": sorted({type(m).__name__ for m in modules.values()}),
        "not_quantized": missing[:6] + ([f"... {len(missing) - 6} more"] if len(missing) > 6 else []),
    }


def _weights(group: Group, model: Any, report: Report) -> None:
    """Compare every parameter that is not quantized with the fp32 checkpoint rounded to its dtype, bit for bit.

    Non-trainable statistics (rotary frequencies) are buffers and not compared here.
    """
    master = dict(group.master.named_parameters())
    differing = compared = 0
    names = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own = master.get(name)
            if (
                own is None
                or name in group.quantized
                or own.shape != parameter.shape
                or not parameter.is_floating_point()
            ):
                continue
            expected = own.to(parameter.dtype).to(parameter.device)
            compared += parameter.numel()
            if not torch.equal(expected, parameter):
                differing += int((expected != parameter).sum())
                names.append(name)
    report.measure("weights_differing", differing, unit="elements", method="sum")
    report.measure("weights_compared", compared, unit="elements", better="higher", method="sum")
    if names:
        report.facts["weights_differing_in"] = names[:6]


def _as_asked(group: Group, model: Any, report: Report) -> None:
    """Parameters, settings, buffers and ties against what was asked for and what the checkpoint says."""
    buffers, compared = asked.buffers_differing(group, model)
    broken = reload.ties(group.master) ^ reload.ties(model)
    counts = {
        "dtypes_differing": asked.dtypes_differing(group, model),
        "settings_differing": asked.settings_differing(group, model),
        "buffers_differing": buffers,
        "ties_differing": [*(", ".join(sorted(names)) for names in broken), *asked.ties_differing(group, model)],
    }
    for name, found in counts.items():
        report.measure(name, len(found), unit="names")
        if found:
            report.facts[f"{name}_in"] = found[:6]
    report.facts["buffers_compared"] = compared
    report.measure("settings_left_changed", len(group.left_changed), unit="settings")
    if group.left_changed:
        report.facts["settings_left_changed_in"] = sorted(group.left_changed)


def _origin(group: Group, report: Report) -> None:
    found, compared = asked.origin_differing(group)
    report.measure("origin_differing", len(found), unit="parameters")
    report.facts["origin_compared"] = compared
    if found:
        report.facts["origin_differing_in"] = found[:6]


def _elsewhere(group: Group, loaded: Loaded, report: Report) -> None:
    found = reload.elsewhere(group, loaded)
    report.measure("reload_differing", found.state_differing, unit="tensors")
    report.measure("keys_unaccounted", found.keys_unaccounted, unit="keys")
    report.measure("reload_output_differing", found.output_differing, unit="elements")
    report.measure("offload_difference", found.offload_difference, unit="eps rms(output)")
    report.measure("settings_lost", found.settings_lost, unit="entries")
    report.measure("defaults_differing", found.defaults_differing, unit="settings")
    for name, count in (("dispatched", found.dispatched_differing), ("resize", found.resize_differing)):
        if count is not None:
            report.measure(f"{name}_differing", count, unit="tensors" if name == "dispatched" else "rows")
    report.facts["elsewhere"] = found.facts
