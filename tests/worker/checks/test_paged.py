"""paged passes where the library is right, and sees where it silently is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from compat.worker import stack_api
from compat.worker.checks import paged

from .groups import attention, figures, group

pytest.importorskip("transformers.generation.continuous_batching")


def test_a_right_family_passes_and_is_left_as_it_was(probe_cache: Path) -> None:
    own = group("llama", "fp32", probe_cache)
    seen = figures(paged.run(own, attention("sdpa")))
    none = ("requests_unfinished", "foreign_requests", "length_differences", "unexcused_tokens", "settings_changed")
    assert {name: seen[name] for name in none} == dict.fromkeys(none, 0)
    assert seen["compared_tokens"] == paged.NEW_TOKENS * len(paged.LENGTHS)
    assert seen["decisive_tokens"] >= 48
    assert stack_api.effective_attention(own.loaded(attention("sdpa")).model) == "sdpa"


@pytest.mark.skipif(stack_api.TRANSFORMERS[:2] != (5, 23), reason="what 5.23 gets wrong, another version may not")
def test_silently_wrong_tokens_are_seen(probe_cache: Path) -> None:
    seen = figures(paged.run(group("mpt", "fp32", probe_cache), attention("eager")))
    assert seen["requests_unfinished"] == seen["length_differences"] == 0, "the library says that all is well"
    assert seen["unexcused_tokens"] > 32


def test_answers_that_are_missing_short_or_foreign_are_counted(probe_cache: Path) -> None:
    from compat.worker.report import Report

    own = group("llama", "fp32", probe_cache)
    prompts = [[5, 6, 7], [8, 9]]
    answers = [
        stack_api.Answer(prompts[0], [1, 2], False, "FAILED", "no room"),
        stack_api.Answer([1, 1, 1], [3], True, "FINISHED", ""),
    ]
    report = Report(seed=0)
    paged._record(own, prompts, answers, report)
    seen = figures(report)
    assert seen["requests_unfinished"] == 2
    assert seen["foreign_requests"] == 1
    assert seen["length_differences"] == paged.NEW_TOKENS - 2 + paged.NEW_TOKENS
