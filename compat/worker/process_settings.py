"""What holds for the whole process, so that a model which changes it changes every other."""

from __future__ import annotations

from typing import Any

import torch


def process_settings() -> dict[str, Any]:
    """Settings of torch that hold for the whole process, which no model has a right to change."""
    return {
        "default dtype": str(torch.get_default_dtype()),
        "gradients": torch.is_grad_enabled(),
        "autocast on a CPU": torch.is_autocast_enabled("cpu"),
        "autocast on CUDA": torch.is_autocast_enabled("cuda"),
        "TF32 products": torch.backends.cuda.matmul.allow_tf32,
        "threads": torch.get_num_threads(),
        "flash SDPA": torch.backends.cuda.flash_sdp_enabled(),
        "math SDPA": torch.backends.cuda.math_sdp_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }
