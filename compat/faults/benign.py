"""Changes that are none: other orders of summation, more precise inner steps, copies. No check may mind them."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches


@fault(
    "benign-sdpa-in-fp32",
    title="SDPA computes in fp32 and casts back",
    origin="class: benign",
    mechanism="more precise than stock, 16-bit tensors on a CPU only",
    cells=("llama/bf16/sdpa/none", "bert/bf16/sdpa/none"),
    device="cpu",
)
def _sdpa_in_fp32(patches: Patches) -> None:
    def make(original: Any) -> Any:
        def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, *more: Any, **rest: Any) -> Any:
            if query.element_size() != 2 or query.device.type != "cpu":
                return original(query, key, value, attn_mask, *more, **rest)
            patches.reached()
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.float()
            wide = original(query.float(), key.float(), value.float(), attn_mask, *more, **rest)
            return wide.to(query.dtype)

        return attention

    patches.function("torch.nn.functional:scaled_dot_product_attention", make)
