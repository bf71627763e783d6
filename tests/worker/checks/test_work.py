"""work counts what the arithmetic asks for, exactly, and sees what is done beyond it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compat.checks import GENERATING_TASKS
from compat.faults import catalogue
from compat.faults.patches import Patches
from compat.worker.arithmetic import Arithmetic
from compat.worker.checks import work
from compat.worker.paths import Walk
from compat.worker.report import Report
from compat.worker.trace import Trace

from .groups import MODELS, attention, figures, group


def _run(model: str, dtype: str, backend: str, cache: Path, **more: str) -> Report:
    own = group(model, dtype, cache, **more)
    own.loaded(attention("eager"))
    return work.run(own, attention(backend))


@pytest.mark.parametrize(
    ("model", "dtype", "backend", "quantization"),
    [
        ("llama", "fp32", "eager", "none"),
        ("mistral", "fp32", "sdpa", "none"),
        ("mixtral", "bf16", "sdpa", "none"),
        ("bart", "fp32", "sdpa", "none"),
        ("vit", "fp32", "eager", "none"),
        ("albert", "fp32", "sdpa", "none"),  # one layer, gone through twice
        ("llama", "bf16", "sdpa", "bnb-nf4"),
    ],
)
def test_a_clean_stack_does_what_the_arithmetic_says(
    model: str, dtype: str, backend: str, quantization: str, probe_cache: Path
) -> None:
    seen = figures(_run(model, dtype, backend, probe_cache, quantization=quantization))
    assert seen["linear_work"] == seen["attention_work"] == 1
    assert seen["weights_copied"] == seen["outliving_bytes"] == seen["transfers"] == 0
    assert seen["compared_products"] > 10
    assert seen["compared_operators"] > 100
    if MODELS[model].task in GENERATING_TASKS:
        assert seen["generate_forwards"] == 1
        assert seen["generate_recording"] == 0
        assert seen["generate_own_copies"] < 4


@pytest.mark.parametrize(
    ("fault", "model", "dtype", "measurement", "least"),
    [
        ("linear-computed-twice", "llama", "fp32", "linear_work", 2),
        ("encoder-runs-twice", "bert", "fp32", "attention_work", 2),
        ("generate-ignores-use-cache", "llama", "fp32", "linear_work", 1.9),
        ("logits-for-every-position", "llama", "fp32", "linear_work", 5),
        ("cross-attention-projected-anew", "bart", "fp32", "linear_work", 5),
        ("weights-cast-in-each-call", "llama", "bf16", "weights_copied", 0.9),
        ("generate-records-gradients", "llama", "fp32", "generate_recording", 1),
        ("cache-copied-in-each-step", "llama", "bf16", "generate_own_copies", 10),
        ("outputs-kept", "llama", "fp32", "outliving_bytes", 1000),
        ("logits-cast-to-fp32-and-back", "llama", "bf16", "logits_cast", 1.5),
        ("host-waits-in-each-layer", "llama", "fp32", "decode_synchronisations", 2),
        ("window-cached-in-full", "mistral", "fp32", "attention_work", 1.2),
    ],
)
def test_what_is_done_beyond_it_shows(
    fault: str, model: str, dtype: str, measurement: str, least: float, probe_cache: Path, patches: Patches
) -> None:
    own = group(model, dtype, probe_cache, depth="quick" if measurement != "logits_cast" else "standard")
    own.loaded(attention("eager"))
    catalogue()[fault].apply(patches)
    seen = figures(work.run(own, attention("sdpa")))
    assert patches.times_reached
    assert seen[measurement] >= least


def test_the_worst_weight_is_named(probe_cache: Path, patches: Patches) -> None:
    catalogue()["linear-computed-twice"].apply(patches)
    assert _run("llama", "fp32", "sdpa", probe_cache).facts["linear_work_in"]["worst"].endswith("gate_proj.weight")


def test_fp32_inside_attention_changes_no_figure_that_is_judged(probe_cache: Path, patches: Patches) -> None:
    clean = figures(_run("llama", "bf16", "sdpa", probe_cache))
    catalogue()["benign-sdpa-in-fp32"].apply(patches)
    benign = figures(_run("llama", "bf16", "sdpa", probe_cache))
    assert patches.times_reached
    assert {k: v for k, v in benign.items() if k != "compared_operators"} == {
        k: v for k, v in clean.items() if k != "compared_operators"
    }


def _walk(*steps: tuple[int, int], **more: Any) -> Walk:
    return Walk("made up", Trace(), 2, steps, **more)


def test_own_arithmetic_of_a_llama(probe_cache: Path) -> None:
    """256 wide, 4 query and 2 key/value heads of 64, 512 in between, 2 layers, 512 words."""
    own = Arithmetic(group("llama", "fp32", probe_cache).loaded(attention("eager")).model, "causal-lm")
    layer = 256 * 256 * 2 + 2 * 256 * 128 + 3 * 256 * 512
    products = own.products(_walk((10, 0)))
    assert sum(total for total, _ in products.values()) == 2 * 10 * (2 * layer + 256 * 512)
    last = own.products(_walk((10, 0), (1, 10), last_only=True))
    assert last["lm_head.weight"][0] == 2 * 2 * 256 * 512
    assert last["model.layers.0.mlp.up_proj.weight"][0] == 2 * 11 * 256 * 512
    assert own.attention("model.layers.0.self_attn", _walk((10, 0), (1, 10))) == 2 * 2 * 256 * (100 + 11)
    assert own.traffic("model.layers.0.self_attn", _walk((1, 10))) == 2 * 2 * 256 * 12


def test_own_arithmetic_of_windows_experts_and_cross_attention(probe_cache: Path) -> None:
    mistral = Arithmetic(group("mistral", "fp32", probe_cache).loaded(attention("eager")).model, "causal-lm")
    assert mistral.attention("model.layers.0.self_attn", _walk((1, 100))) == 2 * 2 * 256 * 32
    mixtral = Arithmetic(group("mixtral", "fp32", probe_cache).loaded(attention("eager")).model, "causal-lm")
    experts = sum(t for name, (t, _) in mixtral.products(_walk((1, 5))).items() if "expert" in name)
    assert experts == 2 * 2 * 4 * 3 * 256 * 512, "rows x layers x chosen experts x three matrices"
    bart = Arithmetic(group("bart", "fp32", probe_cache).loaded(attention("eager")).model, "seq2seq-lm")
    step = bart.products(_walk((1, 5), source=0, source_keys=41))
    assert step["model.decoder.layers.0.encoder_attn.k_proj.weight"][0] == 0
    assert step["model.decoder.layers.0.encoder_attn.q_proj.weight"][0] == 2 * 256 * 256
    assert step["model.encoder.layers.0.fc1.weight"][0] == 0


def test_a_family_without_a_class_token_multiplies_its_patches_alone(probe_cache: Path) -> None:
    assert figures(_run("siglip", "fp32", "eager", probe_cache))["linear_work"] == 1
    assert Arithmetic(group("siglip", "fp32", probe_cache).master, "image-classification").class_token == 0
    assert Arithmetic(group("vit", "fp32", probe_cache).master, "image-classification").class_token == 1
