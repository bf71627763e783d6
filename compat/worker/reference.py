"""The fp64 reference: the weights of a cell, as rounded to its dtype or as dequantized, computed in true fp64.

`model.double()` with stock attention is not that: softmax and norms are cast to fp32, `inv_freq` was computed in fp32,
and the fp64 mask minimum can overflow to -inf. Here
- attention is a function of our own (families on transformers' attention interface) or our own
  `scaled_dot_product_attention` (families that call it directly); it makes its own mask from the module (causal,
  window) and gives 0 for rows that may attend to nothing;
- casts of fp64 tensors to a lower float are suppressed while it runs;
- rotary `inv_freq` is recomputed in fp64;
- no cache is filled: what a cache does to keys and values must not be in the reference.

Inputs are never padded: each row of a padded batch is judged against the reference of that row alone, so no mask of
the library's takes part in a reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from compat.worker import stack_api

NAME = "compat_fp64"
"""The attention implementation's registered name. It has no mask function, so the library makes no mask for it."""

FORBIDDEN = -1e4
"""What a mask adds to forbid, or less: the minimum of fp16 is -65504. A bias of relative positions is above it."""

_LOW = (torch.float32, torch.float16, torch.bfloat16)
_CASTS: dict[Callable[..., Any], torch.dtype | None] = {
    torch.Tensor.to: None,
    torch.Tensor.type: None,
    torch.Tensor.type_as: None,
    torch.Tensor.float: torch.float32,
    torch.Tensor.half: torch.float16,
    torch.Tensor.bfloat16: torch.bfloat16,
}


class EntropyMeter:
    """Mean attention entropy over log(number of keys allowed), for rows with at least 8 keys."""

    def __init__(self) -> None:
        self.total = 0.0
        self.rows = 0

    def add(self, probabilities: torch.Tensor, allowed: torch.Tensor) -> None:
        """`probabilities` (batch, heads, queries, keys) fp64; `allowed` broadcastable to it, bool."""
        keys = allowed.sum(-1).expand(probabilities.shape[:-1])
        entropy = torch.special.entr(probabilities).sum(-1)
        chosen = keys >= 8
        if bool(chosen.any()):
            self.total += float((entropy[chosen] / torch.log(keys[chosen].double())).sum())
            self.rows += int(chosen.sum())

    @property
    def ratio(self) -> float | None:
        return self.total / self.rows if self.rows else None


ENTROPY = EntropyMeter()


def _softmax_or_zero(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension; a row of -inf gives zeros."""
    peak = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - torch.where(torch.isinf(peak), torch.zeros_like(peak), peak))
    return weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)


def _allowed(queries: int, keys: int, causal: bool, window: int | None, device: torch.device) -> torch.Tensor:
    """(1, 1, queries, keys) bool: the last query aligned with the last key when causal."""
    q = torch.arange(queries, device=device)[:, None] + (keys - queries if causal else 0)
    k = torch.arange(keys, device=device)[None, :]
    mask = (k <= q) if causal else torch.ones(queries, keys, dtype=torch.bool, device=device)
    if window:
        mask = mask & (q - k < window)
        if not causal:
            mask = mask & (k - q < window)
    return mask[None, None]


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(softcap(q k^T * scaling) + bias + mask, sinks) v, for unpadded inputs.

    `query` (batch, heads, queries, head_dim); `key`, `value` (batch, key/value heads, keys, head_dim), all fp64.
    Returns (batch, queries, heads, head_dim). What `attention_mask` forbids is ignored: the mask is made here. What a
    family adds to its scores through it counts (relative positions of BEiT).
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None and attention_mask.is_floating_point():
        scores = scores + torch.where(attention_mask > FORBIDDEN, attention_mask, 0.0)
    allowed = _allowed(scores.shape[-2], scores.shape[-1], causal, sliding_window, scores.device)
    scores = scores.masked_fill(~allowed, -math.inf)
    sinks = s_aux if s_aux is not None else getattr(module, "sinks", None)
    if sinks is not None:
        column = sinks.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = _softmax_or_zero(torch.cat([scores, column], -1))[..., :-1]
    else:
        weights = _softmax_or_zero(scores)
    ENTROPY.add(weights.detach(), allowed)
    return (weights @ value).transpose(1, 2).contiguous(), None


def _plain_sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """The definition of torch.nn.functional.scaled_dot_product_attention, in the dtype of `query`."""
    groups = query.shape[-3] // key.shape[-3]
    key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    allowed = _allowed(scores.shape[-2], scores.shape[-1], is_causal, None, scores.device)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        allowed = allowed & attn_mask
    elif attn_mask is not None:
        floor = torch.finfo(torch.float32).min  # any mask minimum, whatever dtype made it, means "not allowed"
        allowed = allowed & (attn_mask > floor)
        scores = scores + attn_mask.clamp_min(floor)
    weights = _softmax_or_zero(scores.masked_fill(~allowed, -math.inf))
    ENTROPY.add(weights.detach(), allowed.expand(*weights.shape[:-2], *allowed.shape[-2:]))
    return weights @ value


def _beyond_fp32(value: Any) -> bool:
    return isinstance(value, float) and torch.finfo(torch.float32).max < abs(value) < math.inf


class _Fp64Mode(TorchFunctionMode):
    """Suppress casts of fp64 tensors to lower floats; `promote` also lifts integer-to-fp32 casts to fp64."""

    def __init__(self, promote: bool = False) -> None:
        super().__init__()
        self.promote = promote
        self.rotary_depth = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch._C._nn.scaled_dot_product_attention:
            return _plain_sdpa(*args, **kwargs)
        if func in _CASTS and isinstance(args[0], torch.Tensor):
            return self._cast(func, args, kwargs)
        if func is torch.full and "dtype" not in kwargs and _beyond_fp32(args[1]):
            kwargs["dtype"] = torch.float64  # a mask made of fp64's minimum, for a dtype that is named later
        if kwargs.get("dtype") in _LOW:
            source = args[0] if args and isinstance(args[0], torch.Tensor) else None
            if (source is not None and source.dtype == torch.float64) or (source is None and self.promote):
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)

    def _cast(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tensor, rest = args[0], list(args[1:])
        lift = tensor.dtype == torch.float64 or (
            (self.promote or self.rotary_depth > 0) and not tensor.dtype.is_floating_point
        )
        if not lift:
            return func(*args, **kwargs)
        if _CASTS[func] is not None:
            return tensor.to(torch.float64)
        rest = [torch.float64 if isinstance(a, torch.dtype) and a in _LOW else a for a in rest]
        if kwargs.get("dtype") in _LOW:
            kwargs["dtype"] = torch.float64
        if rest and isinstance(rest[0], torch.Tensor) and rest[0].dtype in _LOW:
            rest[0] = rest[0].double()
        return func(tensor, *rest, **kwargs)


class Reference:
    """A model that computes in fp64 with the weights it is given.

    `dtype` says what it computes in: float64, or float32 where fp64 does not fit (the record says so).
    """

    def __init__(self, master: torch.nn.Module, device: torch.device, dtype: torch.dtype = torch.float64) -> None:
        self.device = device
        self.dtype = dtype
        sdpa = stack_api.sdpa_is_whole(master)
        own = stack_api.built_with(master, "sdpa" if sdpa else "eager")
        self.model = own.to(device=device, dtype=dtype).eval()
        self.mode = _Fp64Mode()
        self.inv_freq_dtype = self._recompute_inv_freq()
        stack_api.use_plain_experts(self.model)
        stack_api.use_no_cache(self.model)
        if stack_api.uses_attention_interface(self.model) and stack_api.register_attention(NAME, attention):
            stack_api.set_attention_unchecked(self.model, NAME)
            self.attention = "own"
        elif sdpa:
            stack_api.set_attention_unchecked(self.model, "sdpa")
            self.attention = "own sdpa"
        else:
            stack_api.set_attention_unchecked(self.model, "eager")
            self.attention = "stock eager, casts suppressed"

    def _recompute_inv_freq(self) -> str:
        """Rebuild rotary modules in fp64; returns the dtype in which inv_freq was computed, `none` without rotary."""
        computed = "none"
        for module in self.model.modules():
            buffers = [n for n, _ in module.named_buffers(recurse=False) if "inv_freq" in n]
            if not buffers:
                continue
            try:
                with _Fp64Mode(promote=True):
                    rebuilt = stack_api.rotary_again(module)
            except (TypeError, AttributeError):
                computed = "float32"  # a rotary module of another make: keep its fp32 values
                buffers = []
            for name in buffers:
                own, new = getattr(module, name), getattr(rebuilt, name)
                if new.dtype == torch.float64 and torch.allclose(own.float().cpu(), new.float(), rtol=1e-5):
                    setattr(module, name, new.to(self.device, self.dtype))
                    computed = "float64" if computed == "none" else computed
                else:
                    computed = "float32"
            module.register_forward_pre_hook(self._enter_rotary)
            module.register_forward_hook(self._leave_rotary, always_call=True)
        return computed

    def _enter_rotary(self, *_: Any) -> None:
        self.mode.rotary_depth += 1

    def _leave_rotary(self, *_: Any) -> None:
        self.mode.rotary_depth -= 1

    def round_weights(self, dtype: torch.dtype) -> None:
        """Round every parameter and floating buffer but inv_freq through `dtype`, as loading in that dtype does."""
        with torch.no_grad():
            for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
                if tensor.dtype.is_floating_point and "inv_freq" not in name:
                    tensor.copy_(tensor.to(dtype))

    def set_weight(self, module_path: str, weight: torch.Tensor) -> None:
        """Replace the weight of one module by `weight` (same shape), e.g. as dequantized."""
        module = self.model.get_submodule(module_path)
        with torch.no_grad():
            module.weight.copy_(weight.to(self.device, self.dtype))

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Everything inside runs in the reference's arithmetic."""
        tf32 = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            if self.dtype == torch.float64:
                with self.mode, torch.no_grad():
                    yield
            else:
                with torch.no_grad():
                    yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = tf32

    def __call__(self, **inputs: torch.Tensor) -> Any:
        """Forward of unpadded `inputs`; floating inputs are lifted to the reference's dtype."""
        lifted = {k: v.to(self.dtype) if v.dtype.is_floating_point else v for k, v in inputs.items()}
        with self.computing():
            return self.model(**lifted)
