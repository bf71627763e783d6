"""Modes on real libraries: what `load` and `mode` say of each, what they see, and what they do not mind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compat.faults import catalogue
from compat.faults.patches import Patches
from compat.worker.calls import StackError, Unavailable
from compat.worker.checks import agreement, load, mode
from compat.worker.group import Group
from compat.worker.modes import pruned

from .groups import attention, figures, group

SDPA = attention("sdpa")


def _group(model: str, dtype: str, name: str, cache: Path, quantization: str = "none") -> Group:
    return group(model, dtype, cache, quantization=quantization, depth="quick", mode=name)


def _seen(model: Group) -> dict[str, Any]:
    facts: dict[str, Any] = load.run(model, SDPA).facts["mode"]
    return facts


# -- another way to the same function ----------------------------------------------------------------------------


def test_an_exported_model_runs_from_its_file_and_agrees(probe_cache: Path) -> None:
    llama = _group("llama", "fp32", "export", probe_cache)
    assert _seen(llama)["held"] == "yes"
    found = figures(mode.run(llama, SDPA))
    assert found["programs"] == 1, "one program serves three sizes"
    assert found["export_reload_differing"] == 0
    assert found["export_bytes"] > 1_000_000
    own = llama.loaded(SDPA)
    assert own.model is not llama.plain(SDPA).model
    own.model.model.layers[0] = None  # what runs is the file, not the model
    assert figures(agreement.run(llama, SDPA))["ratio_rms"] < 1.5


@pytest.mark.parametrize("name", ["max-memory", "cpu-offload", "disk-offload"])
def test_weights_elsewhere_give_the_same_bits(name: str, probe_cache: Path) -> None:
    llama = _group("llama", "bf16", name, probe_cache)
    seen = _seen(llama)
    assert seen["held"] == "yes"
    assert 0 < seen["fetched"] <= seen["parameters"]
    found = figures(mode.run(llama, SDPA))
    assert (found["difference"], found["outputs_elsewhere"], found["left_behind"]) == (0, 0, 0)
    llama.close()


def test_a_device_map_that_has_nothing_to_do_says_so(probe_cache: Path) -> None:
    seen = _seen(_group("llama", "fp32", "device-map-auto", probe_cache))
    assert seen["held"] == "nothing to do"
    assert "no hf_device_map" in seen["words"]


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="there are two GPUs")
def test_two_gpus_are_unavailable_without_them(probe_cache: Path) -> None:
    with pytest.raises(Unavailable, match="needs 2 GPUs, and there are 0"):
        load.run(_group("llama", "fp32", "two-gpus", probe_cache), SDPA)


def test_a_hook_that_fetches_another_layer_is_seen(probe_cache: Path, patches: Patches) -> None:
    catalogue()["offloaded-layer-of-another"].apply(patches)
    llama = _group("llama", "fp32", "cpu-offload", probe_cache)
    assert figures(mode.run(llama, SDPA))["difference"] > 1000
    assert patches.times_reached


def test_the_eager_cell_of_another_way_has_a_yardstick_beside_it(probe_cache: Path) -> None:
    eager = attention("eager")
    llama = _group("llama", "fp32", "cpu-offload", probe_cache)
    found = figures(agreement.run(llama, eager))
    assert found["ratio_rms"] == pytest.approx(1), "the same bits are as far from the reference"
    assert llama.loaded(eager).model is not llama.eager.model


# -- another function --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "quantization"), [("gpt2", "none"), ("bert", "bnb-int8")])
def test_an_adapter_is_applied_trained_saved_and_loaded(model: str, quantization: str, probe_cache: Path) -> None:
    own = _group(model, "bf16", "lora", probe_cache, quantization)
    assert _seen(own)["held"] == "yes"
    found = figures(mode.run(own, SDPA))
    assert found["adapter_effect"] > 0.05
    exact = ("base_differing", "adapter_reload_differing", "adapter_missing", "base_gradients", "saving_changes")
    assert {name: found[name] for name in exact} == dict.fromkeys(exact, 0)
    assert found["compared_adapters"] == found["adapter_tensors"]
    assert found["adapter_error"] < 26
    assert figures(agreement.run(own, SDPA))["candidate_error"] < 64


def test_the_reference_follows_the_adapter(probe_cache: Path) -> None:
    plain, own = (_group("llama", "fp32", name, probe_cache) for name in ("plain", "lora"))
    rows = plain.source.rows(1, [9])
    assert figures(agreement.run(own, SDPA))["candidate_error"] < 64
    before, after = (g.reference_outputs(rows)[0] for g in (plain, own))
    assert float((before - after).abs().max()) > 0.1


def test_a_merge_with_another_scale_is_seen(probe_cache: Path, patches: Patches) -> None:
    clean = figures(mode.run(_group("llama", "fp32", "lora-merged", probe_cache), SDPA))
    assert clean["merge_error"] < 2
    assert clean["merged_reload_differing"] == 0
    catalogue()["lora-merged-with-wrong-scale"].apply(patches)
    wrong = figures(mode.run(_group("llama", "fp32", "lora-merged", probe_cache), SDPA))
    assert wrong["merge_error"] > 1000
    assert wrong["merge_effect"] == pytest.approx(2, rel=0.01)


def test_half_of_the_weights_are_zero_and_they_are_the_smallest(probe_cache: Path, patches: Patches) -> None:
    assert _seen(_group("vit", "bf16", "pruned-50", probe_cache))["held"] == "yes"
    exact = ("kept_differing", "pruned_wrongly", "pruned_reload_differing")
    found = figures(mode.run(_group("llama", "fp32", "pruned-50", probe_cache), SDPA))
    assert {name: found[name] for name in exact} == dict.fromkeys(exact, 0)
    assert found["zero_share"] == pytest.approx(0.5, abs=0.001)
    catalogue()["pruning-is-undone-by-saving"].apply(patches)
    found = figures(mode.run(_group("llama", "fp32", "pruned-50", probe_cache), SDPA))
    assert found["pruned_reload_differing"] > 0


def test_pruning_of_packed_codes_is_found(probe_cache: Path) -> None:
    """torch prunes bytes that hold two codes each, without a word."""
    llama = _group("llama", "bf16", "pruned-50", probe_cache, "bnb-nf4")
    assert _seen(llama)["held"] == "no"
    assert figures(mode.run(llama, SDPA))["zero_share_error"] > 0.1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has the semi-structured form")
def test_the_semi_structured_form_is_refused_on_a_cpu(probe_cache: Path) -> None:
    with pytest.raises(StackError, match="Only CUDA tensors are currently supported"):
        load.run(_group("llama", "bf16", "sparse-2:4", probe_cache), SDPA)


def test_two_of_four_keeps_the_largest_and_the_first_of_equals() -> None:
    weight = torch.tensor([[1.0, -4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 5.0]])
    kept = pruned.two_of_four(weight)
    assert kept.tolist() == [[False, True, True, False, True, True, False, False]]
    assert pruned.not_the_smallest(weight, ~kept, fours=True) == 0
    wrong = torch.tensor([[False, True, True, False, False, False, True, True]])
    assert pruned.not_the_smallest(weight, wrong, fours=True) == 2
