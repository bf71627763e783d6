"""What decoding settings mean: our own arithmetic of every logits processor that `generate` applies.

In: raw logits, the tokens before them, resolved settings. Out: the scores that a token must be chosen from, in fp64,
and which of their entries rounding may put on either side of a threshold. Written from the definitions (papers and
transformers' documentation of GenerationConfig), for one row at a time; nothing here calls the library's processors.

Sources: CTRL, https://arxiv.org/abs/1909.05858, sec. 4.1 (repetition penalty); https://arxiv.org/abs/1904.09751
(nucleus); https://arxiv.org/abs/2407.01082 (min-p); https://arxiv.org/abs/2202.00666 (typical);
https://arxiv.org/abs/2210.15191 (epsilon and eta cutoffs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

MARGIN = 1e-5
"""A probability this close to a threshold may fall on either side of it in fp32."""

NEVER = -math.inf


@dataclass(frozen=True)
class Settings:
    """Decoding settings as they hold in the end, under the names of GenerationConfig. Lengths in tokens."""

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    do_sample: bool = False
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] = ()
    sequence_bias: Any = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    exponential_decay_length_penalty: Sequence[float] = ()
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    renormalize_logits: bool = False
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None
    added: torch.Tensor | None = None
    """What a processor of the caller's adds to the scores, (vocabulary,): after the library's, before filters."""

    @property
    def eos(self) -> tuple[int, ...]:
        """Every id that ends a row."""
        return ids(self.eos_token_id)

    def most(self, prompt: int) -> int:
        """New tokens allowed after a (padded) prompt of `prompt` tokens."""
        return self.max_new_tokens if self.max_new_tokens is not None else (self.max_length or 0) - prompt


def ids(value: Any) -> tuple[int, ...]:
    """Token ids of a setting that takes none, one or several."""
    return () if value is None else tuple(int(v) for v in (value if isinstance(value, (list, tuple)) else [value]))


def resolved(explicit: Mapping[str, Any], *configs: Any) -> Settings:
    """Explicit arguments over each of `configs` (first wins) over the library's documented defaults. A value of None
    in a config is no value."""
    found = {}
    for f in fields(Settings):
        given = (getattr(c, f.name, None) for c in configs)
        value = explicit[f.name] if f.name in explicit else next((v for v in given if v is not None), None)
        if value is not None:
            found[f.name] = value
    return Settings(**found)


@dataclass(frozen=True)
class Place:
    """Where a row stands when its next token is chosen."""

    tokens: tuple[int, ...]
    """Real tokens before it: prompt (decoder start token) and new ones, pads left out."""
    prompt: int
    """Length of the padded prompt: what lengths are counted from."""
    new: int
    """New tokens so far."""
    encoder: tuple[int, ...] = ()
    """Real tokens of the encoder's input."""


def processed(settings: Settings, logits: torch.Tensor, place: Place) -> tuple[torch.Tensor, torch.Tensor]:
    """(scores, unsure), each (vocabulary,): fp64 scores with -inf where a token is forbidden; bool, where rounding may
    decide. `logits` (vocabulary,) of one row: raw, or log-probabilities for beam search."""
    scores = logits.double().clone()
    scores = _biased(settings, scores, place)
    scores = _penalized(settings, scores, place)
    _forbid(settings, scores, place)
    scores = _forced(settings, scores, place)
    scores = _decayed(settings, scores, place)
    scores[list(settings.suppress_tokens)] = NEVER
    first = int(settings.forced_bos_token_id is not None and place.prompt == 1)
    if place.new == first:
        scores[list(settings.begin_suppress_tokens)] = NEVER
    if settings.added is not None:
        scores = scores + settings.added.to(scores)
    unsure = torch.zeros_like(scores, dtype=torch.bool)
    if settings.do_sample:
        scores = scores / settings.temperature
        keep_at_least = len(settings.eos) + 1 if settings.num_beams > 1 else 1
        for wanted, keep in _FILTERS:
            if wanted(settings):
                kept, doubtful = keep(settings, scores, keep_at_least)
                unsure |= doubtful & torch.isfinite(scores)
                scores = scores.masked_fill(~kept, NEVER)
    if settings.renormalize_logits:
        scores = scores.log_softmax(-1)
    return scores, unsure


def _biases(settings: Settings) -> dict[tuple[int, ...], float]:
    given = settings.sequence_bias
    pairs = given.items() if isinstance(given, dict) else given
    return {tuple(sequence): float(bias) for sequence, bias in pairs}


def _completes(sequence: Sequence[int], place: Place) -> bool:
    """Whether the row ends in all of `sequence` but its last token."""
    start = tuple(sequence[:-1])
    return not start or place.tokens[-len(start) :] == start


def _biased(settings: Settings, scores: torch.Tensor, place: Place) -> torch.Tensor:
    for sequence, bias in _biases(settings).items():
        if _completes(sequence, place):
            scores[sequence[-1]] += bias
    return scores


def _penalized(settings: Settings, scores: torch.Tensor, place: Place) -> torch.Tensor:
    """Scores of tokens that stand before made less likely; of the encoder's tokens, likelier."""
    for tokens, penalty in (
        (place.encoder, 1 / settings.encoder_repetition_penalty),
        (place.tokens, settings.repetition_penalty),
    ):
        if penalty == 1:
            continue
        seen = sorted({t for t in tokens if t < scores.numel()})
        own = scores[seen]
        scores[seen] = torch.where(own < 0, own * penalty, own / penalty)
    return scores


def _forbid(settings: Settings, scores: torch.Tensor, place: Place) -> None:
    size = settings.no_repeat_ngram_size
    if size and len(place.tokens) >= size:
        ending = place.tokens[len(place.tokens) - size + 1 :]
        for at in range(len(place.tokens) - size + 1):
            if place.tokens[at : at + size - 1] == ending:
                scores[place.tokens[at + size - 1]] = NEVER
    for word in settings.bad_words_ids:
        if _completes(word, place) and tuple(word) not in {(e,) for e in settings.eos}:
            scores[word[-1]] = NEVER
    too_short = place.new < (settings.min_new_tokens or 0)
    if settings.min_new_tokens is None:
        too_short = place.prompt + place.new < (settings.min_length or 0)
    if too_short:
        scores[list(settings.eos)] = NEVER


def _forced(settings: Settings, scores: torch.Tensor, place: Place) -> torch.Tensor:
    forced: tuple[int, ...] = ()
    if settings.forced_bos_token_id is not None and place.prompt + place.new == 1:
        forced = (settings.forced_bos_token_id,)
    if settings.forced_eos_token_id is not None and place.new == settings.most(place.prompt) - 1:
        forced = ids(settings.forced_eos_token_id)
    if not forced:
        return scores
    only = torch.full_like(scores, NEVER)
    only[list(forced)] = 0.0
    return only


def _decayed(settings: Settings, scores: torch.Tensor, place: Place) -> torch.Tensor:
    """Scores of the ends of sequence raised by |score| (factor^n - 1), n tokens after the start of the decay."""
    if not settings.exponential_decay_length_penalty:
        return scores
    start, factor = settings.exponential_decay_length_penalty
    late = place.new - int(start)
    ends = list(settings.eos)
    if late > 0:
        own = scores[ends]
        scores[ends] = torch.where(torch.isfinite(own), own + own.abs() * (factor**late - 1), own)
    return scores


# -- which tokens may be sampled: (kept, unsure) ------------------------------------------------------------------

Kept = tuple[torch.Tensor, torch.Tensor]


def _likeliest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` best tokens, and all that tie with the last of them."""
    return scores >= scores.topk(min(count, scores.numel())).values[-1]


def _smallest_set(scores: torch.Tensor, order: torch.Tensor, mass: float, at_least: int) -> Kept:
    """The first tokens in `order` whose probabilities reach `mass`."""
    ordered = scores.softmax(-1)[order]
    before = ordered.cumsum(-1) - ordered
    kept = torch.zeros_like(scores, dtype=torch.bool)
    unsure = kept.clone()
    kept[order] = (before < mass) | (torch.arange(len(order), device=order.device) < at_least)
    unsure[order] = (before - mass).abs() < MARGIN
    return kept, unsure


def _tied(scores: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Tokens that tie with the worst that is kept, where not all of them are: which of them stays is the sort's
    choice."""
    tied = scores == scores.masked_fill(~kept, math.inf).min()
    return tied & (tied & ~kept).any()


def _top_k(settings: Settings, scores: torch.Tensor, at_least: int) -> Kept:
    return _likeliest(scores, max(settings.top_k, at_least)), torch.zeros_like(scores, dtype=torch.bool)


def _top_p(settings: Settings, scores: torch.Tensor, at_least: int) -> Kept:
    kept, unsure = _smallest_set(scores, scores.argsort(descending=True), settings.top_p, at_least)
    return kept, unsure | _tied(scores, kept)


def _min_p(settings: Settings, scores: torch.Tensor, at_least: int) -> Kept:
    probabilities = scores.softmax(-1)
    bound = (settings.min_p or 0.0) * probabilities.max()
    return (probabilities >= bound) | _likeliest(scores, at_least), (probabilities - bound).abs() < MARGIN


def _typical(settings: Settings, scores: torch.Tensor, at_least: int) -> Kept:
    """The tokens whose information is nearest to the entropy."""
    logs = scores.log_softmax(-1)
    entropy = -torch.where(torch.isfinite(logs), logs.exp() * logs, 0.0).sum()
    distance = (-logs - entropy).abs()
    order = distance.argsort()
    kept, unsure = _smallest_set(scores, order, settings.typical_p, at_least)
    return kept, unsure | (~kept & (distance - distance[kept].max() < MARGIN))


def _floor(scores: torch.Tensor, bound: float, at_least: int) -> Kept:
    probabilities = scores.softmax(-1)
    return (probabilities >= bound) | _likeliest(scores, at_least), (probabilities - bound).abs() < MARGIN * bound


def _epsilon(settings: Settings, scores: torch.Tensor, at_least: int) -> Kept:
    return _floor(scores, settings.epsilon_cutoff, at_least)


def _eta(settings: Settings, scores: torch.Tensor, at_least: int) -> Kept:
    logs = scores.log_softmax(-1)
    entropy = -float(torch.where(torch.isfinite(logs), logs.exp() * logs, 0.0).sum())
    cutoff = settings.eta_cutoff
    return _floor(scores, min(cutoff, math.sqrt(cutoff) * math.exp(-entropy)), at_least)


_FILTERS: tuple[tuple[Callable[[Settings], bool], Callable[[Settings, torch.Tensor, int], Kept]], ...] = (
    (lambda s: s.top_k > 0, _top_k),
    (lambda s: s.top_p < 1, _top_p),
    (lambda s: s.min_p is not None, _min_p),
    (lambda s: s.typical_p < 1, _typical),
    (lambda s: s.epsilon_cutoff > 0, _epsilon),
    (lambda s: s.eta_cutoff > 0, _eta),
)
"""In the order in which they are applied, each to what the one before left."""
