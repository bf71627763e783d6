"""determinism sees what keeps state, draws random numbers or writes where it must not, and minds nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compat.faults.patches import Patches
from compat.worker.checks import determinism
from compat.worker.group import Group

from .groups import attention, figures, group

SDPA = "transformers.integrations.sdpa_attention:sdpa_attention_forward"
EXACT = ("random_numbers_drawn", "repeated_difference", "after_other_calls_difference", "inputs_changed",
         "parameters_written", "settings_changed", "left_in_training")  # fmt: skip


@pytest.fixture(scope="module")
def llama(probe_cache: Path) -> Group:
    return group("llama", "fp32", probe_cache)


def _run(llama: Group) -> dict[str, Any]:
    return figures(determinism.run(llama, attention("sdpa")))


def test_a_clean_stack_changes_nothing(llama: Group) -> None:
    seen = _run(llama)
    assert {name: seen[name] for name in EXACT} == dict.fromkeys(EXACT, 0)
    assert seen["ratio_token"] < 3
    assert seen["compared_elements"] > 10_000


def test_dropout_in_eval_mode_draws_and_differs(llama: Group, patches: Patches) -> None:
    patches.function(SDPA, lambda own: lambda *a, **k: own(*a, **{**k, "dropout": 0.1}))
    seen = _run(llama)
    assert seen["random_numbers_drawn"] == 1
    assert seen["repeated_difference"] > 0


def test_what_an_earlier_call_left_behind_is_seen(llama: Group, patches: Patches) -> None:
    longest = 0

    def make(own: Any) -> Any:
        def forward(module: Any, query: Any, *rest: Any, **more: Any) -> Any:
            nonlocal longest
            longest = max(longest, query.shape[2])
            return own(module, query * (1 + longest / 1000), *rest, **more)

        return forward

    patches.function(SDPA, make)
    seen = _run(llama)
    assert seen["repeated_difference"] == 0, "the first two calls are of one length"
    assert seen["after_other_calls_difference"] > 0


def test_a_row_that_depends_on_its_neighbours_is_seen(llama: Group, patches: Patches) -> None:
    def make(own: Any) -> Any:
        return lambda module, query, key, *rest, **more: own(module, query, key + key.mean(0), *rest, **more)

    patches.function(SDPA, make)
    assert _run(llama)["ratio_token"] > 100


def test_writing_into_parameters_and_settings_is_seen(llama: Group, patches: Patches) -> None:
    def make(own: Any) -> Any:
        def forward(module: Any, *rest: Any, **more: Any) -> Any:
            with torch.no_grad():
                module.o_proj.weight.mul_(1.0)
            torch.use_deterministic_algorithms(True)
            return own(module, *rest, **more)

        return forward

    patches.function(SDPA, make)
    try:
        seen = _run(llama)
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen["parameters_written"] == 2, "one in each layer"
    assert seen["settings_changed"] == 1
