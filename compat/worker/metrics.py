"""The figures of the agreement criterion (docs/criteria.md), computed in fp64.

r is the reference, e the yardstick (eager), o the candidate. E(x) = rms(x - r) over valid tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Agreement:
    """R, R_tok, R_max and KL of one comparison; figures are None when o is not finite where r is finite."""

    ratio_rms: float | None
    ratio_token: float | None
    ratio_max: float | None
    kl: float | None
    kl_yardstick: float
    yardstick_eps: float
    candidate_eps: float | None
    nonfinite: int
    elements: int
    tokens: int


def floor(r: torch.Tensor, dtype: torch.dtype) -> float:
    """F = max(rms((r + 0.3) - 0.3 - r) in `dtype`, eps * rms(r)): an error below it means nothing in `dtype`."""
    low = r.to(dtype)
    rounding = ((low + 0.3) - 0.3).double() - low.double()
    return max(rms(rounding), torch.finfo(dtype).eps * rms(r))


def rms(x: torch.Tensor) -> float:
    """Root mean square over all elements, in fp64."""
    return math.sqrt(float(x.double().square().mean()))


def mean_kl(r: torch.Tensor, x: torch.Tensor) -> float:
    """Mean over tokens of KL(softmax(r) || softmax(x)) in nats; `r`, `x` (tokens, classes) fp64."""
    log_r, log_x = torch.log_softmax(r, -1), torch.log_softmax(x, -1)
    return float((log_r.exp() * (log_r - log_x)).sum(-1).mean())


def compare(r: torch.Tensor, e: torch.Tensor, o: torch.Tensor, dtype: torch.dtype, logits: bool) -> Agreement:
    """Judge figures of candidate `o` against reference `r` with yardstick `e`.

    All three (tokens, features), valid tokens only. `dtype` is the candidate's; `logits` says whether KL means
    anything. A token where r itself is not finite is left out.
    """
    finite = torch.isfinite(r).all(-1)
    r, e, o = r[finite].double(), e[finite].double(), o[finite].double()
    nonfinite = int((~torch.isfinite(o)).sum())
    unit = floor(r, dtype) if r.numel() else 0.0
    error_e = rms(e - r) if r.numel() else 0.0
    scale = torch.finfo(dtype).eps * rms(r) if r.numel() else 1.0
    kl_e = mean_kl(r, e) if logits and r.numel() else 0.0
    if nonfinite or not r.numel():
        return Agreement(None, None, None, None, kl_e, error_e / scale, None, nonfinite, r.numel(), r.shape[0])
    difference, yard = o - r, e - r
    token_o, token_e = difference.square().mean(-1).sqrt(), yard.square().mean(-1).sqrt()
    base = max(error_e, unit)
    return Agreement(
        ratio_rms=rms(difference) / base,
        ratio_token=float((token_o / token_e.clamp_min(base)).max()),
        ratio_max=float(difference.abs().max()) / max(float(yard.abs().max()), unit),
        kl=mean_kl(r, o) if logits else None,
        kl_yardstick=kl_e,
        yardstick_eps=error_e / scale,
        candidate_eps=rms(difference) / scale,
        nonfinite=0,
        elements=r.numel(),
        tokens=r.shape[0],
    )
