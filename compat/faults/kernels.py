"""Faults of one kernel: right under every other, wrong where flash attention or a forced SDPA kernel runs."""

from __future__ import annotations

from typing import Any

from compat.faults import fault
from compat.faults.patches import Patches
from compat.faults.seams import FLASH, TORCH_SDPA, Call, after, before_attention, forced_kernel


def _under_kernel(patches: Patches, kernel: str, change: Any) -> None:
    """Let `change(attn_mask, is_causal)` give what SDPA gets in their place while `kernel` alone is allowed."""

    def make(original: Any) -> Any:
        def attention(
            query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
            **rest: Any,
        ) -> Any:  # fmt: skip
            if forced_kernel() == kernel:
                own = (attn_mask, is_causal)
                attn_mask, is_causal = change(attn_mask, is_causal)
                if (attn_mask is None, is_causal) != (own[0] is None, own[1]):
                    patches.reached()
            return original(query, key, value, attn_mask, dropout_p, is_causal, **rest)

        return attention

    patches.function(TORCH_SDPA, make)


@fault(
    "forced-flash-causal-dropped",
    title="the flash kernel, where it is forced, looks at tokens that are still to come",
    origin="class: masks",
    mechanism="is_causal is lost on the way to one kernel",
    cells=("gpt2/bf16/sdpa-flash/none",),
    seen_by=("agreement",),
    spared=("gpt2/bf16/sdpa/none", "gpt2/bf16/eager/none"),
)
def _forced_flash(patches: Patches) -> None:
    _under_kernel(patches, "flash", lambda mask, causal: (mask, False))


@fault(
    "forced-efficient-mask-dropped",
    title="the memory-efficient kernel, where it is forced, ignores its mask",
    origin="class: masks",
    mechanism="is_causal takes the mask's place on the way to one kernel",
    cells=("llama/bf16/sdpa-efficient/none",),
    seen_by=("padding",),
    spared=("llama/bf16/sdpa/none",),
    device="cuda",
)
def _forced_efficient(patches: Patches) -> None:
    _under_kernel(patches, "efficient", lambda mask, causal: (None, causal or mask is not None))


@fault(
    "forced-cudnn-causal-dropped",
    title="the cuDNN kernel, where it is forced, looks at tokens that are still to come",
    origin="class: masks",
    mechanism="is_causal is lost on the way to one kernel",
    cells=("gpt2/bf16/sdpa-cudnn/none",),
    seen_by=("agreement",),
    spared=("gpt2/bf16/sdpa/none",),
    device="cuda",
)
def _forced_cudnn(patches: Patches) -> None:
    _under_kernel(patches, "cudnn", lambda mask, causal: (mask, False))


@fault(
    "flash-padding-mask-dropped",
    title="flash attention ignores the padding mask",
    origin="class: masks",
    mechanism="the two-dimensional mask by which rows are unpadded is None",
    cells=("llama/bf16/flash_attention_2/none",),
    seen_by=("padding",),
    spared=("llama/bf16/sdpa/none",),
    device="cuda",
)
def _flash_padding(patches: Patches) -> None:
    def change(call: Call) -> bool:
        changed, call.mask = call.mask is not None, None
        return changed

    before_attention(patches, change, FLASH)


@fault(
    "flash-cu-seqlens-shifted",
    title="flash attention cuts the unpadded rows one token late",
    origin="class: masks",
    mechanism="the first boundary between sequences is one too far",
    cells=("llama/bf16/flash_attention_2/none",),
    seen_by=("padding",),
    spared=("llama/bf16/sdpa-flash/none",),
    device="cuda",
)
def _flash_boundaries(patches: Patches) -> None:
    def change(result: Any, *_: Any, **__: Any) -> Any:
        indices, boundaries, longest = result
        if boundaries.numel() < 3:
            return None
        shifted = boundaries.clone()
        shifted[1] += 1
        return indices, shifted, longest + 1

    after(patches, "transformers.modeling_flash_attention_utils:_get_unpad_data", change)


@fault(
    "flash-window-too-wide",
    title="flash attention's window is one token too wide",
    origin="huggingface/transformers#39408",
    mechanism="window_size=(W, W), although both bounds are inclusive",
    cells=("mistral/bf16/flash_attention_2/none",),
    seen_by=("agreement",),
    spared=("mistral/bf16/sdpa/none", "llama/bf16/flash_attention_2/none"),
    device="cuda",
)
def _flash_too_wide(patches: Patches) -> None:
    def change(call: Call) -> bool:
        window = call.rest.get("sliding_window")
        if window is None:
            return False
        call.rest["sliding_window"] = window + 1
        return True

    before_attention(patches, change, FLASH)


@fault(
    "flash-window-ignored",
    title="flash attention gets no window",
    origin="class: windows",
    mechanism="sliding_window is not handed on",
    cells=("mistral/bf16/flash_attention_2/none", "gemma3/bf16/flash_attention_2/none"),
    seen_by=("agreement",),
    spared=("mistral/bf16/sdpa/none",),
    device="cuda",
)
def _flash_ignored(patches: Patches) -> None:
    def change(call: Call) -> bool:
        return call.rest.pop("sliding_window", None) is not None

    before_attention(patches, change, FLASH)


@fault(
    "flash-scale-dropped",
    title="flash attention takes its default scale",
    origin="class: scores",
    mechanism="softmax_scale is not handed on",
    cells=("gemma3/bf16/flash_attention_2/none",),
    seen_by=("agreement",),
    spared=("gemma3/bf16/sdpa/none", "llama/bf16/flash_attention_2/none"),
    device="cuda",
)
def _flash_scale(patches: Patches) -> None:
    def change(call: Call) -> bool:
        own = call.rest.get("scaling")
        if own is None or abs(own - call.query.shape[-1] ** -0.5) < 1e-9:
            return False
        call.rest["scaling"] = None
        return True

    before_attention(patches, change, FLASH)


@fault(
    "flash-softcap-dropped",
    title="flash attention does not cap the scores",
    origin="class: scores",
    mechanism="softcap is not handed on",
    cells=("gemma2/bf16/flash_attention_2/none",),
    seen_by=("agreement",),
    spared=("gemma2/bf16/eager/none",),
    device="cuda",
)
def _flash_softcap(patches: Patches) -> None:
    def change(call: Call) -> bool:
        return call.rest.pop("softcap", None) is not None

    before_attention(patches, change, FLASH)


@fault(
    "flash-kv-heads-turned",
    title="flash attention gives grouped queries to the wrong key/value head",
    origin="class: heads",
    mechanism="key/value heads are turned by one on their way to the kernel",
    cells=("llama/bf16/flash_attention_2/none",),
    seen_by=("agreement",),
    spared=("llama/bf16/sdpa/none",),
    device="cuda",
)
def _flash_turned(patches: Patches) -> None:
    def change(call: Call) -> bool:
        if call.key.shape[1] < 2:
            return False
        call.key, call.value = call.key.roll(1, 1), call.value.roll(1, 1)
        return True

    before_attention(patches, change, FLASH)


@fault(
    "forced-math-in-fp8",
    title="the math kernel, where it is forced, hands out its result with three bits of mantissa",
    origin="class: precision",
    mechanism="the kernel's result passes through float8_e4m3",
    cells=("llama/bf16/sdpa-math/none",),
    seen_by=("agreement",),
    spared=("llama/bf16/sdpa/none",),
)
def _forced_math(patches: Patches) -> None:
    import torch

    def change(result: Any, query: Any, *_: Any, **__: Any) -> Any:
        if query.element_size() != 2 or forced_kernel() != "math":
            return None
        return result.to(torch.float8_e4m3fn).to(result.dtype)

    after(patches, TORCH_SDPA, change)
