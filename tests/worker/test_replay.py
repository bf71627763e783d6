"""Replays: a beam search by hand, and what a wrong generation shows."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compat.worker.oracles import Settings
from compat.worker.replay import Prompts, beam_search, replay

VOCABULARY = 6
END = 2
PROMPTS = Prompts(rows=((3, 4), (5,)), width=2)


def table(seed: int) -> dict[tuple[int, ...], torch.Tensor]:
    """Log-probabilities after every history of up to three tokens."""
    generator = torch.Generator().manual_seed(seed)
    histories = [h for n in range(4) for h in itertools.product(range(VOCABULARY), repeat=n)]
    return {h: torch.randn(VOCABULARY, generator=generator).log_softmax(-1) for h in histories}


def searched(model: dict[tuple[int, ...], torch.Tensor], given: Settings) -> list[Any]:
    """A beam search whose scores are looked up as it goes: each step sees the beams of the step before."""
    scores: list[torch.Tensor] = [torch.stack([model[()]] * given.num_beams)]
    for _ in range(given.most(1) - 1):
        found = beam_search(given, [*scores, torch.zeros(given.num_beams, VOCABULARY)], 1, 1)
        if len(found.histories) <= len(scores):
            break
        scores.append(torch.stack([model[h] for h in found.histories[-1]]))
    return beam_search(given, scores, 1, 1).hypotheses[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([-1.0, 0.0, 0.7, 2.0]))
def test_with_beams_enough_the_best_sequence_is_found(seed: int, penalty: float) -> None:
    """Three tokens and more beams than histories: nothing is pruned, so exhaustive search must agree."""
    model = table(seed)
    given = Settings(
        max_new_tokens=3, num_beams=VOCABULARY**2, num_return_sequences=3, length_penalty=penalty,
        early_stopping="never", eos_token_id=END,
    )  # fmt: skip
    every = []
    for n in (1, 2, 3):
        for tokens in itertools.product(range(VOCABULARY), repeat=n):
            if END in tokens[:-1] or (n < 3 and tokens[-1] != END):
                continue
            total = sum(float(model[tokens[:i]][t]) for i, t in enumerate(tokens))
            every.append((total / n**penalty, tokens))
    best = sorted(every, reverse=True)[:3]
    found = searched(model, given)
    if penalty > 0:  # "never" waits for longer ones only where length can pay
        assert [b.new for b in found] == [tokens for _, tokens in best]
    assert math.isclose(found[0].score(penalty), found[0].total / len(found[0].new) ** penalty)
    assert [b.score(penalty) for b in found] == sorted((b.score(penalty) for b in found), reverse=True)


def test_early_stopping_takes_the_first_that_end() -> None:
    model = table(3)
    given = Settings(max_new_tokens=3, num_beams=2, num_return_sequences=2, early_stopping=True, eos_token_id=END)
    assert all(b.new[-1] == END or len(b.new) == 3 for b in searched(model, given))


def output(tokens: list[list[int]], logits: list[torch.Tensor], scores: list[torch.Tensor] | None = None) -> Any:
    prompt = torch.tensor([[3, 4], [0, 5]])
    sequences = torch.cat([prompt, torch.tensor(tokens)], 1)
    return SimpleNamespace(sequences=sequences, logits=logits, scores=scores or logits)


@pytest.fixture
def logits() -> list[torch.Tensor]:
    """Greedy: row 0 writes 1, 2 (the end); row 1 writes 5, 1, 4."""
    steps = [torch.zeros(2, VOCABULARY) for _ in range(3)]
    for step, picks in zip(steps, ((1, 5), (2, 1), (3, 4)), strict=True):
        for row, token in enumerate(picks):
            step[row, token] = 3.0
    return steps


GREEDY = Settings(max_new_tokens=3, eos_token_id=END, pad_token_id=0)


def test_a_right_generation_shows_nothing(logits: list[torch.Tensor]) -> None:
    found = replay(GREEDY, PROMPTS, output([[1, 2, 0], [5, 1, 4]], logits))
    assert (found.score_differences, found.token_differences, found.length_differences) == (0, 0, 0)
    assert found.lived == [2, 3]
    assert found.scores == 5 * VOCABULARY


def test_a_finished_row_that_writes_is_seen(logits: list[torch.Tensor]) -> None:
    assert replay(GREEDY, PROMPTS, output([[1, 2, 3], [5, 1, 4]], logits)).token_differences == 1


def test_a_token_that_is_not_the_best_is_seen(logits: list[torch.Tensor]) -> None:
    assert replay(GREEDY, PROMPTS, output([[1, 2, 0], [5, 3, 4]], logits)).token_differences == 1


def test_a_step_too_few_or_too_many_is_seen(logits: list[torch.Tensor]) -> None:
    assert replay(GREEDY, PROMPTS, output([[1, 2], [5, 1]], logits[:2])).length_differences > 0
    longer = output([[1, 2, 0, 0], [5, 1, 4, 4]], [*logits, logits[-1]])
    assert replay(GREEDY, PROMPTS, longer).length_differences > 0


def test_scores_that_no_setting_explains_are_seen(logits: list[torch.Tensor]) -> None:
    forbidden = [s.masked_fill(torch.arange(VOCABULARY) == 5, -math.inf) for s in logits]
    given = output([[1, 2, 0], [0, 1, 4]], logits, forbidden)
    assert replay(GREEDY, PROMPTS, given).score_differences == 5
    allowed = output([[1, 2, 0], [5, 1, 4]], logits)
    banned = Settings(max_new_tokens=3, eos_token_id=END, pad_token_id=0, suppress_tokens=(5,))
    assert replay(banned, PROMPTS, allowed).score_differences == 5, "a setting without an effect is seen as well"


def test_a_draw_that_the_seed_does_not_give_is_seen(logits: list[torch.Tensor]) -> None:
    sampled = Settings(max_new_tokens=3, do_sample=True, top_k=0, pad_token_id=0)
    torch.manual_seed(11)
    drawn = [torch.multinomial(s.softmax(-1), 1)[:, 0].tolist() for s in logits]
    right = [list(row) for row in zip(*drawn, strict=True)]
    assert replay(sampled, PROMPTS, output(right, logits), seed=11).token_differences == 0
    wrong = [[(t + 1) % VOCABULARY for t in row] for row in right]
    assert replay(sampled, PROMPTS, output(wrong, logits), seed=11).token_differences == 6
