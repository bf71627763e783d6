"""Our arithmetic of decoding settings, by hand, by law, and against the library's processors."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from compat.worker.oracles import Place, Settings, processed, resolved

VOCABULARY = 24

LOGITS = st.lists(
    st.floats(-8, 8, allow_nan=False, width=32), min_size=VOCABULARY, max_size=VOCABULARY, unique=True
).map(torch.tensor)
TOKENS = st.lists(st.integers(0, VOCABULARY - 1), min_size=3, max_size=9).map(tuple)


def kept(scores: torch.Tensor) -> set[int]:
    return {i for i, s in enumerate(scores.tolist()) if math.isfinite(s)}


START = Place((1,), 1, 0)


def scores(logits: torch.Tensor, place: Place = START, **given: Any) -> torch.Tensor:
    return processed(Settings(**given), logits, place)[0]


@given(LOGITS, st.floats(0.1, 4))
def test_temperature_divides(logits: torch.Tensor, temperature: float) -> None:
    assert torch.allclose(
        scores(logits, do_sample=True, top_k=0, temperature=temperature), logits.double() / temperature
    )


@given(LOGITS, st.integers(1, VOCABULARY))
def test_top_k_keeps_the_k_best(logits: torch.Tensor, k: int) -> None:
    best = set(logits.argsort(descending=True)[:k].tolist())
    assert kept(scores(logits, do_sample=True, top_k=k)) == best


@given(LOGITS, st.floats(0.05, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits: torch.Tensor, p: float) -> None:
    own, unsure = processed(Settings(do_sample=True, top_k=0, top_p=p), logits, Place((1,), 1, 0))
    probabilities = logits.double().softmax(-1)
    chosen = sorted(kept(own), key=lambda i: -float(probabilities[i]))
    assert probabilities[chosen].sum() >= p - 1e-9
    assert probabilities[chosen[:-1]].sum() < p or bool(unsure.any())


@given(LOGITS, st.floats(0.01, 1))
def test_min_p_keeps_what_reaches_a_share_of_the_best(logits: torch.Tensor, share: float) -> None:
    own, unsure = processed(Settings(do_sample=True, top_k=0, min_p=share), logits, Place((1,), 1, 0))
    probabilities = logits.double().softmax(-1)
    wanted = {i for i, p in enumerate(probabilities.tolist()) if p >= share * float(probabilities.max())}
    assert kept(own) ^ wanted <= {i for i, u in enumerate(unsure.tolist()) if u}


@given(LOGITS, TOKENS, st.floats(1.05, 2))
def test_repetition_makes_seen_tokens_less_likely_and_no_others(
    logits: torch.Tensor, tokens: tuple[int, ...], penalty: float
) -> None:
    own = scores(logits, Place(tokens, len(tokens), 0), repetition_penalty=penalty)
    for i, (before, after) in enumerate(zip(logits.tolist(), own.tolist(), strict=True)):
        assert after < before if i in tokens and before else after == before


@given(LOGITS, TOKENS, st.integers(1, 3))
def test_no_ngram_comes_twice(logits: torch.Tensor, tokens: tuple[int, ...], size: int) -> None:
    own = kept(scores(logits, Place(tokens, len(tokens), 0), no_repeat_ngram_size=size))
    seen = {tokens[i : i + size] for i in range(len(tokens) - size + 1)}
    for token in range(VOCABULARY):
        assert (token in own) == ((*tokens, token)[-size:] not in seen)


def test_ends_are_forbidden_until_the_row_is_long_enough() -> None:
    logits = torch.zeros(VOCABULARY)
    for new, allowed in ((0, False), (2, False), (3, True)):
        own = scores(logits, Place((5, 6), 4, new), min_new_tokens=3, eos_token_id=[2, 7])
        assert (2 in kept(own)) == (7 in kept(own)) == allowed
    assert 2 not in kept(scores(logits, Place((5,), 4, 1), min_length=6, eos_token_id=2))
    assert 2 in kept(scores(logits, Place((5,), 4, 2), min_length=6, eos_token_id=2))


def test_forced_tokens_are_the_only_ones() -> None:
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0))
    assert kept(scores(logits, Place((5,), 1, 3), max_new_tokens=4, forced_eos_token_id=2)) == {2}
    assert kept(scores(logits, Place((5,), 1, 2), max_new_tokens=4, forced_eos_token_id=2)) != {2}
    assert kept(scores(logits, Place((0,), 1, 0), forced_bos_token_id=9)) == {9}


def test_a_word_of_two_tokens_is_forbidden_behind_its_first_only() -> None:
    logits = torch.zeros(VOCABULARY)
    assert 4 not in kept(scores(logits, Place((8, 3), 2, 0), bad_words_ids=[[3, 4]]))
    assert 4 in kept(scores(logits, Place((3, 8), 2, 0), bad_words_ids=[[3, 4]]))


def test_arguments_come_before_configs_and_these_before_defaults() -> None:
    passed = transformers.GenerationConfig(temperature=0.5, top_p=0.8)
    own = transformers.GenerationConfig(temperature=0.1, top_k=3)
    found = resolved({"top_p": 0.2, "eos_token_id": None}, passed, own)
    assert (found.top_p, found.temperature, found.top_k, found.min_p) == (0.2, 0.5, 3, None)


class Bare(transformers.GenerationMixin):
    """As much of a model as makes processors."""

    config = SimpleNamespace(is_encoder_decoder=False)


GREEDY = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "suppress_tokens": [3], "bad_words_ids": [[4], [5, 6]]}
FILTERS = ("top_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "min_p")


@settings(max_examples=40, deadline=None)
@given(LOGITS, TOKENS, st.sampled_from(FILTERS), st.floats(0.02, 0.95))
def test_the_librarys_processors_agree(logits: torch.Tensor, tokens: tuple[int, ...], name: str, value: float) -> None:
    """Two readings of the same definitions: where they part, one of them is wrong."""
    config = transformers.GenerationConfig(do_sample=True, temperature=0.9, top_k=20, **GREEDY, **{name: value})
    own, unsure = processed(resolved({}, config), logits, Place(tokens, len(tokens), 0))
    config._eos_token_tensor = None
    processors = Bare()._get_logits_processor(config, len(tokens), logits_processor=[], device="cpu", model_kwargs={})
    theirs = processors(torch.tensor([tokens]), logits[None])[0].double()
    same = (own == theirs) | (torch.isfinite(own) & ((own - theirs).abs() < 1e-4))
    assert bool((same | unsure).all())


@pytest.mark.parametrize("count", [1, 5])
def test_typical_keeps_what_is_near_the_entropy(count: int) -> None:
    logits = torch.zeros(VOCABULARY)
    logits[:count] = 6.0
    alone = scores(logits, do_sample=True, top_k=0, typical_p=0.2)
    assert kept(alone) <= set(range(count)) or count == 1
