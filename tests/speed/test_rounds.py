"""When rounds end: on a clock of the test's own."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from compat.speed import rounds
from compat.speed.rounds import LEAST_ROUNDS, PATIENCE, alternate


def _timed(monkeypatch: pytest.MonkeyPatch, samples: list[float], budget: float) -> tuple[int, float, str]:
    """(rounds, seconds that passed, why it ended) for samples that repeat."""
    now, given = [0.0], itertools.cycle(samples)
    monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def sample(side: int) -> float:
        seconds = next(given)
        now[0] += seconds
        return seconds

    seconds, stopped = alternate(sample, 2, budget, 1000)
    return len(seconds[0]) // 2, now[0], stopped


def test_equal_samples_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _timed(monkeypatch, [0.01], 1.0)[::2] == (LEAST_ROUNDS, "tight")


def test_an_interval_that_says_something_ends_with_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    _, spent, stopped = _timed(monkeypatch, [0.010, 0.011, 0.009, 0.010, 0.0105], 1.0)
    assert stopped == "budget"
    assert 1.0 <= spent < 1.1


def test_an_interval_that_says_nothing_goes_on_and_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    _, spent, stopped = _timed(monkeypatch, [0.01, 0.05], 1.0)  # pairs of a fifth and of five, by turns
    assert stopped == "budget"
    assert PATIENCE <= spent < PATIENCE + 0.2


def test_one_interruption_is_outlived(monkeypatch: pytest.MonkeyPatch) -> None:
    once = [0.01, 0.05, *[0.0100, 0.0101, 0.0102, 0.0099] * 200]
    _, spent, stopped = _timed(monkeypatch, once, 0.1)
    assert stopped == "budget"
    assert 0.1 <= spent < 0.1 * PATIENCE, "six pairs with one of five times the rest are as wide as that; ten are not"
