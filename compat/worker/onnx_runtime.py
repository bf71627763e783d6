"""ONNX Runtime: a checkpoint exported by optimum, its session, and what can be read off it.

In: a checkpoint, a task, a dtype, an execution provider. Out: a model that is called as one of transformers is, and the
facts of its sessions: providers, dtypes of the weights held, nodes that ran by provider. An export is kept in the cache
folder, keyed by the checkpoint and the versions that make it.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compat.worker import stack_api
from compat.worker.calls import Unavailable, under_test
from compat.worker.checkpoints import Checkpoint, made_once

CLASSES = {
    "causal-lm": "ORTModelForCausalLM",
    "masked-lm": "ORTModelForMaskedLM",
    "seq2seq-lm": "ORTModelForSeq2SeqLM",
    "feature-extraction": "ORTModelForFeatureExtraction",
    "image-classification": "ORTModelForImageClassification",
}
"""Task -> optimum's class for it."""

MAKERS = ("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime")
"""Distributions that have a part in what an export holds."""

PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "Softmax", "Attention", "MultiHeadAttention",
                      "GroupQueryAttention", "FusedGemm", "TransposeMatMul"})  # fmt: skip
"""Operators of a graph that do its work; the others make shapes and masks, which every provider leaves to the CPU."""

ELEMENTS = {1: "float32", 10: "float16", 11: "float64", 16: "bfloat16"}
"""Floating members of ONNX's TensorProto.DataType, as torch names them."""


class Exported:
    """An ONNX Runtime model of optimum's, with what transformers' models have and it has not: a mask of ones where the
    caller gives none, which the graph asks for; the embeddings of `master`, the model that was exported; no parameters
    and no modules. What is set on it is set on optimum's."""

    exported = True
    training = False
    main_input_name: str

    def __init__(self, model: Any, master: Any) -> None:
        vars(self).update(model=model, master=master)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["model"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.model, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.model, name)

    @property
    def forward(self) -> Any:
        """optimum's own, for its signature."""
        return self.model.forward

    def __call__(self, **inputs: Any) -> Any:
        """A forward. Raises what optimum and ONNX Runtime raise."""
        return self.model(**self._masked(inputs))

    def generate(self, **arguments: Any) -> Any:
        """optimum's own `generate`, whatever stands in for it on the model."""
        return type(self.model).generate(self.model, **arguments)

    def _masked(self, inputs: dict[str, Any]) -> dict[str, Any]:
        tokens: Any = inputs.get("input_ids")
        past, encoded = inputs.get("past_key_values"), inputs.get("encoder_outputs")
        if inputs.get("attention_mask") is not None or (tokens is None and encoded is None):
            return inputs
        if encoded is not None:
            rows, width = encoded[0].shape[:2]
        else:
            rows, width = tokens.shape
            width += past[0][0].shape[-2] if past is not None else 0
        return {**inputs, "attention_mask": torch.ones(rows, width, dtype=torch.long, device=self.model.device)}

    def get_input_embeddings(self) -> Any:
        """Of the model that was exported."""
        return self.master.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """Of the model that was exported."""
        return self.master.get_output_embeddings()

    def named_parameters(self, **_: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """None: the weights are the session's."""
        return iter(())

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """None."""
        return iter(())

    def named_modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """None."""
        return iter(())

    def modules(self) -> Iterator[torch.nn.Module]:
        """None."""
        return iter(())


@dataclass(frozen=True)
class Asked:
    """What is exported, and how it is to run."""

    checkpoint: Checkpoint
    task: str
    dtype: torch.dtype
    provider: str
    cache: Path
    master: Any
    """The checkpoint's model in fp32."""


def load(asked: Asked, profile: str = "") -> Exported:
    """The checkpoint as an ONNX Runtime model of its task on the provider; exported first where the cache has it not.
    `profile` is a folder for the sessions' profiles. Raises StackError (phases `export`, `load`), Unavailable."""
    if asked.checkpoint.config is not None:
        raise Unavailable("a model of random weights has no checkpoint that could be exported")
    if asked.task not in CLASSES:
        raise Unavailable(f"compat exports no models of {asked.task}: {', '.join(CLASSES)}")
    with under_test("load"):
        cls = getattr(importlib.import_module("optimum.onnxruntime"), CLASSES[asked.task])
    folder = _exported(cls, asked)
    arguments: dict[str, Any] = {"provider": asked.provider}
    with under_test("load"):
        if profile:
            options = importlib.import_module("onnxruntime").SessionOptions()
            options.enable_profiling = True
            options.profile_file_prefix = os.path.join(profile, "nodes")
            arguments["session_options"] = options
        return Exported(cls.from_pretrained(folder, **arguments), asked.master)


def pipeline(task: str, **arguments: Any) -> Any:
    """optimum's pipeline on ONNX Runtime. Raises what optimum raises."""
    return importlib.import_module("optimum.pipelines").pipeline(task, accelerator="ort", **arguments)


def _exported(cls: Any, asked: Asked) -> Path:
    checkpoint, dtype = asked.checkpoint, asked.dtype
    place = Path(checkpoint.location)
    key = {
        "checkpoint": checkpoint.location,
        "files": _files(place),
        "arguments": checkpoint.arguments,
        "task": asked.task,
        "dtype": str(dtype),
        "versions": {name: stack_api.version_of(name) for name in MAKERS},
    }

    def make(folder: Path) -> None:
        with under_test("export"), stack_api.default_dtype_kept():
            named = {} if dtype == torch.float32 else stack_api.dtype_argument(dtype)
            model = cls.from_pretrained(checkpoint.location, export=True, **checkpoint.arguments, **named)
            model.save_pretrained(folder)

    return made_once(asked.cache, f"onnx-{place.name}", key, make)


def _files(folder: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and time of every file of a checkpoint's folder; nothing for a hub id, which has its revision."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((p.name, (s := p.stat()).st_size, s.st_mtime_ns) for p in found)


def sessions(model: Exported) -> dict[str, Any]:
    """The sessions of `model` by the part that they compute."""
    names = ("encoder", "decoder", "decoder_with_past")
    parts: dict[str, Any] = {name: getattr(model.model, name, None) for name in names}
    found = {name: part.session for name, part in parts.items() if hasattr(part, "session")}
    return found or {"model": model.model.session}


def held_dtypes(model: Exported) -> dict[str, float]:
    """Share of the bytes of floating weights that the graphs hold in each dtype. Reads the files that the sessions were
    made of."""
    onnx = importlib.import_module("onnx")
    held: Counter[str] = Counter()
    for session in sessions(model).values():
        graph = onnx.load(session._model_path, load_external_data=False).graph
        for tensor in graph.initializer:
            name = ELEMENTS.get(tensor.data_type)
            if name is not None:
                size = 1
                for n in tensor.dims:
                    size *= n
                held[name] += size * getattr(torch, name).itemsize
    total = sum(held.values()) or 1
    return {name: n / total for name, n in held.most_common()}


def nodes(asked: Asked, inputs: dict[str, torch.Tensor]) -> Counter[tuple[str, str]]:
    """(provider, operator) -> nodes that ran in one forward of `inputs`, from ONNX Runtime's own profile of sessions
    made for this. Raises StackError."""
    found: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory(prefix="compat-") as folder:
        model = load(asked, profile=folder)
        with under_test("forward"):
            model(**inputs)
            written = {session.end_profiling() for session in sessions(model).values()}
        for path in written:
            events = json.loads(Path(path).read_text(encoding="utf-8"))
            ran = (e["args"] for e in events if e.get("cat") == "Node" and e.get("name", "").endswith("_kernel_time"))
            found.update((a["provider"], a["op_name"]) for a in ran)
    return found
