"""Why a check failed: the smallest call that shows it, the module where it begins, the kernels that ran.

In: what the parent judged: the check and the bounds that were broken. Out: plain JSON for the evidence. Nothing here
decides: bounds come from the parent, and a case that shows nothing is reported as such.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from compat.worker import cases, minimise, starts
from compat.worker.calls import StackError
from compat.worker.cases import Case, Figures
from compat.worker.dispatch import kernels_seen
from compat.worker.divergence import Bounds, Divergence, Recording, divergences, recording
from compat.worker.group import Group, Loaded
from compat.worker.inputs import unpadded
from compat.worker.raised import device_lost, explain_raised

MODULE_BOUNDS = Bounds(rms=1.5, token=3.5)
"""For a module's output, where the parent sent no bound: clean SDPA against eager measures up to 1.12 and 1.8 in any
module of 14 probe families in fp32, bf16 and fp16 on a CPU."""

OWN_BOUNDS = {2: Bounds(rms=5.0, token=20.0), 4: Bounds(rms=32.0, token=64.0)}
"""For eager against fp64 alone, in units of the floor, by the bytes of the dtype: any module of 15 clean probe families
measures up to 3.3 and 13 in bf16, 18 and 50 in fp32."""

MARGIN = 1.3
"""A case is made smaller only while it stays so far beyond a bound: another machine should see it too."""

JUDGED = ("nonfinite_elements", "ratio_rms", "ratio_token", "ratio_max", "kl_excess", "yardstick_error",
          "candidate_error", "yardstick_token", "unexcused_tokens", "score_differences", "token_differences",
          "length_differences", "random_numbers_drawn", "repeated_difference",
          "after_other_calls_difference")  # fmt: skip
"""Figures of a case that a bound can speak of; a check's own measurements may carry a prefix before these names."""


def explain(group: Group, attention: dict[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to `{"check", "limits", "effort", "seconds"}`: `diverges_at` and `minimal`.

    `limits` are bounds by measurement, `effort` is `case` (the call as the check made it) or `full` (made smaller, and
    traced). With `raised` the question is which call raises that (compat.worker.raised). Raises StackError,
    Unavailable, NoYardstick.
    """
    if group.shape:
        return _answer(None, {}, {}, note="random weights of full size: nothing to compare a smaller call with")
    if request.get("raised"):
        return explain_raised(group, attention, request)
    deadline = time.perf_counter() + request["seconds"]
    loaded = group.loaded(attention)
    limits = by_figure(request["limits"])
    begun = starts.starts(group, request["check"])
    if not begun:
        return _answer(None, {}, limits, note=f"{request['check']} asks for no single call that could be made smaller")

    def shows(case: Case, margin: float = 1.0) -> bool:
        if time.perf_counter() > deadline:
            raise minimise.OutOfTime
        try:
            with group.forgetting():
                return bool(beyond(cases.figures(group, loaded, case), limits, margin))
        except StackError as error:
            if device_lost(error.original):
                raise
            return False  # another failure than the one to be explained

    try:
        case = next((c for margin in (MARGIN, 1.0) for c in begun if shows(c, margin)), None)
    except minimise.OutOfTime:
        case = None
    if case is None:
        note = "no single call of those tried shows it: forward, padded batch, decoding or greedy generation"
        return _answer(None, {}, limits, note=note)
    if request["effort"] != "full":
        with group.forgetting():
            found = cases.figures(group, loaded, case)
        return _answer(case, found, limits, note="as the check asked it, not made smaller")
    margin = MARGIN if shows(case, MARGIN) else 1.0
    case, whole = minimise.minimised(case, lambda smaller: shows(smaller, margin))
    with group.forgetting():
        found = cases.figures(group, loaded, case)
    modules = _modules(group, loaded, case, limits, own_yardstick=attention["name"] == "eager")
    with kernels_seen(attention["implementation"]) as kernels:
        cases.call(group, loaded, case)
    notes = [] if whole else ["time was up before every way of making it smaller was tried"]
    if case["kind"] in cases.UNTRACED:
        notes.append("the model's modules are not to blame: what is made of their output is, or that it changes")
    elif not modules:
        notes.append("no single module's output leaves the yardstick's own error")
    return _answer(case, found, limits, modules, dict(kernels), "; ".join(notes))


def by_figure(limits: Mapping[str, float]) -> dict[str, float]:
    """Bounds by the name of the figure: `decode_ratio_token` bounds `ratio_token`; the strictest counts."""
    found: dict[str, float] = {}
    for name, bound in limits.items():
        figure = next((f for f in JUDGED if name == f or name.endswith(f"_{f}")), None)
        if figure is not None:
            found[figure] = min(bound, found.get(figure, bound))
    return found


def beyond(figures: Figures, limits: Mapping[str, float], margin: float = 1.0) -> list[str]:
    """The figures that exceed `margin` times their bound; one that is not finite does."""
    return [n for n, bound in limits.items() if n in figures and ((v := figures[n]) is None or v > margin * bound)]


def _answer(
    case: Case | None,
    figures: Figures,
    limits: Mapping[str, float],
    modules: list[Divergence] | None = None,
    kernels: dict[str, int] | None = None,
    note: str = "",
) -> dict[str, Any]:
    minimal: dict[str, Any] = {}
    if case is not None:
        minimal["case"] = case
        minimal["figures"] = {k: None if v is None else float(f"{v:.4g}") for k, v in figures.items()}
        minimal["beyond"] = {name: limits[name] for name in beyond(figures, limits)}
    if modules:
        minimal["modules"] = [m.plain() for m in modules]
    if kernels is not None:
        minimal["kernels"] = kernels
    if note:
        minimal["note"] = note
    return {"diverges_at": modules[0].module if modules else "", "minimal": minimal}


# -- where it begins ---------------------------------------------------------------------------------------------


def _modules(
    group: Group, loaded: Loaded, case: Case, limits: Mapping[str, float], own_yardstick: bool
) -> list[Divergence]:
    """The first modules that leave; the row of the batch that leaves first."""
    if case["kind"] in cases.UNTRACED or case.get("settings"):
        return []
    alone = own_yardstick and case["kind"] == "forward"
    bounds = _bounds(group, limits, alone)
    loaded.activate()  # before the hooks: switching attention may look at modules
    with recording(loaded.model) as candidate:
        produced = cases.call(group, loaded, case)
    places = cases.windows(group, case)
    found: list[Divergence] = []
    for row, windows in enumerate(places):
        inputs = unpadded(cases.alone(group, case, row, produced), group.device, group.dtype)
        with recording(group.reference.model) as right:
            group.reference(**inputs)
        yard = None if alone else _record(group.eager, inputs)
        found = divergences(candidate, yard, right, group.dtype, bounds, windows, len(places))
        if found:
            break
    return found


def _record(loaded: Loaded, inputs: dict[str, torch.Tensor]) -> Recording:
    loaded.activate()
    with recording(loaded.model) as found:
        loaded(**inputs)
    return found


def _bounds(group: Group, limits: Mapping[str, float], own_yardstick: bool) -> Bounds:
    """Beyond what a module has left: as strict as the bound that was broken, never stricter than clean modules are."""
    if not own_yardstick:
        token = limits.get("ratio_token", MODULE_BOUNDS.token)
        return Bounds(max(limits.get("ratio_rms", 0.0), MODULE_BOUNDS.rms), token)
    own = OWN_BOUNDS[group.dtype.itemsize]
    if not group.spec.quantization["library"]:
        return own
    return Bounds(
        max(limits.get("yardstick_error", 0.0), own.rms), 4 * max(limits.get("yardstick_error", 0.0), own.rms)
    )
