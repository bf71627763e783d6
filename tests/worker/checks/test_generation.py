"""generation sees wrong scores, choices, ends, beams and inputs; pipelines that hand over or change something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from compat.faults import catalogue
from compat.faults.patches import Patches
from compat.judge import judge
from compat.rules import context_of
from compat.worker.checks import generation
from compat.worker.group import Group
from compat.worker.inputs import unpadded
from compat.worker.load import quantized_modules
from compat.worker.report import Report
from compat.worker.text_pipeline import other_weights

from .groups import MODELS, attention, figures, group

EXACT = (
    "unexcused_tokens",
    "nonfinite_elements",
    "score_differences",
    "token_differences",
    "length_differences",
    "pipeline_differences",
    "pipeline_input_differences",
    "pipeline_setting_differences",
    "pipeline_text_differences",
    "side_effects",
    "stream_differences",
)


@pytest.fixture(scope="module")
def llama(probe_cache: Path) -> Group:
    return group("llama", "fp32", probe_cache)


@pytest.fixture(scope="module")
def quick(probe_cache: Path) -> Group:
    return group("llama", "fp32", probe_cache, depth="quick")


def outcome(own: Group, backend: str, report: Report | None = None) -> tuple[str, str]:
    """(outcome, reason) of a run, or of what one reported, under today's criteria."""
    report = report or generation.run(own, attention(backend))
    answer = {
        "status": "ok",
        "measurements": report.measurements,
        "facts": report.facts,
        "kernels": {},
        "seed": report.seed,
    }
    axes = {"model": own.row["name"], "dtype": own.spec.dtype, "attention": backend, "quantization": "none"}
    check = judge("generation", answer, context_of(axes, "cpu", MODELS[own.row["name"]]))
    return check.outcome.value, check.reason


def test_a_clean_stack_shows_nothing(llama: Group) -> None:
    report = generation.run(llama, attention("sdpa"))
    seen = figures(report)
    assert {k: seen[k] for k in EXACT} == dict.fromkeys(EXACT, 0)
    assert seen["ratio_token"] < 2.5
    assert seen["compared_scores"] > 500
    assert seen["pipeline_compared"] > 50
    assert set(report.facts["trials"]) >= {"batch", "processors", "nucleus", "ended", "alone", "beams", "expanded"}
    assert outcome(llama, "sdpa", report) == ("pass", "")


@pytest.mark.parametrize("model", ["t5", "bert"])
def test_other_tasks_are_looked_at_too(model: str, probe_cache: Path) -> None:
    assert outcome(group(model, "bf16", probe_cache, depth="quick"), "eager") == ("pass", "")


@pytest.mark.parametrize(
    ("name", "measurement"),
    [
        ("repetition-penalty-counts-pads", "score_differences"),
        ("top-p-one-too-many", "score_differences"),
        ("sampling-ignores-seed", "token_differences"),
        ("finished-rows-go-on", "token_differences"),
        ("decode-positions-from-length", "ratio_token"),
        ("pipeline-drops-mask", "pipeline_input_differences"),
        ("pipeline-defaults-over-config", "pipeline_setting_differences"),
        ("pipeline-changes-model-config", "side_effects"),
    ],
)
def test_a_fault_shows_in_its_own_figure_even_at_quick_depth(
    name: str, measurement: str, quick: Group, patches: Patches
) -> None:
    catalogue()[name].apply(patches)
    seen, reason = outcome(quick, "sdpa")
    assert patches.times_reached > 0
    assert seen == "fail"
    assert measurement in reason


@pytest.mark.parametrize(
    ("name", "measurement"),
    [
        ("beam-cache-not-reordered", "ratio_token"),
        ("length-penalty-counts-prompt", "beam_score_error"),
        ("model-config-over-passed-config", "score_differences"),
    ],
)
def test_beams_and_expanded_prompts_show_theirs_at_standard_depth(
    name: str, measurement: str, llama: Group, patches: Patches
) -> None:
    catalogue()[name].apply(patches)
    seen, reason = outcome(llama, "sdpa")
    assert seen == "fail"
    assert measurement in reason


def test_generation_that_keeps_its_settings_for_the_next_call_is_seen(quick: Group, patches: Patches) -> None:
    def make(own: Any) -> Any:
        def generate(self: Any, *rest: Any, **more: Any) -> Any:
            if "repetition_penalty" in more:
                self.generation_config.repetition_penalty = more["repetition_penalty"]
            return own(self, *rest, **more)

        return generate

    patches.method("transformers.generation.utils:GenerationMixin.generate", make)
    seen, reason = outcome(quick, "sdpa")
    assert seen == "fail"
    assert "side_effects" in reason


def test_weights_that_a_forward_repacked_are_those_of_a_model_loaded_again(probe_cache: Path) -> None:
    own = group("opt", "bf16", probe_cache, "bnb-nf4-dq")
    loaded = own.loaded(attention("sdpa"))
    loaded.forward(**unpadded(own.source.rows(1, [7]), own.device, own.dtype))
    model = own.fresh(attention("sdpa")).model
    assert not other_weights(own, loaded, model)
    path, linear = next(iter(quantized_modules(model).items()))
    with torch.no_grad():
        linear.weight.data[:4] ^= 0x11
        linear.bias += 1
    assert sorted(other_weights(own, loaded, model)) == [f"{path}.bias", f"{path}.weight"]


def test_a_broken_yardstick_judges_nothing(probe_cache: Path, patches: Patches) -> None:
    """Attention of eager that is off everywhere excuses every flip: inconclusive, never a pass."""

    def make(own: Any) -> Any:
        def forward(*rest: Any, **more: Any) -> Any:
            return own(*rest, **{**more, "scaling": more["scaling"] * 1.5})

        return forward

    patches.function("transformers.models.llama.modeling_llama:eager_attention_forward", make)
    seen, reason = outcome(group("llama", "fp32", probe_cache, depth="quick"), "eager")
    assert seen == "inconclusive"
    assert "yardstick_error" in reason


def test_another_order_of_summation_is_not_minded(quick: Group, patches: Patches) -> None:
    def make(own: Any) -> Any:
        def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            if weight.dtype != torch.float32 or torch.is_grad_enabled():
                return own(x, weight, bias)
            patches.reached()
            half = weight.shape[1] // 2
            y = own(x[..., :half], weight[:, :half]) + own(x[..., half:], weight[:, half:])
            return y if bias is None else y + bias

        return linear

    patches.function("torch.nn.functional:linear", make)
    assert outcome(quick, "sdpa") == ("pass", "")
    assert patches.times_reached > 0


def test_the_pipeline_of_sounds_follows_the_model(probe_cache: Path) -> None:
    own = group("wav2vec2", "fp32", probe_cache)
    report = generation.run(own, attention("sdpa"))
    assert report.facts["pipeline"] == "audio-classification"
    assert outcome(own, "sdpa", report) == ("pass", "")


def test_a_pipeline_that_leaves_the_level_of_a_sound_is_seen(probe_cache: Path, patches: Patches) -> None:
    own = group("hubert", "fp32", probe_cache)  # wav2vec2 norms each channel over time: it has no level
    extractor = transformers.Wav2Vec2FeatureExtractor
    patches.attribute(extractor, "zero_mean_unit_var_norm", staticmethod(lambda values, *_, **__: values))
    seen = figures(generation.run(own, attention("sdpa")))
    assert seen["pipeline_differences"] > 0
    assert seen["pipeline_batch_margin"] > 1


@pytest.mark.parametrize(("model", "dtype"), [("llava", "bf16"), ("whisper", "fp32")])
def test_models_with_pictures_or_sounds_generate(model: str, dtype: str, probe_cache: Path) -> None:
    own = group(model, dtype, probe_cache)
    report = generation.run(own, attention("sdpa"))
    seen = figures(report)
    assert seen["decisive_tokens"] >= 40
    assert set(report.facts["ratio_token_by_path"]) >= {"batch", "ended"}
    assert outcome(own, "sdpa", report) == ("pass", "")


def test_pictures_that_change_places_are_seen(probe_cache: Path, patches: Patches) -> None:
    def make(original: Any) -> Any:
        def generate(self: Any, *rest: Any, **more: Any) -> Any:
            if "pixel_values" in more:
                more["pixel_values"] = more["pixel_values"].flip(0)
            return original(self, *rest, **more)

        return generate

    patches.method("transformers.generation.utils:GenerationMixin.generate", make)
    seen, reason = outcome(group("llava", "fp32", probe_cache, depth="quick"), "sdpa")
    assert seen == "fail"
    assert "ratio_rms" in reason


@pytest.mark.parametrize(
    ("model", "target", "measurement"),
    [
        ("bert", "text_classification:TextClassificationPipeline.postprocess", "classification_differences"),
        ("bert", "fill_mask:FillMaskPipeline.postprocess", "pipeline_differences"),
        ("llama", "text_generation:TextGenerationPipeline.postprocess", "pipeline_differences"),
    ],
)
def test_a_pipeline_that_answers_nothing_fails(
    model: str, target: str, measurement: str, probe_cache: Path, patches: Patches
) -> None:
    patches.method(f"transformers.pipelines.{target}", lambda _: lambda *rest, **more: None)
    seen, reason = outcome(group(model, "fp32", probe_cache), "sdpa")
    assert seen == "fail"
    assert measurement in reason
