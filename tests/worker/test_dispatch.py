"""Which kernels are recognised, with real calls on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from compat.axes import ATTENTION
from compat.axes.attention import kernel_kind
from compat.worker.dispatch import forced_sdpa_kernel, kernels_seen


def _qkv(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 16, 64, generator=generator).to(dtype) for _ in range(3))
    return q, k, v


def _kinds(seen: dict[str, int]) -> set[str | None]:
    return {kernel_kind(name) for name in seen}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_default_sdpa_on_a_cpu_is_the_flash_kernel(dtype: torch.dtype) -> None:
    with kernels_seen() as seen, torch.no_grad():
        sdpa(*_qkv(dtype), is_causal=True)
    assert dict(seen) == {"aten::_scaled_dot_product_flash_attention_for_cpu": 1}
    assert _kinds(seen) <= ATTENTION["sdpa"].kinds


def test_a_forced_math_kernel_is_told_from_eager() -> None:
    with kernels_seen() as seen, forced_sdpa_kernel("MATH"), torch.no_grad():
        sdpa(*_qkv(), is_causal=True)
        sdpa(*_qkv())
    assert _kinds(seen) == {"sdpa math"} == ATTENTION["sdpa-math"].kinds
    assert sum(seen.values()) == 2


def test_a_forced_flash_kernel_is_seen() -> None:
    with kernels_seen() as seen, forced_sdpa_kernel("FLASH_ATTENTION"), torch.no_grad():
        sdpa(*_qkv(), is_causal=True)
    assert _kinds(seen) == ATTENTION["sdpa-flash"].kinds


@pytest.mark.parametrize("kernel", ["EFFICIENT_ATTENTION", "CUDNN_ATTENTION"])
def test_a_kernel_that_a_cpu_has_not_is_refused(kernel: str) -> None:
    with forced_sdpa_kernel(kernel), pytest.raises(RuntimeError, match=r"No available kernel|No viable backend"):
        sdpa(*_qkv())


def test_no_forced_kernel_leaves_the_choice_to_torch() -> None:
    with kernels_seen() as seen, forced_sdpa_kernel(None), torch.no_grad():
        sdpa(*_qkv())
    assert _kinds(seen) == {"sdpa flash"}


def test_an_eager_softmax_is_seen_and_a_routers_is_not() -> None:
    q, k, v = _qkv()
    with kernels_seen() as seen, torch.no_grad():
        torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        torch.softmax(torch.randn(5, 4), -1)  # a router: tokens x experts
        torch.nn.functional.relu(q)
    assert dict(seen) == {"aten::_softmax": 1}
    assert _kinds(seen) == ATTENTION["eager"].kinds


def test_nothing_is_counted_outside_the_block() -> None:
    with kernels_seen() as seen, torch.no_grad():
        pass
    sdpa(*_qkv())
    assert not seen


def test_every_forced_kernel_is_one_that_torch_knows() -> None:
    from torch.nn.attention import SDPBackend

    for backend in ATTENTION:
        if backend.sdpa_kernel is not None:
            assert hasattr(SDPBackend, backend.sdpa_kernel.removeprefix("legacy ")), backend.name


def test_compiled_attention_is_read_from_profiler_events() -> None:
    """flex_attention compiles itself: its regions, or what ran instead, are what the profiler names."""
    from compat.axes.attention import kernel_kind
    from compat.worker.dispatch import _compiled_attention

    ran = _compiled_attention(
        ["aten::mm", "Torch-Compiled Region: 0/0", "Torch-Compiled Region: 1/0", "aten::_softmax"]
    )
    assert ran == {"Torch-Compiled Region": 2}
    assert {kernel_kind(name) for name in ran} == {"flex"}
    fell_back = _compiled_attention(["aten::_scaled_dot_product_flash_attention_for_cpu", "aten::mm"])
    assert {kernel_kind(name) for name in fell_back} == {"sdpa flash"}
