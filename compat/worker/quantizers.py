"""From a scheme to the configuration object that `from_pretrained` takes, for each quantization library.

In: a scheme's library and arguments (compat/axes/quantization.py), and the cell's dtype. Out: what transformers calls a
quantization config. An absent library raises what its import raises.
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import torch
import transformers

SKIP_ARGUMENT = {"bitsandbytes": "llm_int8_skip_modules"}
"""What a library calls the modules that it is to leave alone, where transformers does not say
`modules_to_not_convert`."""


BUILD_SECONDS = 300
"""A build whose files have not changed for so long is dead; quanto's takes about half a minute."""


def bitsandbytes_config(arguments: dict[str, Any], compute_dtype: torch.dtype) -> Any:
    """A BitsAndBytesConfig; `bnb_4bit_compute_dtype = "cell"` stands for the dtype of the cell."""
    resolved = {k: (compute_dtype if v == "cell" else v) for k, v in arguments.items()}
    return transformers.BitsAndBytesConfig(**resolved)


def torchao_config(arguments: dict[str, Any]) -> Any:
    """A TorchAoConfig around the configuration class of torchao that `arguments` name; `bits` and `group` for classes
    that take any width. Raises ImportError without torchao."""
    import torchao.quantization as quantization  # type: ignore[import-not-found, import-untyped, unused-ignore]

    own: dict[str, Any] = {}
    if "bits" in arguments:
        own["weight_dtype"] = getattr(torch, f"int{arguments['bits']}")
        own["granularity"] = quantization.PerGroup(arguments["group"])
    skipped = {k: v for k, v in arguments.items() if k == "modules_to_not_convert"}
    return transformers.TorchAoConfig(getattr(quantization, arguments["config"])(**own), **skipped)


def configuration(quantization: dict[str, Any], dtype: torch.dtype) -> Any:
    """The quantization config of a scheme with a library. Raises what the library raises, KeyError for an unknown
    library."""
    library, arguments = quantization["library"], quantization["arguments"]
    makers = {
        "bitsandbytes": lambda: bitsandbytes_config(arguments, dtype),
        "torchao": lambda: torchao_config(arguments),
        "optimum-quanto": lambda: transformers.QuantoConfig(**arguments),
    }
    if library == "optimum-quanto" and importlib.util.find_spec("optimum") is not None:
        package = importlib.util.find_spec("optimum.quanto")
        if package is not None:
            free_dead_builds(Path(str(package.origin)).parent)
    return makers[library]()


def free_dead_builds(folder: Path, now: float | None = None) -> list[Path]:
    """Remove the locks of extension builds below `folder` that nobody works on any more; returns them.

    torch.utils.cpp_extension writes a file `lock` while it builds, and every other process waits until it is gone: for
    ever, where the one that built was killed.
    """
    moment = time.time() if now is None else now
    dead = [p for p in folder.rglob("build/lock") if moment - _last_change(p.parent) > BUILD_SECONDS]
    for lock in dead:
        lock.unlink(missing_ok=True)
    return dead


def _last_change(folder: Path) -> float:
    return max(p.stat().st_mtime for p in (folder, *folder.iterdir()))


def skipping(quantization: dict[str, Any], modules: list[str]) -> dict[str, Any]:
    """`quantization` with `modules` to be left alone beside those that it leaves alone already."""
    name = SKIP_ARGUMENT.get(quantization["library"], "modules_to_not_convert")
    own = quantization["arguments"]
    return quantization | {"arguments": own | {name: [*own.get(name, ()), *modules]}}


def left_alone(quantization: dict[str, Any]) -> tuple[str, ...]:
    """The modules that a scheme leaves alone, by any part of their path."""
    name = SKIP_ARGUMENT.get(quantization["library"], "modules_to_not_convert")
    return tuple(quantization["arguments"].get(name, ()))


def compute_dtype(quantization: dict[str, Any], dtype: torch.dtype) -> torch.dtype:
    """The dtype that quantized products are asked to compute in, in a cell of `dtype`."""
    asked = quantization["arguments"].get("bnb_4bit_compute_dtype", "cell")
    return dtype if asked == "cell" else getattr(torch, asked)


def serializable(model: Any) -> bool:
    """Whether the library says that a quantized `model` can be saved."""
    said = getattr(getattr(model, "hf_quantizer", None), "is_serializable", True)
    return bool(said() if callable(said) else said)
