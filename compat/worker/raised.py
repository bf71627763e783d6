"""Why a check raised: the smallest call that raises the same.

In: what was raised, as a pattern: `phase`, `type`, `message` (a regular expression for the first line). Out: plain JSON
for the evidence. Calls are tried from the plainest to those that the check makes; the first that raises it is made
smaller as any failing call is (compat.worker.minimise).
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import torch

from compat.worker import cases, minimise, stack_api, starts
from compat.worker.calls import StackError, under_test
from compat.worker.cases import Case
from compat.worker.checks.gradient import trained
from compat.worker.dispatch import forced_sdpa_kernel
from compat.worker.group import EAGER, Group
from compat.worker.training import trainable

INDIVISIBLE = ("load", "switch", "save")
"""Kinds of call that have no rows to make fewer."""

LOST = r"CUDA error|illegal memory access|device-side assert|misaligned address|unspecified launch failure"
"""After such an error every further call on the device fails (compat/refusals.toml, `device-fault`)."""


def explain_raised(group: Group, attention: dict[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to `{"check", "raised", "effort", "seconds"}`: `minimal`. Raises StackError when the device is lost,
    Unavailable."""
    deadline = time.perf_counter() + request["seconds"]
    raised: dict[str, Any] = dict(request["raised"])

    def shows(case: Case) -> bool:
        if time.perf_counter() > deadline:
            raise minimise.OutOfTime
        try:
            with group.forgetting():
                call(group, attention, case)
        except StackError as error:
            if device_lost(error.original):
                raise
            return same(error.original, raised)
        return False

    notes: list[str] = []
    case: Case | None = None
    tried: dict[str, None] = {}
    try:
        for start in starts.raising(group, request["check"], raised["phase"]):
            tried[start["kind"]] = None
            if shows(start):
                case = start
                break
    except minimise.OutOfTime:
        notes.append("time was up before every call was tried")
    if case is None:
        notes.append(f"no single call of those tried raises it: {', '.join(tried) or 'none'}")
        return {"diverges_at": "", "minimal": {"note": "; ".join(notes)}}
    if request["effort"] != "full":
        notes.append("as the check asked it, not made smaller")
    elif case["kind"] not in INDIVISIBLE:
        case, whole = minimise.minimised(case, shows)
        if not whole:
            notes.append("time was up before every way of making it smaller was tried")
    minimal: dict[str, Any] = {"case": case, "raises": raised}
    return {"diverges_at": "", "minimal": minimal | ({"note": "; ".join(notes)} if notes else {})}


def call(group: Group, attention: dict[str, Any], case: Case) -> None:
    """Make the call of `case`, of the kinds of compat.worker.cases or `load`, `switch`, `save`, `train`. Raises
    StackError, Unavailable."""
    kind = case["kind"]
    if kind == "load":
        group.fresh(attention)
    elif kind == "switch":
        model = group.fresh(EAGER).model
        with under_test("switch"):
            stack_api.switch_attention(model, attention["implementation"])
    elif kind == "save":
        _save(group, group.loaded(attention).model)
    elif kind == "train":
        loaded = trained(group, attention)
        loaded.activate()
        with under_test("train"), trainable(loaded.model), forced_sdpa_kernel(attention["sdpa_kernel"]):
            loss_of(loaded.model, case["rows"], case.get("decoder"), group.task, group.device).backward()
    else:
        cases.call(group, group.loaded(attention), case)


def _save(group: Group, model: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="compat-") as folder:
        with under_test("save"):
            model.save_pretrained(folder)
        with under_test("reload"):
            stack_api.auto_class(group.task).from_pretrained(folder, **stack_api.dtype_argument("auto"))


def loss_of(model: Any, rows: list[list[int]], decoder: Any, task: str, device: torch.device) -> torch.Tensor:
    """The loss of rows of one length without a mask: the library's own where the task has labels, else a mean."""
    with torch.enable_grad():
        arguments = {"input_ids": torch.tensor(rows, device=device)}
        if task == "feature-extraction":
            loss: torch.Tensor = model(**arguments).last_hidden_state.float().square().mean()
        else:
            labels = torch.tensor(decoder, device=device) if decoder else arguments["input_ids"]
            loss = model(**arguments, labels=labels).loss
    return loss


# -- what was raised ---------------------------------------------------------------------------------------------


def same(error: BaseException, raised: Mapping[str, Any]) -> bool:
    """Whether `error` is what `raised` describes: its type (with or without the module) and its first line."""
    kind = kind_of_error(error)
    typed = kind == raised["type"] or kind.endswith(f".{raised['type']}")
    return typed and re.search(raised["message"], first_line(error)) is not None


def kind_of_error(error: BaseException) -> str:
    """`ValueError`, `torch.AcceleratorError`."""
    return f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")


def first_line(error: BaseException) -> str:
    """The first line of the message that is not blank; "" where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def device_lost(error: BaseException) -> bool:
    """Whether nothing more can be asked of the device in this process."""
    return re.search(LOST, str(error)) is not None
