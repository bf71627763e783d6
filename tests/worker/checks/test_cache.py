"""cache sees what goes wrong between steps, on every path, and does not mind how a cache lays its numbers out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

from compat.faults import catalogue
from compat.faults.patches import Patches
from compat.worker.checks import cache
from compat.worker.group import Group
from compat.worker.report import Report

from .groups import attention, figures, group

WALKS = {"batch", "beside", "single", "short", "static", "long"}
GENERATED = {"lookup", "turns", "assisted", "assisted, sampled", "static generate"}


@pytest.fixture(scope="module")
def llama(probe_cache: Path) -> Group:
    return group("llama", "fp32", probe_cache)


@pytest.fixture(scope="module")
def mistral(probe_cache: Path) -> Group:
    return group("mistral", "bf16", probe_cache)


@pytest.fixture(scope="module")
def bart(probe_cache: Path) -> Group:
    return group("bart", "fp32", probe_cache)


def _clean(report: Report) -> dict[str, Any]:
    seen = figures(report)
    assert seen["ratio_rms"] < 1.5
    assert seen["ratio_token"] < 2.5
    assert seen["ratio_max"] < 2.5
    exact = ("nonfinite_elements", "unexcused_tokens", "paths_raised", "cache_other_dtype")
    assert {name: seen[name] for name in exact} == dict.fromkeys(exact, 0)
    assert seen["compared_elements"] > 1000
    return seen


def test_a_clean_stack_walks_every_path(llama: Group) -> None:
    report = cache.run(llama, attention("sdpa"))
    seen = _clean(report)
    assert set(report.facts["paths"]) == WALKS | GENERATED
    assert seen["drafts_rejected"] > 0, "a cache is rolled back only when a draft is rejected"
    assert seen["cache_over_arithmetic"] == seen["prefill_cache_over_arithmetic"] == 1
    assert seen["assistant_settings_changed"] == seen["tokens_fed_again"] == 0
    assert seen["quantized_difference"] == 0
    assert seen["quantized_compared"] > 10_000


def test_a_window_holds_no_more_than_itself(mistral: Group) -> None:
    report = cache.run(mistral, attention("eager"))
    assert 0.9 < _clean(report)["cache_over_arithmetic"] <= 1
    assert "offloaded weights" in report.facts["paths"], "once a group, in the eager cell"
    assert "sliding" in report.facts["quantized"], "the library refuses windows in a quantized cache"


def test_an_encoder_and_a_decoder(bart: Group) -> None:
    report = cache.run(bart, attention("sdpa"))
    _clean(report)
    assert set(report.facts["paths"]) >= WALKS | {"plain", "assisted", "static generate"}


def test_quick_walks_less(probe_cache: Path) -> None:
    report = cache.run(group("llama", "bf16", probe_cache, depth="quick"), attention("sdpa"))
    _clean(report)
    assert set(report.facts["paths"]) == {"batch", "beside", "single", "lookup"}


@pytest.mark.parametrize(
    ("fault", "path"),
    [
        ("cache-crop-keeps-rejected", "assisted"),
        ("cache-reorder-keys-only", "batch"),
        ("cache-copy-shares-layers", "single"),
        ("cache-mask-stale", "beside"),
        ("static-cache-not-reset", "static"),
        ("chunk-mask-top-left", "single"),
        ("second-turn-fed-twice", "turns"),
    ],
)
def test_what_goes_wrong_between_steps_is_seen(llama: Group, patches: Patches, fault: str, path: str) -> None:
    catalogue()[fault].apply(patches)
    report = cache.run(llama, attention("sdpa"))
    assert patches.times_reached
    tokens = next(m["values"] for m in report.measurements if m["name"] == "ratio_token")
    assert dict(zip(report.facts["paths"], tokens, strict=True))[path] > 1000


def test_values_of_fewer_bits_are_seen_although_eager_stores_them_too(probe_cache: Path, patches: Patches) -> None:
    catalogue()["cache-values-in-fp8"].apply(patches)
    seen = figures(cache.run(group("llama", "bf16", probe_cache), attention("sdpa")))
    assert seen["yardstick_error"] < 3, "neither the reference nor the yardstick may go through a cache"
    assert seen["ratio_token"] > 2.5


@pytest.mark.parametrize("fault", ["cross-cache-not-reordered", "cross-cache-recomputed"])
def test_the_cross_attentions_cache_is_what_counts(bart: Group, patches: Patches, fault: str) -> None:
    catalogue()[fault].apply(patches)
    assert figures(cache.run(bart, attention("sdpa")))["ratio_token"] > 1000


@pytest.mark.parametrize(
    ("fault", "measurement", "beyond"),
    [
        ("window-cache-grows", "cache_over_arithmetic", 1.9),
        ("window-cache-one-short", "ratio_token", 10),
        ("window-crop-shifted", "ratio_token", 10),
    ],
)
def test_windows_and_bytes(mistral: Group, patches: Patches, fault: str, measurement: str, beyond: float) -> None:
    catalogue()[fault].apply(patches)
    assert figures(cache.run(mistral, attention("sdpa")))[measurement] > beyond


def test_a_cache_is_as_large_as_what_it_keeps_alive(probe_cache: Path, patches: Patches) -> None:
    catalogue()["prefill-cache-is-a-view"].apply(patches)
    seen = figures(cache.run(group("phi3", "fp32", probe_cache, depth="quick"), attention("sdpa")))
    assert patches.times_reached
    assert seen["prefill_cache_over_arithmetic"] > 2
    assert seen["cache_over_arithmetic"] == 1, "appending copies"


def test_an_assistant_whose_settings_change_is_seen(llama: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = transformers.generation.candidate_generator.AssistedCandidateGenerator
    made = kind.__init__

    def leaving(self: Any, input_ids: Any, assistant_model: Any, *more: Any, **rest: Any) -> None:
        made(self, input_ids, assistant_model, *more, **rest)
        assistant_model.generation_config.max_new_tokens = 3

    monkeypatch.setattr(kind, "__init__", leaving)
    assert figures(cache.run(llama, attention("eager")))["assistant_settings_changed"] == 1
    llama.kept.pop("assistant")


def test_a_quantized_cache_is_judged_by_our_own_rounding(llama: Group, patches: Patches) -> None:
    catalogue()["fp8-cache-scale-of-step"].apply(patches)
    seen = figures(cache.run(llama, attention("eager")))
    assert seen["quantized_difference"] > 100
    assert seen["ratio_token"] < 2.5, "no model of the check decodes from a quantized cache"


def test_another_layout_of_the_same_numbers_is_not_minded(llama: Group, patches: Patches) -> None:
    def make(own: Any) -> Any:
        def update(*arguments: Any, **keywords: Any) -> Any:
            patches.reached()
            return tuple(t.transpose(1, 2).contiguous().transpose(1, 2) for t in own(*arguments, **keywords))

        return update

    patches.method("transformers.cache_utils:DynamicLayer.update", make)
    _clean(cache.run(llama, attention("sdpa")))
    assert patches.times_reached


def test_a_path_that_raises_is_counted_and_the_others_are_measured(llama: Group, patches: Patches) -> None:
    def make(own: Any) -> Any:
        def prepare(model: Any, cache_implementation: str, *rest: Any, **keywords: Any) -> Any:
            raise IndexError("no slot left")

        return prepare

    patches.method("transformers.generation.utils:GenerationMixin._prepare_static_cache", make)
    report = cache.run(llama, attention("sdpa"))
    assert figures(report)["paths_raised"] == 1
    assert "no slot left" in report.facts["raised"]["static generate"]
    assert set(report.facts["paths"]) == WALKS | GENERATED - {"static generate"}
