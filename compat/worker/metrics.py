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
    yardstick_token_eps: float
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


class Yardstick:
    """Reference `r` and yardstick `e`, with all that every candidate is compared with: computed once, used by each.

    Both (tokens, features), valid tokens only. `dtype` is the candidate's; `logits` says whether KL means anything.
    A token where r itself is not finite is left out.
    """

    def __init__(self, r: torch.Tensor, e: torch.Tensor, dtype: torch.dtype, logits: bool) -> None:
        self.finite = torch.isfinite(r).all(-1)
        self.r = r[self.finite].double()
        self.empty = not self.r.numel()
        yard = e[self.finite].double() - self.r
        self.unit = 0.0 if self.empty else floor(self.r, dtype)
        self.error = 0.0 if self.empty else rms(yard)
        self.scale = 1.0 if self.empty else torch.finfo(dtype).eps * rms(self.r)
        self.token_error = yard.square().mean(-1).sqrt()
        self.largest = 0.0 if self.empty else float(yard.abs().max())
        self.logits = logits and not self.empty
        self.log_r = torch.log_softmax(self.r, -1) if self.logits else None
        self.kl = self._kl(yard) if self.logits else 0.0

    def _kl(self, difference: torch.Tensor) -> float:
        """Mean over tokens of KL(softmax(r) || softmax(r + difference)) in nats."""
        assert self.log_r is not None
        log_x = torch.log_softmax(self.r + difference, -1)
        return float((self.log_r.exp() * (self.log_r - log_x)).sum(-1).mean())

    def compare(self, o: torch.Tensor, at: torch.Tensor | None = None) -> Agreement:
        """The figures of candidate `o`, shaped as r and e were.

        `at` (tokens of `o`,) int: which of r's tokens they are, for an `o` that has not all of them or has some twice;
        the yardstick's error stays that of all tokens, and KL is left out.
        """
        keep, r, token_error = self.finite, self.r, self.token_error
        if at is not None:
            chosen = (self.finite.cumsum(0) - 1)[at]
            keep = self.finite[at]
            r, token_error = self.r[chosen[keep]], self.token_error[chosen[keep]]
        difference = o[keep].double() - r
        nonfinite = int((~torch.isfinite(difference)).sum())
        count, tokens = r.numel(), r.shape[0]
        own = self.error / self.scale
        own_token = 0.0 if self.empty else float(self.token_error.max()) / self.scale
        if nonfinite or not count:
            return Agreement(None, None, None, None, self.kl, own, own_token, None, nonfinite, count, tokens)
        base = max(self.error, self.unit)
        token = difference.square().mean(-1).sqrt()
        return Agreement(
            ratio_rms=rms(difference) / base,
            ratio_token=float((token / token_error.clamp_min(base)).max()),
            ratio_max=float(difference.abs().max()) / max(self.largest, self.unit),
            kl=self._kl(difference) if self.logits and at is None else None,
            kl_yardstick=self.kl,
            yardstick_eps=own,
            yardstick_token_eps=own_token,
            candidate_eps=rms(difference) / self.scale,
            nonfinite=0,
            elements=count,
            tokens=tokens,
        )


def compare(r: torch.Tensor, e: torch.Tensor, o: torch.Tensor, dtype: torch.dtype, logits: bool) -> Agreement:
    """The figures of one candidate `o` against `r` and `e` (see Yardstick)."""
    return Yardstick(r, e, dtype, logits).compare(o)


def mean_kl(p: torch.Tensor, q: torch.Tensor) -> float:
    """Mean KL(p || q) in nats; `p` (tokens, vocabulary) and `q`, which broadcasts to it, are log-probabilities."""
    return float((p.exp() * (p - q)).sum(-1).mean())


def top1_agreement(a: torch.Tensor, b: torch.Tensor) -> float:
    """Share of tokens at which `a` and `b` (tokens, vocabulary), logits or log-probabilities, have the same peak."""
    return float((a.argmax(-1) == b.argmax(-1)).double().mean())


def distance(other: torch.Tensor, own: torch.Tensor) -> float:
    """max|other - own| in eps rms(own); where `other` is not finite or has another shape or dtype, as if it were off by
    rms(own)."""
    if other.shape != own.shape or other.dtype != own.dtype or not bool(torch.isfinite(other).all()):
        return 1 / torch.finfo(own.dtype).eps
    unit = torch.finfo(own.dtype).eps * float(own.double().square().mean().sqrt())
    return float((other.double() - own.double()).abs().max()) / max(unit, 1e-60)
