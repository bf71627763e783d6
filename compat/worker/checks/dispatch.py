"""dispatch: which kernels run, on every path and in every part of the model, and in which dtype?

Every path of compat.worker.paths is traced. Facts: for each path which attention operators ran and in which layers, so
that the parent can tell from its registry whether they are those of the backend that was asked for; what the library
did when it was asked to return attention weights, and whether it said so; which quantized kernels ran. Measurements:
attention layers whose forward ran no attention operator, linear layers that multiplied in another dtype than the
cell's (and how much of the work they did), attention and layer outputs in another dtype, quantized layers that did not
run a quantized kernel.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch

from compat.worker import quantizers
from compat.worker.affine import is_affine
from compat.worker.arithmetic import Arithmetic, name_of
from compat.worker.dispatch import FUSED_PREFIX
from compat.worker.group import Group
from compat.worker.load import kept_in_fp32, quantized_modules
from compat.worker.paths import Walk, refused, walked
from compat.worker.report import Report
from compat.worker.trace import LAYER_PRODUCTS, OUTSIDE, Operator

NAMED = 4
"""Layers that a fact names; more are counted."""

BACKWARD = "train"
"""The path that autograd records: kernels that an adapter or a position bias rules out give way there."""


BETWEEN_CODES = ("int8_scaled_mm", "int_scaled_matmul", "int_matmul", "_int_mm")
"""Products of integers: their floating arguments are scales."""


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable."""
    report = Report(seed=group.spec.seed)
    found = walked(group, attention)
    model = group.loaded(attention).model
    layers = attention_layers(model)
    report.facts["kernels"] = {name: kernels_in(walk) for name, walk in found.walks.items()}
    if found.absent:
        report.facts["absent_paths"] = found.absent
    report.measure("paths_raised", sum(not refused(why) for why in found.absent.values()), unit="paths")
    report.measure("gradients_left_off", found.gradients_left_off, unit="paths")
    if found.attentions:
        report.facts["output_attentions"] = found.attentions
    kernels: Counter[str] = Counter()
    for walk in found.walks.values():
        kernels.update(o.name for o in walk.trace.operators if o.kind == "attention")
        kernels.update(walk.trace.kernels)
    report.kernels = dict(kernels)
    report.measure("compared_paths", len(found.walks), unit="paths", better="higher")
    if not layers and not kernels:
        report.facts["attention"] = "none: no layer of this family has any"
    if any(w.trace.operators for w in found.walks.values()):
        _layers(report, found.walks, layers)
        _dtypes(report, group, model, found.walks)
        if attention["name"] == "sdpa" and group.mode.kind == "plain":
            _training(report, model, found.walks)
        if group.spec.quantization["library"]:
            _quantized(report, model, found.walks)
    return report


def attention_layers(model: Any) -> frozenset[str]:
    """Paths of the modules that compute attention: those whose class is named so, and hold no other such module."""
    named = {p for p, m in model.named_modules() if "attention" in type(m).__name__.lower() and p}
    return frozenset(p for p in named if not any(other.startswith(f"{p}.") for other in named))


def kernels_in(walk: Walk) -> dict[str, list[str] | str]:
    """Attention operator -> the layers in which it ran, or `all N` where it ran in every one that ran.

    Of attention that compiles itself only the number of calls is known.
    """
    if walk.trace.kernels:
        return {name: f"{count} calls" for name, count in walk.trace.kernels.items()}
    places: dict[str, dict[str, None]] = {}
    for o in walk.trace.operators:
        if o.kind == "attention":
            places.setdefault(o.name, {})[o.where] = None
    ran = {w for where in places.values() for w in where}
    return {
        name: f"all {len(ran)}" if ran and set(where) == ran else _few(sorted(where)) for name, where in places.items()
    }


def _few(names: list[str]) -> list[str]:
    return names if len(names) <= NAMED else [*names[:NAMED], f"{len(names) - NAMED} more"]


def _layers(report: Report, walks: dict[str, Walk], layers: frozenset[str]) -> None:
    """Attention layers that ran, and those of them in which no attention operator was seen."""
    ran = 0
    unseen: dict[str, list[str]] = {}
    for name, walk in walks.items():
        called = {c.where for c in walk.trace.calls} & layers
        seen = {o.where for o in walk.trace.operators if o.kind == "attention"}
        ran += len(called)
        if called - seen:
            unseen[name] = _few(sorted(called - seen))
    if layers:
        report.measure("compared_layers", ran, unit="layers", better="higher")
        report.measure("unseen_layers", sum(len(v) for v in unseen.values()), unit="layers")
    if unseen:
        report.facts["unseen_layers"] = unseen


def _training(report: Report, model: Any, walks: dict[str, Walk]) -> None:
    """Layers that a plain row, which needs no mask, takes through a fused kernel without gradients only. A position
    bias that learns rules the fused kernel out."""
    if not {"plain", BACKWARD} <= set(walks):
        return
    if any(re.search("relative|position_bias", name) for name, _ in model.named_parameters()):
        report.facts["training_kernels"] = "not asked: position biases learn, and no fused kernel takes them"
        return
    kernels = {name: [o for o in walks[name].trace.operators if o.kind == "attention"] for name in ("plain", BACKWARD)}
    fused = {o.where for o in kernels["plain"] if o.name.startswith(FUSED_PREFIX)}
    unfused = {o.where for o in kernels[BACKWARD] if not o.name.startswith(FUSED_PREFIX)}
    report.measure("unfused_in_training", len(fused & unfused), unit="layers")


def _dtypes(report: Report, group: Group, model: Any, walks: dict[str, Walk]) -> None:
    weights = Arithmetic(model, group.task).weights
    kept = {name_of(n) for n, _ in model.named_parameters() if kept_in_fp32(model, n)}
    wider: Counter[str] = Counter()
    narrower: Counter[str] = Counter()
    attention: Counter[str] = Counter()
    total = 0
    computing = quantizers.compute_dtype(group.spec.quantization, group.dtype)
    for walk in walks.values():
        for o in walk.trace.operators:
            if o.macs and o.where != OUTSIDE and (o.weight or o.name in LAYER_PRODUCTS):
                name = name_of(o.weight) or o.where
                total += o.macs
                own = _foreign(o, computing if o.kind == "quantized" else group.dtype)
                known = weights.get(name)
                if own is not None and name not in kept and not (known is not None and known.router):
                    (wider if own.itemsize > group.dtype.itemsize else narrower)[f"{name}: {_short(own)}"] += o.macs
            elif o.kind == "attention" and walk.name != BACKWARD:
                own = _foreign(o, group.dtype)
                if own is not None and own.itemsize <= group.dtype.itemsize:
                    attention[f"{o.where}: {_short(own)}"] += 1
    report.measure("wider_products", sum(wider.values()) / total if total else None, unit="of all multiply-adds")
    report.measure("narrower_products", sum(narrower.values()) / total if total else None, unit="of all multiply-adds")
    report.measure("narrower_attention", sum(attention.values()), unit="kernels")
    layers = attention_layers(model)
    around = {".".join(layer.split(".")[:n]) for layer in layers for n in range(layer.count(".") + 1)}
    if kept:  # the residual stream may be as wide as what is kept in fp32
        around = set()
    linear = {n.removesuffix(".weight") for n, w in weights.items() if not w.router}  # some score in fp32
    outputs = _outputs(walks, layers | around | linear, group.dtype, kept)
    report.measure("foreign_outputs", len(outputs), unit="modules")
    foreign = [*wider, *narrower, *attention, *outputs]
    if foreign:
        report.facts["other_dtype_in"] = _few(sorted(foreign))


def _foreign(o: Operator, dtype: torch.dtype) -> torch.dtype | None:
    """The dtype that a product or kernel computes in, where it is not `dtype`. A quantized product is known by its
    first floating argument: the others are statistics, and one between codes has nothing else."""
    if o.name.partition("::")[2] in BETWEEN_CODES:
        return None
    floats = o.dtypes[:1] if o.kind == "quantized" else o.dtypes
    return next((d for d in floats if d != dtype), None)


def _outputs(
    walks: dict[str, Walk], modules: set[str] | frozenset[str], dtype: torch.dtype, kept: set[str]
) -> list[str]:
    """Modules of the given ones whose output has another dtype than the cell's."""
    found = {
        f"{c.where}: {_short(c.output)}"
        for walk in walks.values()
        for c in walk.trace.calls
        if c.where in modules
        and c.output is not None
        and c.output.is_floating_point
        and c.output != dtype
        and f"{c.where}.weight" not in kept
    }
    return sorted(found)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _quantized(report: Report, model: Any, walks: dict[str, Walk]) -> None:
    """Quantized layers that ran, and those of them in which no quantized kernel was seen."""
    held = quantized_modules(model)
    modules, plain = set(held), {path for path, module in held.items() if is_affine(module)}
    if not modules:
        return
    ran = 0
    unseen: set[str] = set()
    names: Counter[str] = Counter()
    dequantized = []
    for walk in walks.values():
        if walk.name == BACKWARD:
            continue
        called = {c.where for c in walk.trace.calls} & modules
        own = [o for o in walk.trace.operators if o.kind == "quantized"]
        names.update(o.name for o in own)
        ran += len(called)
        calls = sum(c.where in modules for c in walk.trace.calls)
        dequantized.append(sum("dequantize_4bit" in o.name for o in own) / calls if calls else 0.0)
        # torchao and quanto multiply with torch's own operators too: what counts is that a layer read its codes
        read = {o.where for o in walk.trace.operators if o.where in plain and o.weight == f"{o.where}.weight"}
        unseen |= {f"{name} in {walk.name}" for name in called - {o.where for o in own} - read}
    report.facts["quantized_kernels"] = dict(names)
    report.measure("compared_quantized_layers", ran, unit="layers", better="higher")
    report.measure("unquantized_layers", len(unseen), unit="layers")
    report.measure("dequantizations", dequantized, unit="a call of a layer")
    if unseen:
        report.facts["unquantized_layers"] = _few(sorted(unseen))
