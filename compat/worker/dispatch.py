"""Which kernels really ran: operators seen by a TorchDispatchMode around a forward.

In: a callable. Out: counts of the operators that carry attention or quantized products. The modes below autograd see
`aten::_scaled_dot_product_*` for a fused kernel; the math fallback of SDPA is composite and shows up as
`_safe_softmax`, eager attention as a plain `_softmax` over a tensor of three or more dimensions (a router's softmax
has two).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_FUSED_PREFIX = "aten::_scaled_dot_product_"
_LIBRARIES = ("flash_attn", "bitsandbytes", "torchao", "quanto", "flash_attn_3", "vllm_flash_attn3")


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name if hasattr(func, "_schema") else str(func)
        namespace = name.split("::")[0]
        if (
            namespace in _LIBRARIES
            or name.startswith(_FUSED_PREFIX)
            or "flex_attention" in name
            or name == "aten::_safe_softmax"
            or (name == "aten::_softmax" and args[0].dim() >= 3)
        ):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def kernels_seen() -> Iterator[Counter[str]]:
    """Collect operator counts of everything run inside the block."""
    recorder = _Recorder()
    with recorder:
        yield recorder.seen


@contextmanager
def forced_sdpa_kernel(kernel: str | None) -> Iterator[None]:
    """Allow one SDPA backend only (`MATH`, `FLASH_ATTENTION`, `EFFICIENT_ATTENTION`, `CUDNN_ATTENTION`); None: any.

    Source: torch.nn.attention.sdpa_kernel (torch >= 2.3).
    """
    if kernel is None:
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([getattr(SDPBackend, kernel)]):
        yield


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that an asynchronous fault surfaces at the call that caused it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
