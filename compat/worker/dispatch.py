"""Which kernels really ran: operators seen by a TorchDispatchMode around a forward.

In: a callable. Out: counts of the operators that carry attention or quantized products. The modes below autograd see
`aten::_scaled_dot_product_*` for a fused kernel; the math fallback of SDPA is composite and shows up as
`_safe_softmax`, eager attention as a plain `_softmax` over a tensor of three or more dimensions (a router's softmax
has two).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

FUSED_PREFIX = "aten::_scaled_dot_product_"
ENCODER_LAYER = frozenset({"aten::_transformer_encoder_layer_fwd", "aten::_native_multi_head_attention"})
"""torch's fast path of an encoder: a whole layer, or its attention, in one operator."""

COMPILED_REGION = "Torch-Compiled Region"
QUANTIZED_LIBRARIES = ("bitsandbytes", "torchao", "quanto")
CUTE = "flash_attn.cute"
"""FlashAttention-4: its functions launch kernels that are no operators of torch."""

_LIBRARIES = (*QUANTIZED_LIBRARIES, "flash_attn", "flash_attn_3", "vllm_flash_attn3", CUTE)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name if hasattr(func, "_schema") else str(func)
        if is_kernel(name, args[0].dim() if args and isinstance(args[0], torch.Tensor) else 0):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def is_kernel(name: str, dimensions: int) -> bool:
    """Whether operator `name` carries attention or a quantized product; `dimensions` of its first tensor: a softmax
    over two is a router's."""
    return (
        name.startswith(FUSED_PREFIX)
        or name == "aten::_safe_softmax"
        or (name == "aten::_softmax" and dimensions >= 3)
        or name in ENCODER_LAYER
        or "flex_attention" in name
        or name.partition("::")[0] in _LIBRARIES
    )


@contextmanager
def kernels_seen(implementation: str = "") -> Iterator[Counter[str]]:
    """Collect operator counts of everything run inside the block; they are complete when it ends.

    flex_attention compiles itself, and a dispatch mode would stop it: for that `implementation` torch's profiler looks.
    """
    if implementation == "flex_attention":
        seen: Counter[str] = Counter()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            yield seen
        seen.update(_compiled_attention(event.name for event in profiler.events()))
        return
    recorder = _Recorder()
    with recorder, launches(implementation, lambda name, args, result: recorder.seen.update([name])):
        yield recorder.seen


@contextmanager
def launches(implementation: str, note: Callable[[str, Any, Any], None]) -> Iterator[None]:
    """Inside, `note` is called with (`flash_attn.cute::function`, positional arguments, result) after each function of
    FlashAttention-4 that launches its kernels; with any other `implementation` nothing is watched."""
    try:
        interface = import_module(f"{CUTE}.interface") if implementation == "flash_attention_4" else None
    except ImportError:
        interface = None
    names = ("_flash_attn_fwd", "_flash_attn_bwd")
    own = {name: function for name in names if (function := getattr(interface, name, None))}

    def watched(name: str) -> Any:
        @wraps(own[name])  # it carries its cache of compiled kernels as an attribute
        def call(*args: Any, **kwargs: Any) -> Any:
            result = own[name](*args, **kwargs)
            note(f"{CUTE}::{name}", args, result)
            return result

        return call

    for name in own:
        setattr(interface, name, watched(name))
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(interface, name, function)


def forget_compiled() -> None:
    """Let go of what torch compiled. flex_attention compiles each shape anew and, after as many as torch allows of one
    function (`torch._dynamo.config.recompile_limit`), computes unfused from then on: without this the kernels that a
    check sees would depend on those that other checks had asked for."""
    torch._dynamo.reset()


def _compiled_attention(names: Iterable[str]) -> Counter[str]:
    """Compiled regions and flex operators among profiler events, and fused or eager attention where it ran instead."""
    found: Counter[str] = Counter()
    for name in names:
        if name.startswith(COMPILED_REGION):
            found[COMPILED_REGION] += 1
        elif "flex" in name.lower() or name.startswith(FUSED_PREFIX) or name == "aten::_safe_softmax":
            found[name] += 1
    return found


@contextmanager
def forced_sdpa_kernel(kernel: str | None) -> Iterator[None]:
    """Allow one SDPA backend only (`MATH`, `FLASH_ATTENTION`, `EFFICIENT_ATTENTION`, `CUDNN_ATTENTION`); None: any.
    `legacy FLASH_ATTENTION` asks for it as older guides do.

    Sources: torch.nn.attention.sdpa_kernel (torch >= 2.3), torch.backends.cuda.sdp_kernel (deprecated since).
    """
    if kernel is None:
        yield
        return
    if kernel == "legacy FLASH_ATTENTION":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            legacy = torch.backends.cuda.sdp_kernel(enable_flash=True, enable_math=False, enable_mem_efficient=False)
        with legacy:
            yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([getattr(SDPBackend, kernel)]):
        yield


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that an asynchronous fault surfaces at the call that caused it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
