"""Where faults are put in: the places of the stack through which attention, masks and products pass.

Each function wraps one seam for a fault. A change gets what the seam was called with and says whether it changed
anything; only then does the fault count as reached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from compat.faults.patches import Patches

SDPA = "transformers.integrations.sdpa_attention:sdpa_attention_forward"
"""What transformers calls for `sdpa`, for every family on its attention interface."""

TORCH_SDPA = "torch.nn.functional:scaled_dot_product_attention"

FLASH = "transformers.integrations.flash_attention:flash_attention_forward"
"""What transformers calls for `flash_attention_2`."""

LINEAR = "torch.nn.functional:linear"


def eager(family: str) -> str:
    """The eager attention function of a family."""
    return f"transformers.models.{family}.modeling_{family}:eager_attention_forward"


@dataclass
class Call:
    """One call of an attention function: query (batch, heads, queries, head_dim), key and value (batch, key/value
    heads, keys, head_dim), the mask as the backend takes it, and keywords."""

    module: Any
    query: Any
    key: Any
    value: Any
    mask: Any
    rest: dict[str, Any] = field(default_factory=dict)

    @property
    def decoding(self) -> bool:
        """Whether it is a step of one token on a longer cache."""
        return bool(self.query.shape[2] == 1 and self.key.shape[2] > 1)


def before_attention(patches: Patches, change: Callable[[Call], bool], *paths: str) -> None:
    """Let `change` alter every call of the attention functions at `paths` (SDPA when none); it returns whether it
    did."""

    def make(original: Any) -> Any:
        def forward(module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, **rest: Any) -> Any:
            call = Call(module, query, key, value, attention_mask, rest)
            if change(call):
                patches.reached()
            return original(call.module, call.query, call.key, call.value, call.mask, **call.rest)

        return forward

    for path in paths or (SDPA,):
        patches.function(path, make)


def after_attention(patches: Patches, change: Callable[[Any, Call], Any], *paths: str) -> None:
    """Replace the output (batch, queries, heads, head_dim) of the attention functions at `paths` (SDPA when none) by
    `change(output, call)`; None leaves it."""

    def make(original: Any) -> Any:
        def forward(module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, **rest: Any) -> Any:
            result = original(module, query, key, value, attention_mask, **rest)
            changed = change(result[0], Call(module, query, key, value, attention_mask, rest))
            if changed is None:
                return result
            patches.reached()
            return (changed, *result[1:])

        return forward

    for path in paths or (SDPA,):
        patches.function(path, make)


def after(patches: Patches, path: str, change: Callable[..., Any]) -> None:
    """Replace the result of the function at `path` by `change(result, *arguments, **keywords)`; None leaves it."""

    def make(original: Any) -> Any:
        def function(*arguments: Any, **keywords: Any) -> Any:
            result = original(*arguments, **keywords)
            changed = change(result, *arguments, **keywords)
            if changed is None:
                return result
            patches.reached()
            return changed

        return function

    patches.function(path, make)


def masks(patches: Patches, implementation: str, change: Callable[[Any, dict[str, Any]], Any]) -> None:
    """Replace the mask that transformers makes for `implementation` (`sdpa`: bool, True where allowed; `eager`: added
    to the scores) by `change(mask, arguments)`; None leaves it. The mask may be None: nothing to forbid."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    original = ALL_MASK_ATTENTION_FUNCTIONS[implementation]

    def make_mask(**arguments: Any) -> Any:
        mask = original(**arguments)
        changed = change(mask, arguments)
        if changed is None:
            return mask
        patches.reached()
        return changed

    patches.item(type(ALL_MASK_ATTENTION_FUNCTIONS)._global_mapping, implementation, make_mask)


def forced_kernel() -> str:
    """The one SDPA backend that is allowed now: `math`, `flash`, `efficient`, `cudnn`; "" while several are."""
    from torch.backends import cuda

    allowed = {
        "math": cuda.math_sdp_enabled(),
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
    }
    names = [name for name, on in allowed.items() if on]
    return names[0] if len(names) == 1 else ""


def plain_linear(weight: Any, inputs: Any) -> bool:
    """Whether a product is of two ordinary floating tensors without gradients: what a fault of arithmetic may touch
    and leave quantized and traced products alone."""
    import torch

    return (
        type(weight) in (torch.Tensor, torch.nn.Parameter)
        and type(inputs) is torch.Tensor
        and weight.dim() == 2
        and weight.dtype == inputs.dtype
        and weight.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and not torch.is_grad_enabled()
    )
