"""Exported models: the wrapper around a session on a real model of torch, and whole cells where the stack is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from compat.axes import ATTENTION
from compat.axes.attention import kernel_kind
from compat.checks import CHECKS
from compat.identity import default_cache
from compat.records import Outcome
from compat.worker.calls import Unavailable
from compat.worker.checkpoints import Checkpoint
from compat.worker.onnx_runtime import CLASSES, PRODUCTS, Asked, Exported, load

from ..execute.running import run
from ..matrix_files import write
from .test_bettertransformer import created


class _Strict:
    """A model that asks for a mask, as a graph does."""

    def __init__(self) -> None:
        sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        self.inner = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_attention_heads=2)).eval()
        self.config, self.device = self.inner.config, torch.device("cpu")
        self.masks: list[torch.Tensor] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, past_key_values: object = None) -> object:
        self.masks.append(attention_mask)
        with torch.no_grad():
            return self.inner(input_ids, attention_mask=attention_mask)

    __call__ = forward

    def generate(self, **arguments: object) -> str:
        return f"own {sorted(arguments)}"


def test_a_graph_gets_a_mask_of_ones_where_the_caller_gives_none() -> None:
    strict = _Strict()
    model, ids = Exported(strict, strict.inner), torch.tensor([[1, 2, 3], [4, 5, 6]])
    own = torch.tensor([[0, 1, 1], [1, 1, 1]])
    past = ((torch.zeros(2, 2, 5, 8), torch.zeros(2, 2, 5, 8)),)
    output = model(input_ids=ids)
    with torch.no_grad():
        assert torch.equal(output.logits, strict.inner(ids).logits)
    model(input_ids=ids, attention_mask=own)
    model(input_ids=ids[:, :1], past_key_values=past)
    assert [m.tolist() for m in strict.masks] == [[[1] * 3] * 2, own.tolist(), [[1] * 6] * 2]


def test_what_is_set_on_a_graph_is_set_on_optimums_model() -> None:
    strict = _Strict()
    model = Exported(strict, strict.inner)
    model.__setattr__("generate", lambda **_: "stand-in")
    assert strict.generate() == "stand-in"
    assert model.generate(a=1) == "own ['a']", "the real one, whatever stands in"
    model.__delattr__("generate")
    assert strict.generate(b=2) == "own ['b']"
    assert list(model.named_parameters()) == list(model.parameters()) == list(model.modules()) == []
    assert model.get_input_embeddings() is strict.inner.get_input_embeddings()
    with pytest.raises(AttributeError):
        _ = model.no_such_thing


def test_checks_that_need_modules_are_not_asked_of_a_graph() -> None:
    for backend in ATTENTION:
        axes = {"model": "m", "dtype": "fp32", "attention": backend.name, "quantization": "none"}
        asked = {c.name for c in CHECKS if any(c.applies(task, axes) for task in CLASSES)}
        modular = {"gradient", "dispatch", "work", "memory"}
        assert not asked & modular if backend.provider else modular <= asked
        assert {"load", "agreement", "padding", "cache", "determinism", "speed"} <= asked


def test_nodes_are_told_by_their_provider() -> None:
    for name in PRODUCTS:
        assert kernel_kind(f"CPUExecutionProvider::{name}") in ATTENTION["onnxruntime"].kinds
        assert kernel_kind(f"CUDAExecutionProvider::{name}") in ATTENTION["onnxruntime-cuda"].kinds
        assert kernel_kind(f"CPUExecutionProvider::{name}") in ATTENTION["onnxruntime-cuda"].slower_kinds


@pytest.mark.parametrize(
    ("checkpoint", "task", "said"),
    [
        (Checkpoint("shape:x", config=object()), "causal-lm", "random weights"),
        (Checkpoint("some/where"), "speech-seq2seq", "exports no models of speech-seq2seq"),
    ],
)
def test_what_cannot_be_exported_is_unavailable(checkpoint: Checkpoint, task: str, said: str, tmp_path: Path) -> None:
    asked = Asked(checkpoint, task, torch.float32, "CPUExecutionProvider", tmp_path, None)
    with pytest.raises(Unavailable, match=said):
        load(asked)
    assert not list(tmp_path.iterdir())


CELLS = """
title = "Exported"
checks = ["load", "agreement"]

[settings]
stack = "onnxruntime"

[axes]
model = ["bert", "mixtral"]
dtype = ["fp32"]
attention = ["onnxruntime"]
quantization = ["none"]

[[include]]
model = ["bert"]
dtype = ["fp16"]
attention = ["onnxruntime"]
quantization = ["none"]

[[include]]
model = ["bert"]
dtype = ["fp32"]
attention = ["onnxruntime-cuda"]
quantization = ["none"]
"""


def test_right_refused_unavailable_and_of_another_dtype(tmp_path: Path) -> None:
    created("onnxruntime")
    stored = run(write(tmp_path, CELLS), tmp_path / "run", default_cache())
    cells = {c.id: c for c in stored.cells}
    assert cells["bert/fp32/onnxruntime/none"].outcome == Outcome.PASS
    assert cells["bert/fp32/onnxruntime/none"].effective["kernels"] == ["onnxruntime cpu"]
    assert cells["mixtral/fp32/onnxruntime/none"].outcome == Outcome.UNSUPPORTED
    assert cells["bert/fp32/onnxruntime-cuda/none"].outcome == Outcome.UNAVAILABLE
    load = {c.name: c for c in cells["bert/fp16/onnxruntime/none"].checks}["load"]
    assert load.outcome == Outcome.FAIL
    assert "asked for float16, parameters are float32" in load.reason
