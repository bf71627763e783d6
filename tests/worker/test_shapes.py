"""Shapes: full-size models with random weights, loaded as users load, compared with nothing, judged by arithmetic."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from compat import availability, device
from compat.axes import QUANTIZATIONS
from compat.builtin import matrices_folder
from compat.execute.local import group_spec
from compat.judge import judge
from compat.matrix import CellSpec, Model, read_matrix
from compat.plan import LoadGroup
from compat.records import Outcome
from compat.rules import context_of
from compat.worker import checkpoints, reload, shapes
from compat.worker.calls import StackError, Unavailable
from compat.worker.checks import load, memory
from compat.worker.group import EAGER, Group, Masters
from compat.worker.load import quantizable_parameters, scheme_bytes
from compat.worker.spec import GroupSpec

from .checks.groups import attention, figures

CPU = torch.device("cpu")
HERE = Path()
"""A shape leaves no file anywhere."""

OWN = {
    name: model
    for kind in ("cpu", "cuda")
    for name, model in read_matrix(matrices_folder() / f"speed-{kind}.toml", kind).models.items()
}
"""Every shape that the speed matrices name."""

TINY: dict[str, dict[str, Any]] = {
    "llama3": {
        "type": "llama", "vocab_size": 512, "hidden_size": 256, "intermediate_size": 448, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 500000.0, "tie_word_embeddings": False,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192},
    },
    "falcon": {
        "type": "falcon", "vocab_size": 512, "hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3,
        "multi_query": True, "new_decoder_architecture": False, "alibi": False, "bias": False,
        "tie_word_embeddings": True,
    },
    "opt": {
        "type": "opt", "vocab_size": 512, "hidden_size": 256, "ffn_dim": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "word_embed_proj_dim": 128, "do_layer_norm_before": False,
        "max_position_embeddings": 512, "tie_word_embeddings": True,
    },
    "gemma2": {
        "type": "gemma2", "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    "gpt2": {
        "type": "gpt2", "vocab_size": 512, "n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 512,
        "tie_word_embeddings": True,
    },
    "mixtral": {
        "type": "mixtral", "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Families with something of their own: stretched rope, one key/value head, a narrow embedding, (1 + weight) norms,
Conv1D, experts."""


def _model(name: str, **more: Any) -> Model:
    config = {k: v for k, v in TINY[name].items() if k != "type"}
    row = {"source": "shape", "type": TINY[name]["type"], "task": "causal-lm", "config": config, "name": name}
    return Model(name, {**row, **more})


def _group(model: Model, dtype: str, quantization: str = "none") -> Group:
    part = LoadGroup(f"{model.name}/{dtype}/{quantization}", model.name, dtype, quantization, ())
    return Group(GroupSpec(**group_spec(part, model, "cpu", HERE, 0, "standard")), Masters())


@functools.cache
def _empty(name: str) -> Any:
    return shapes.on_meta(checkpoints.resolve(dict(OWN[name].row), HERE), OWN[name].task)


@pytest.mark.parametrize("name", OWN)
def test_a_row_counts_the_parameters_that_the_library_builds(name: str) -> None:
    empty, row = _empty(name), OWN[name].row
    assert all(p.is_meta for p in empty.parameters()), "a shape is described without memory for its weights"
    assert sum(p.numel() for p in empty.parameters()) == row["parameters"]
    assert sum(quantizable_parameters(empty).values()) == row["linear_parameters"]
    assert sum(w.shape.numel() for w in shapes.weights(empty, torch.bfloat16, CPU).values()) == row["parameters"]


@pytest.mark.parametrize("name", OWN)
def test_the_list_knows_what_the_worker_reckons(name: str) -> None:
    half = copy.deepcopy(_empty(name)).to(torch.bfloat16)
    for scheme in QUANTIZATIONS:
        cell = CellSpec(name, "bf16", "eager", scheme.name, ("load",))
        listed = availability.weights_bytes(cell, OWN[name])
        reckoned = scheme_bytes(_empty(name), half, torch.bfloat16, scheme.bits, scheme.overhead(2))
        assert listed == pytest.approx(reckoned, rel=2e-4), f"{scheme.name}: only buffers may be left out"


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_it_loads_as_asked_and_holds_what_the_arithmetic_says(name: str, dtype: str) -> None:
    group = _group(_model(name), dtype)
    # capped scores have no fused kernel on a CPU, and Falcon stays on eager when it is switched
    asked = attention("eager" if name in ("gemma2", "falcon") else "sdpa")
    loaded, held = load.run(group, asked), memory.run(group, asked)
    model = group.loaded(asked).model
    assert {p.dtype for p in model.parameters()} == {group.dtype}
    assert loaded.facts["attention"] == asked["implementation"]
    assert loaded.facts["dtype_shares"] == {str(group.dtype).removeprefix("torch."): 1.0}
    assert reload.ties(model) == reload.ties(group.master)
    assert bool(reload.ties(model)) == TINY[name]["tie_word_embeddings"]
    assert figures(loaded)["nonfinite_elements"] == 0
    assert loaded.facts["not_asked"], "what was not compared is said"
    assert "weights_differing" not in figures(loaded)
    assert figures(held)["weights_over_scheme"] == pytest.approx(1, abs=1e-5)
    assert figures(held)["kv_cache_over_arithmetic"] == 1
    for check, report in (("load", loaded), ("memory", held)):
        answer = {"status": "ok", "measurements": report.measurements, "facts": report.facts, "kernels": report.kernels}
        axes = {"model": name, "dtype": dtype, "attention": asked["name"], "quantization": "none"}
        judged = judge(check, answer, context_of(axes, "cpu", _model(name)))
        assert judged.outcome == Outcome.PASS, f"{check}: {judged.reason}"


@pytest.mark.parametrize("quantization", ["bnb-int8", "bnb-nf4", "bnb-nf4-dq"])
@pytest.mark.parametrize("name", ["llama3", "opt", "gpt2"])
def test_it_is_quantized_by_the_library_on_the_way(name: str, quantization: str) -> None:
    group = _group(_model(name), "bf16", quantization)
    seen = figures(load.run(group, EAGER | {"operators": []}))
    held = figures(memory.run(group, EAGER))
    assert seen["quantized_share"] > 0.9
    assert held["weights_over_scheme"] == pytest.approx(1, abs=0.03), "lookup tables weigh something in tiny models"
    assert held["left_behind_bytes"] == 0
    assert not group._stored, "codes of a large model are not kept twice"


def test_weights_are_drawn_by_name_and_only_when_they_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = shapes.on_meta(checkpoints.resolve(dict(_model("llama3").row), HERE), "causal-lm")
    drawn = shapes.weights(empty, torch.float32, CPU)
    query, key = (drawn[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qk")
    assert torch.equal(query[...], query[...]), "the same name gives the same values"
    assert not torch.equal(query[...][:8], key[...][:8])
    assert float(query[...].std()) == pytest.approx(256**-0.5, rel=0.05)
    assert float(drawn["model.embed_tokens.weight"][...].std()) == pytest.approx(shapes.SMALL_STD, rel=0.05)
    made: list[str] = []
    original = shapes.Tensor.__getitem__

    def counted(self: shapes.Tensor, index: Any) -> torch.Tensor:
        made.append(self.name)
        return original(self, index)

    monkeypatch.setattr(shapes.Tensor, "__getitem__", counted)
    older = shapes.Drawn(drawn)
    assert not made
    assert older.copy().keys() == drawn.keys()
    assert not made, "copying draws nothing"
    assert [name for name, _ in older.items()] == made == list(drawn)
    assert torch.equal(older[query.name], query[...])


def test_a_norm_is_the_identity_whatever_its_family_adds() -> None:
    for name, weight in (("llama3", 1.0), ("gemma2", 0.0), ("opt", 1.0)):
        empty = shapes.on_meta(checkpoints.resolve(dict(_model(name).row), HERE), "causal-lm")
        norms = [w for n, w in shapes.weights(empty, torch.float32, CPU).items() if "norm" in n and "bias" not in n]
        assert norms, name
        assert all(bool((w[...] == weight).all()) for w in norms), name


def test_weights_that_the_library_does_not_place_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    original = shapes.weights

    def one_less(*arguments: Any) -> dict[str, Any]:
        found = original(*arguments)
        del found["model.norm.weight"]
        return {**found, "model.nrom.weight": found["model.layers.0.input_layernorm.weight"]}

    monkeypatch.setattr(shapes, "weights", one_less)
    with pytest.raises(StackError, match=r"did not place every weight.*model\.n"):
        _group(_model("llama3"), "fp32").loaded(EAGER)


def test_a_shape_beyond_the_memory_is_unavailable_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory_bytes", lambda kind: 2**20)
    group = _group(_model("llama3"), "fp32")
    with pytest.raises(Unavailable, match=r"weights take 0\.0 GiB, more than 80% of the 0\.0 GiB of cpu"):
        group.loaded(EAGER)
    monkeypatch.setattr(device, "memory_bytes", lambda kind: 24 * 2**30)
    cell = CellSpec("llama-7b", "bf16", "eager", "none", ("load",))
    monkeypatch.setattr(availability, "_memory", lambda device: 12 * 2**30)
    reason = availability.missing(cell, OWN["llama-7b"], "cuda")
    assert reason == "its weights take 12.6 GiB, more than 80% of the 12.0 GiB of cuda"
