"""dispatch sees which kernel and dtype each path and layer really ran in, and does not mind what is as good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from compat.faults import catalogue
from compat.faults.patches import Patches
from compat.kernel_paths import path_findings
from compat.worker.checks import dispatch
from compat.worker.group import Group
from compat.worker.report import Report

from .groups import attention, figures, group

FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"
TORCH_SDPA = "torch.nn.functional:scaled_dot_product_attention"


def _run(model: str, dtype: str, backend: str, cache: Path, **more: str) -> Report:
    """One run on a group of its own; eager loads first, as it does in a run."""
    own: Group = group(model, dtype, cache, **more)
    own.loaded(attention("eager"))
    return dispatch.run(own, attention(backend))


def _findings(report: Report, backend: str) -> list[str]:
    return [name for name, _ in path_findings(backend, report.facts)]


def test_every_path_of_a_clean_stack_runs_the_backend(probe_cache: Path) -> None:
    report = _run("llama", "bf16", "sdpa", probe_cache)
    kernels = report.facts["kernels"]
    assert {"plain", "prefill", "decode", "chunk", "padded_prefill", "padded_decode", "generate"} <= set(kernels)
    assert all(kernels[path] == {FLASH: "all 2"} for path in kernels if path not in ("train",))
    seen = figures(report)
    assert seen["compared_layers"] >= 2 * len(kernels)
    for name in (
        "unfused_in_training",
        "unseen_layers",
        "wider_products",
        "narrower_products",
        "narrower_attention",
        "foreign_outputs",
    ):
        assert seen[name] == 0, name
    assert report.facts["output_attentions"]["returned"] == 0
    assert "output_attentions" in report.facts["output_attentions"]["announced"][0]
    assert _findings(report, "sdpa") == []


def test_encoder_decoder_and_cross_attention_are_walked(probe_cache: Path) -> None:
    model = group("bart", "fp32", probe_cache).loaded(attention("sdpa")).model
    layers = dispatch.attention_layers(model)
    assert len(layers) == 6
    assert sum("encoder_attn" in name for name in layers) == 2
    assert figures(_run("bart", "fp32", "sdpa", probe_cache))["unseen_layers"] == 0


@pytest.mark.parametrize(
    ("fault", "model", "dtype", "path"),
    [
        ("sdpa-eager-in-decode", "llama", "bf16", "decode (all 2)"),
        ("sdpa-eager-in-one-layer", "llama", "fp32", "prefill (model.layers.1.self_attn)"),
        ("sdpa-math-when-masked", "bert", "fp32", "padded (all 2)"),
        ("attention-weights-stay-eager", "llama", "fp32", "prefill (all 2)"),
    ],
)
def test_another_kernel_is_named_with_path_and_layer(
    fault: str, model: str, dtype: str, path: str, probe_cache: Path, patches: Patches
) -> None:
    own = group(model, dtype, probe_cache)
    own.loaded(attention("eager"))
    catalogue()[fault].apply(patches)
    reasons = [reason for _, reason in path_findings("sdpa", dispatch.run(own, attention("sdpa")).facts)]
    assert patches.times_reached
    assert any(path in reason for reason in reasons), reasons


def test_attention_by_hand_leaves_an_unseen_layer(probe_cache: Path, patches: Patches) -> None:
    def make(own: Any) -> Any:
        def by_hand(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
            key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
            weights = torch.exp(query @ key.transpose(-1, -2) * 0.01)
            return weights / weights.sum(-1, keepdim=True) @ value

        return by_hand

    patches.function(TORCH_SDPA, make)
    seen = _run("qwen2", "fp32", "sdpa", probe_cache)
    assert figures(seen)["unseen_layers"] > 0
    assert seen.facts["unseen_layers"]["plain"] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]


def test_a_kernel_that_is_fused_without_gradients_only_is_seen(probe_cache: Path, patches: Patches) -> None:
    def make(own: Any) -> Any:
        def attention(query: Any, *more: Any, **rest: Any) -> Any:
            if not (query.requires_grad and torch.is_grad_enabled()):
                return own(query, *more, **rest)
            with sdpa_kernel([SDPBackend.MATH]):
                return own(query, *more, **rest)

        return attention

    patches.function(TORCH_SDPA, make)
    assert figures(_run("llama", "fp32", "sdpa", probe_cache))["unfused_in_training"] == 2
    biased = _run("t5", "fp32", "sdpa", probe_cache)
    assert "unfused_in_training" not in figures(biased)
    assert "position biases" in biased.facts["training_kernels"]


def test_a_matrix_in_another_dtype_shows_and_attention_in_fp32_does_not(probe_cache: Path, patches: Patches) -> None:
    catalogue()["one-matrix-in-fp32"].apply(patches)
    seen = figures(_run("llama", "bf16", "sdpa", probe_cache))
    assert 0.1 < seen["wider_products"] < 0.5
    patches.undo()
    catalogue()["benign-sdpa-in-fp32"].apply(patches)
    seen = figures(_run("llama", "bf16", "sdpa", probe_cache))
    assert seen["wider_products"] == seen["narrower_attention"] == seen["foreign_outputs"] == 0
    patches.undo()
    catalogue()["sdpa-in-bf16"].apply(patches)
    assert figures(_run("llama", "fp32", "sdpa", probe_cache))["narrower_attention"] > 0


def test_what_the_architecture_keeps_in_fp32_is_no_finding(probe_cache: Path) -> None:
    seen = figures(_run("t5", "fp16", "sdpa", probe_cache))
    assert seen["wider_products"] == seen["foreign_outputs"] == 0


def test_quantized_layers_run_quantized_kernels(probe_cache: Path, patches: Patches) -> None:
    report = _run("llama", "bf16", "sdpa", probe_cache, quantization="bnb-int8")
    seen = figures(report)
    assert seen["compared_quantized_layers"] >= 14
    assert seen["unquantized_layers"] == 0
    assert all(name.startswith("bitsandbytes::") for name in report.facts["quantized_kernels"])
    catalogue()["int8-runs-dequantized"].apply(patches)
    seen = figures(_run("llama", "bf16", "sdpa", probe_cache, quantization="bnb-int8"))
    assert seen["unquantized_layers"] >= 14
