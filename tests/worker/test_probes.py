"""Probes can see: every family builds, its attention is not uniform, and dropping a feature changes the output."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compat.builtin import matrices_folder
from compat.matrix import Model, read_matrix
from compat.worker import checkpoints, reference
from compat.worker.inputs import Rows, Source, output_of, unpadded
from compat.worker.load import from_pretrained
from compat.worker.reference import Reference

CPU = torch.device("cpu")
MODELS = read_matrix(matrices_folder() / "default-cpu.toml", "cpu").models
PROBES = [name for name, model in MODELS.items() if not model.real]
MOST_ENTROPY = 0.85
"""As in criteria.toml."""

BF16_NOISE = 2 * 2.0**-7
"""Upper end of the relative error of clean bf16 backends: 2 eps (docs/criteria.md)."""

_KEPT: dict[str, tuple[Any, Rows, torch.Tensor]] = {}


def _master(model: Model, cache: Path) -> Any:
    checkpoint = checkpoints.resolve(dict(model.row), cache)
    return from_pretrained(checkpoint, model.task, torch.float32, "eager", CPU)


def _probe(name: str, cache: Path) -> tuple[Any, Rows, torch.Tensor]:
    """The fp32 model, one row of 65 tokens (two images), and the reference's output (tokens, features)."""
    if name not in _KEPT:
        master = _master(MODELS[name], cache)
        rows = Source(dict(MODELS[name].row), master.config).rows(0, [65])
        reference.ENTROPY.total, reference.ENTROPY.rows = 0.0, 0
        _KEPT[name] = master, rows, _output(Reference(master, CPU), name, rows)
    return _KEPT[name]


def _output(own: Reference, name: str, rows: Rows) -> torch.Tensor:
    return output_of(own(**unpadded(rows, CPU, torch.float64)), MODELS[name].task)[0]


def _worst_token(changed: torch.Tensor, original: torch.Tensor) -> float:
    """Largest relative change of a token, in units of the noise of bf16."""
    difference = (changed - original).square().mean(-1).sqrt()
    return float(difference.max() / original.square().mean().sqrt()) / BF16_NOISE


@pytest.mark.parametrize("name", PROBES)
def test_a_family_builds_and_its_attention_can_be_seen(name: str, probe_cache: Path) -> None:
    _KEPT.pop(name, None)
    master, rows, r = _probe(name, probe_cache)
    assert r.dtype == torch.float64
    assert torch.isfinite(r).all()
    ratio = reference.ENTROPY.ratio
    if "no-attention" in MODELS[name].features:
        assert ratio is None
        return
    if ratio is None:  # a family whose attention we do not replace: ask it for its probabilities
        with torch.no_grad():
            weights = master(**unpadded(rows, CPU, torch.float32), output_attentions=True).attentions
        meter = reference.EntropyMeter()
        for layer in weights:
            meter.add(layer.double(), torch.ones(1, 1, *layer.shape[-2:], dtype=torch.bool).tril())
        ratio = meter.ratio
    assert ratio is not None
    assert ratio <= MOST_ENTROPY, "nearly uniform attention cannot see a mask, a scale or a head"
    assert ratio > 0.3, "attention to a single key cannot see the others"


@pytest.mark.parametrize("name", [n for n in PROBES if MODELS[n].task == "causal-lm"])
def test_the_reference_of_a_causal_family_does_not_see_the_future(name: str, probe_cache: Path) -> None:
    master, rows, r = _probe(name, probe_cache)
    other = Rows(((*rows.tokens[0][:-1], rows.tokens[0][-1] ^ 1),))
    changed = _output(Reference(master, CPU), name, other)
    assert torch.equal(changed[:-1], r[:-1]) or _worst_token(changed[:-1], r[:-1]) < 1e-9
    assert _worst_token(changed[-1:], r[-1:]) > 1, "the last token itself is seen"


def _set(attribute: str, value: Any) -> Callable[[Any], int]:
    """Give every module that has `attribute` another value; how many had it."""

    def drop(model: Any) -> int:
        found = [m for m in model.modules() if getattr(m, attribute, None) is not None and not hasattr(m, "layers")]
        for module in found:
            setattr(module, attribute, value)
        return len(found)

    return drop


def _no_window(model: Any) -> int:
    """Most families hand on the module's window; Mistral the config's."""
    if dropped := _set("sliding_window", None)(model):
        return dropped
    windowed = getattr(model.config, "sliding_window", None) is not None
    model.config.sliding_window = None
    return int(windowed)


def _zero(*parts: str, value: float = 0.0) -> Callable[[Any], int]:
    """Fill every parameter or buffer whose name holds one of `parts`."""

    def drop(model: Any) -> int:
        named = [*model.named_parameters(), *model.named_buffers()]
        found = [t for n, t in named if any(p in n for p in parts)]
        with torch.no_grad():
            for tensor in found:
                tensor.fill_(value)
        return len(found)

    return drop


WINDOWED = [n for n in PROBES if "window" in MODELS[n].features]
ROTARY = [n for n in PROBES if {"rope", "partial-rope"} & MODELS[n].features]
LEARNED = [n for n in PROBES if "learned-positions" in MODELS[n].features]
DROPS: list[tuple[str, str, Callable[[Any], int]]] = [
    *((n, "window", _no_window) for n in WINDOWED),
    *((n, "rope", _zero("inv_freq")) for n in ROTARY),
    *((n, "learned-positions", _zero("embed_positions", "wpe", "position_embeddings")) for n in LEARNED),
    ("gemma2", "softcap", _set("attn_logit_softcapping", None)),
    ("gemma2", "query-scale", _set("scaling", 64**-0.5)),
    ("gemma3", "query-scale", _set("scaling", 64**-0.5)),
    ("gpt_oss", "sinks", _zero("sinks", value=-1e9)),
    ("t5", "relative-positions", _zero("relative_attention_bias")),
    *((n, "causal mask", _set("is_causal", False)) for n in ("llama", "gemma2", "opt", "gpt2", "gpt_neox", "mixtral")),
    *((n, "bidirectional", _set("is_causal", True)) for n in ("bert", "vit")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "feature", "drop"),
    [pytest.param(*d, id=f"{d[0]}-{d[1]}") for d in DROPS],
)
def test_a_dropped_feature_is_seen(name: str, feature: str, drop: Callable[[Any], int], probe_cache: Path) -> None:
    master, rows, r = _probe(name, probe_cache)
    own = Reference(master, CPU)
    assert drop(own.model), f"{name} has no {feature} to drop"
    seen = _worst_token(_output(own, name, rows), r)
    assert seen > 5, f"without {feature} the worst token moves by {seen:.2f} times the noise of bf16"


@pytest.mark.parametrize(
    ("name", "function"),
    [("bloom", "_get_alibi_slopes"), ("falcon-alibi", "build_alibi_tensor"), ("mpt", "build_mpt_alibi_tensor")],
)
def test_a_dropped_alibi_is_seen(name: str, function: str, probe_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    master, rows, r = _probe(name, probe_cache)
    module = sys.modules[type(master).__module__]
    original = getattr(module, function)
    calls = []

    def flat(*arguments: Any, **keywords: Any) -> torch.Tensor:
        calls.append(1)
        return torch.zeros_like(original(*arguments, **keywords))

    monkeypatch.setattr(module, function, flat)
    seen = _worst_token(_output(Reference(master, CPU), name, rows), r)
    assert calls, "nobody asked for the slopes"
    assert seen > 5, f"without alibi the worst token moves by {seen:.2f} times the noise of bf16"


FAMILIES = read_matrix(matrices_folder() / "families.toml", "cpu").models


def test_normalised_queries_and_keys_make_scores_that_tell_keys_apart(probe_cache: Path) -> None:
    master = _master(FAMILIES["stablelm"], probe_cache)
    found = {n: float(p.detach().mean()) for n, p in master.named_parameters() if "q_layernorm" in n and p.dim() == 1}
    assert found
    assert all(mean == pytest.approx(2**0.5, abs=0.1) for mean in found.values())


def test_positions_by_a_normalised_convolution_are_as_large_as_what_they_are_added_to(probe_cache: Path) -> None:
    master = _master(FAMILIES["wav2vec2"], probe_cache)
    convolution = master.wav2vec2.encoder.pos_conv_embed.conv
    assert float(convolution.weight.detach().square().sum((1, 2)).mean()) == pytest.approx(1.0, rel=0.1)


def test_the_same_row_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    row = dict(MODELS["llama"].row)
    one, other = (_master(MODELS["llama"], tmp_path / name) for name in "ab")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    moved = _master(Model("llama", {**row, "seed": 1}), tmp_path / "c")
    assert not torch.equal(moved.lm_head.weight, one.lm_head.weight)


def test_weights_follow_the_scheme_of_the_page(probe_cache: Path) -> None:
    master, _, _ = _probe("llama", probe_cache)
    spread = {n: float(p.detach().std()) for n, p in master.named_parameters()}
    hidden, inner = 256**-0.5, 512**-0.5
    expected = {"embed_tokens": 1.0, "q_proj": 2**0.5 * hidden, "k_proj": 2**0.5 * hidden, "v_proj": 1.5 * hidden,
                "o_proj": 1.5 * hidden, "gate_proj": hidden, "up_proj": hidden, "down_proj": inner}  # fmt: skip
    for part, std in expected.items():
        for name, found in spread.items():
            if part in name:
                assert found == pytest.approx(std, rel=0.05), name
    norms = [p.detach() for n, p in master.named_parameters() if "norm" in n]
    assert all(abs(float(p.mean()) - 1) < 0.05 and 0.05 < float(p.std()) < 0.15 for p in norms)
