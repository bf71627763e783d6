"""Why a check raised: the smallest call that raises the same, on a model whose feed-forward raises at will."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from compat.worker.calls import StackError
from compat.worker.group import Group
from compat.worker.raised import device_lost, explain_raised, first_line, kind_of_error, same

from .checks.groups import attention, group

EAGER = attention("eager")


@contextmanager
def raising(own: Group, error: Exception, when: Callable[[torch.Tensor], bool]) -> Iterator[None]:
    """The group's model raises `error` when its first feed-forward is given something for which `when` holds."""

    def hook(_: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        if when(arguments[0]):
            raise error

    model = own.loaded(EAGER).model
    handle = model.model.layers[0].mlp.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def explained(own: Group, check: str, phase: str, effort: str = "full") -> dict[str, Any]:
    raised = {"phase": phase, "type": "ValueError", "message": "no room for"}
    answer = explain_raised(own, EAGER, {"check": check, "raised": raised, "effort": effort, "seconds": 60.0})
    minimal: dict[str, Any] = answer["minimal"]
    return minimal


@pytest.fixture
def llama(probe_cache: Path) -> Group:
    return group("llama", "fp32", probe_cache)


def test_a_forward_that_raises_is_as_short_as_it_can_be(llama: Group) -> None:
    with raising(llama, ValueError("no room for 7"), lambda x: x.shape[1] >= 7):
        found = explained(llama, "padding", "forward")
    assert found["case"]["kind"] == "forward"
    assert [len(row) for row in found["case"]["rows"]] == [7]
    assert found["raises"]["message"] == "no room for"
    assert "note" not in found


def test_what_only_generation_raises_is_generated_with_no_setting_too_many(llama: Group) -> None:
    """Six rows at once: two, each with three beams."""
    with raising(llama, ValueError("no room for beams"), lambda x: x.shape[0] == 6):
        found = explained(llama, "agreement", "generate")
    assert found["case"]["kind"] == "generate"
    assert found["case"]["settings"] == {"num_beams": 3}
    assert found["case"]["new"] == 1
    assert len(found["case"]["rows"]) == 2


def test_what_only_training_raises_is_a_training_step(llama: Group) -> None:
    with raising(llama, ValueError("no room for gradients"), lambda x: x.requires_grad):
        found = explained(llama, "gradient", "train")
    assert found["case"]["kind"] == "train"
    assert [len(row) for row in found["case"]["rows"]] == [1]


def test_an_exception_of_another_kind_or_message_is_not_taken_for_it(llama: Group) -> None:
    for other in (TypeError("no room for 7"), ValueError("something else")):
        with raising(llama, other, lambda x: True):
            found = explained(llama, "agreement", "forward")
        assert "case" not in found
        assert found["note"].startswith("no single call of those tried raises it: forward")


def test_a_call_is_left_as_it_was_where_the_bisection_is_not_asked_for(llama: Group) -> None:
    with raising(llama, ValueError("no room for 7"), lambda x: True):
        found = explained(llama, "agreement", "forward", effort="case")
    assert len(found["case"]["rows"]) == 2
    assert found["note"] == "as the check asked it, not made smaller"


def test_nothing_is_tried_on_a_device_that_is_lost(llama: Group) -> None:
    calls: list[int] = []
    with (
        raising(llama, RuntimeError("CUDA error: device-side assert triggered"), lambda x: not calls.append(1)),  # type: ignore[func-returns-value]
        pytest.raises(StackError, match="device-side assert"),
    ):
        explained(llama, "agreement", "forward")
    assert len(calls) == 1


def test_a_model_that_loads_shows_no_fault_of_loading(llama: Group) -> None:
    found = explained(llama, "load", "load")
    assert found == {"note": "no single call of those tried raises it: load"}


def test_exceptions_are_told_apart() -> None:
    error = torch.OutOfMemoryError("\n  out of room: 12 GiB\nmore")
    assert kind_of_error(error) == "torch.OutOfMemoryError"
    assert kind_of_error(ValueError()) == "ValueError"
    assert first_line(error) == "out of room: 12 GiB"
    assert first_line(StopIteration()) == ""
    for kind in ("torch.OutOfMemoryError", "OutOfMemoryError"):
        assert same(error, {"type": kind, "message": r"room: \S+ GiB"})
    assert not same(error, {"type": "MemoryError", "message": "room"})
    assert not same(error, {"type": "OutOfMemoryError", "message": "^more"})
    assert device_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not device_lost(ValueError("no error of the device"))
