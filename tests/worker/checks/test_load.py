"""load sees values, dtypes, settings, ties and shards that are not as asked; memory sees what stays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from compat.faults import catalogue
from compat.faults.patches import Patches
from compat.worker import asked, reload
from compat.worker.allocations import Allocations
from compat.worker.checks import load, memory
from compat.worker.group import Loaded

from .groups import attention, figures, group

COUNTS = (
    "weights_differing",
    "dtypes_differing",
    "settings_differing",
    "buffers_differing",
    "ties_differing",
    "origin_differing",
    "reload_differing",
    "keys_unaccounted",
    "reload_output_differing",
    "offload_difference",
)
FAULTS = {
    "norm-reinitialised": ("llama", "fp32", "origin_differing"),
    "fused-weight-swapped": ("opt", "fp32", "origin_differing"),
    "shard-lost": ("llama", "bf16", "keys_unaccounted"),
    "ties-broken": ("t5", "fp32", "ties_differing"),
    "frequencies-cast-down": ("llama", "bf16", "buffers_differing"),
    "fp32-parts-forgotten": ("t5", "fp16", "dtypes_differing"),
    "offloaded-weight-stale": ("llama", "fp32", "offload_difference"),
    "host-offload-in-half": ("bert", "fp32", "offload_difference"),
}


@pytest.mark.parametrize(("model", "dtype"), [("llama", "bf16"), ("t5", "fp32"), ("mixtral", "bf16"), ("vit", "fp16")])
def test_a_clean_stack_differs_in_nothing(model: str, dtype: str, probe_cache: Path) -> None:
    report = load.run(group(model, dtype, probe_cache), attention("eager"))
    seen = figures(report)
    assert {name: seen[name] for name in COUNTS} == dict.fromkeys(COUNTS, 0)
    assert seen["weights_compared"] > 1e5
    assert report.facts["origin_compared"] > 10
    assert report.facts["elsewhere"]["shards"] > 1
    assert report.facts["elsewhere"]["offloaded to the disk"] > 0
    assert not report.facts["training"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_moves_the_count_that_is_meant_for_it(fault: str, probe_cache: Path, patches: Patches) -> None:
    model, dtype, name = FAULTS[fault]
    assert group(model, dtype, probe_cache).checkpoint, "written before the fault is in"
    catalogue()[fault].apply(patches)
    seen = figures(load.run(group(model, dtype, probe_cache), attention("eager")))
    assert patches.times_reached
    assert seen[name] > 0


@pytest.mark.parametrize(("parameters", "walked"), [(10**9, True), (1, False)])
def test_only_small_models_are_loaded_in_other_ways_below_depth_deep(
    probe_cache: Path, monkeypatch: pytest.MonkeyPatch, parameters: int, walked: bool
) -> None:
    monkeypatch.setattr(reload, "LARGE_PARAMETERS", parameters)
    seen = figures(load.run(group("llama", "fp32", probe_cache, depth="quick"), attention("eager")))
    assert ("reload_differing" in seen) is walked
    assert seen["origin_differing"] == 0


@pytest.mark.parametrize(
    ("described", "layer", "expected"),
    [
        ({"rope_theta": 10000.0, "hidden_size": 32, "num_attention_heads": 4}, "", (4, 10000.0 ** (-6 / 8))),
        ({"rope_parameters": {"rope_theta": 100.0}, "head_dim": 4}, "", (2, 100.0 ** (-2 / 4))),
        ({"rope_parameters": {"a": {"rope_theta": 9.0}, "b": {"rope_theta": 4.0}}, "head_dim": 4}, "b", (2, 0.5)),
        ({"rotary_emb_base": 16.0, "rotary_pct": 0.5, "head_dim": 8}, "", (2, 0.25)),
    ],
)
def test_rotary_frequencies_by_hand(described: dict[str, Any], layer: str, expected: tuple[int, float]) -> None:
    found = asked.rotary_frequencies(described, layer)
    assert found is not None
    assert (len(found), float(found[0])) == (expected[0], 1.0)
    assert float(found[-1]) == pytest.approx(expected[1])


def test_scaled_rotary_frequencies_are_left_to_the_library() -> None:
    assert (
        asked.rotary_frequencies({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}, "head_dim": 8}) is None
    )
    assert asked.rotary_frequencies({"head_dim": 8}) is None


def test_ties_are_sets_of_names(probe_cache: Path) -> None:
    assert reload.ties(group("llama", "fp32", probe_cache).master) == set()
    (tied,) = reload.ties(group("t5", "fp32", probe_cache).master)
    assert {"shared.weight", "lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"} == tied


def test_a_copy_left_in_the_model_or_anywhere_else_is_seen(probe_cache: Path, patches: Patches) -> None:
    own = group("bert", "bf16", probe_cache)
    clean = figures(memory.run(own, attention("eager")))
    assert clean["left_behind_bytes"] == clean["left_elsewhere_bytes"] == 0
    assert clean["activation_peak_bytes"] > 0
    hidden: list[torch.Tensor] = []
    forward = Loaded.forward

    def leaving(where: str) -> Any:
        def call(self: Loaded, **inputs: Any) -> Any:
            result = forward(self, **inputs)
            copy = result.logits + 1
            if where == "model":
                self.model.bert.encoder.layer[0].kept = {"copies": [copy]}
            else:
                hidden.append(copy)
            return result

        return call

    patches.attribute(Loaded, "forward", leaving("model"))
    assert figures(memory.run(own, attention("eager")))["left_behind_bytes"] > 1000
    del own.loaded(attention("eager")).model.bert.encoder.layer[0].kept
    patches.attribute(Loaded, "forward", leaving("elsewhere"))
    assert figures(memory.run(own, attention("eager")))["left_elsewhere_bytes"] > 1000


@pytest.mark.parametrize("scheme", ["bnb-int8", "bnb-nf4", "bnb-nf4-dq"])
def test_what_a_scheme_may_hold_is_not_flagged(scheme: str, probe_cache: Path) -> None:
    seen = figures(memory.run(group("llama", "bf16", probe_cache, scheme), attention("eager")))
    assert seen["left_behind_bytes"] == seen["left_elsewhere_bytes"] == 0


def test_the_peak_is_what_lives_at_once() -> None:
    one = 4 * 1000
    account = Allocations()
    with account:
        x = torch.zeros(1000)
        for _ in range(5):
            x = x + 1
    assert account.peak_bytes == 2 * one
    assert account.left(set()) == one
    assert account.left({x.untyped_storage()._cdata}) == 0
    del x
    assert account.left(set()) == 0
    assert math.isfinite(account.peak_bytes)
