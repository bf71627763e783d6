"""Findings of `dispatch`: on which paths another kernel ran than was asked for. Pure, as compat.judge is.

In: the backend that was asked for and the check's facts (path -> operator -> layers). Out: (finding, reason) pairs;
compat/criteria/dispatch.toml says what each finding is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compat.axes import ATTENTION
from compat.axes.attention import kernel_kind

LOOKED_AT_BY_LOAD = "plain"
"""The path that `load` looks at too: a forward, before anything else was asked of the model."""

ASKED_FOR_WEIGHTS = "attentions"
"""The path that asks for attention weights, which only eager attention has."""

RECORDED = "train"
"""The path under autograd: SDPA's fused kernels refuse a mask that needs a gradient (T5's bias); math takes over."""

VERBS = {"path-fell-back": "fell back to", "path-other": "ran"}


def path_findings(attention: str, facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Paths on which another kernel ran than was asked for, with the layers.

    What a plain forward runs in every layer is `load`'s to say, and so is a backend that runs on no path at all.
    """
    requested = ATTENTION[attention]
    paths: Mapping[str, Mapping[str, Any]] = facts.get("kernels", {})
    plain = _kinds(paths.get(LOOKED_AT_BY_LOAD, {}))
    replaced = not plain & (requested.kinds | requested.slower_kinds)
    places: dict[tuple[str, str], list[str]] = {}
    for path, kernels in paths.items():
        for operator, layers in kernels.items():
            kind = kernel_kind(operator)
            slower = kind in requested.slower_kinds
            said_by_load = (path == LOOKED_AT_BY_LOAD and isinstance(layers, str)) or (replaced and kind in plain)
            documented = path == ASKED_FOR_WEIGHTS or (path == RECORDED and slower)
            if kind is None or kind in requested.kinds or said_by_load or documented:
                continue
            where = layers if isinstance(layers, str) else ", ".join(layers)
            places.setdefault(("path-fell-back" if slower else "path-other", kind), []).append(f"{path} ({where})")
    found = [
        (finding, f"asked for {attention}, {VERBS[finding]} {kind} in {'; '.join(where)}")
        for (finding, kind), where in places.items()
    ]
    switched = _kinds(paths.get(ASKED_FOR_WEIGHTS, {})) - requested.kinds - requested.slower_kinds - plain
    if switched and not facts.get("output_attentions", {}).get("announced"):
        ran = ", ".join(sorted(switched))
        found.append(("attentions-switched", f"asked for {attention} and its weights, ran {ran} and said nothing"))
    return found


def _kinds(kernels: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(kind for name in kernels if (kind := kernel_kind(name)) is not None)
