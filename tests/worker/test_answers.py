"""What a library answers, as it may come: fewer, more, None or another type is a difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compat.worker.answers import Differences, apart, compare_ids, depth, records, texts, token_ids
from compat.worker.chat_pipeline import answered, spoken
from compat.worker.endings import parting_token, spelling_tokenizer, stopped
from compat.worker.scored_answers import Answers, ranked
from compat.worker.stand_in import Recorder, StandIn
from compat.worker.text_classification import differences


@pytest.mark.parametrize(
    ("own", "theirs", "count"),
    [
        ([[1, 2], [3]], [[1, 2], [3]], 0),
        ([[1, 2], [3]], torch.tensor([[1, 2]]), 1),
        ([[1, 2]], [[1, 2], [3, 4, 5]], 3),
        ([[1, 2]], [[1, 9]], 1),
        ([[1, 2], [3, 4]], None, 4),
        ([[1, 2]], [None], 2),
        ([1], [[1, 2]], 2),
        ([[]], [], 1),
        (["a", "b"], ("a", None), 1),
    ],
)
def test_missing_and_surplus_entries_count(own: Any, theirs: Any, count: int) -> None:
    assert apart(own, theirs) == count


def test_rows_that_are_not_there_differ_and_raise_nothing() -> None:
    found = Differences()
    compare_ids("batch", [[1, 2], [3, 4]], [[1, 2]], found)
    assert (found.tokens, found.compared) == (2, 4)
    assert "ids: batch" in found.notes


def test_records_are_found_at_any_depth() -> None:
    one = {"generated_token_ids": torch.tensor([1, 2]), "generated_text": "a b"}
    assert records([[one], None, [{}]]) == [one, {}]
    assert token_ids([[one], [{}]]) == [[1, 2], []]
    assert texts([one, {}]) == ["ab", None]
    assert [depth(a) for a in (one, [one], [[one]], [], None, [None])] == [0, 1, 2, -1, -1, -1]


def test_a_stand_in_returns_several_sequences_of_each_prompt() -> None:
    seen = StandIn([7], [[8]])
    assert seen(input_ids=torch.tensor([[1], [2]])).tolist() == [[1, 7], [1, 8], [2, 7], [2, 8]]
    assert seen.handed(1) == {}


def test_logits_of_another_shape_are_unlike() -> None:
    seen = Recorder(None)
    seen.logits = [torch.zeros(12, 5), torch.ones(4, 5)]
    assert seen.unlike([torch.zeros(4, 5), torch.ones(4, 5)], torch.float32) == 1
    assert Recorder(None).unlike([torch.zeros(4, 5)], torch.float32) == 1


def test_a_ranking_that_is_too_short_or_names_no_class_differs() -> None:
    own = torch.tensor([0.5, 0.3, 0.2])
    whole = [{"token": 0, "score": 0.5}, {"token": 1, "score": 0.3}, {"token": 2, "score": 0.2}]

    def differing(answer: Any, count: int = 5, among: tuple[int, ...] = ()) -> int:
        found = Answers()
        found.add(own, ranked(answer, lambda record: record.get("token")), count, among)
        return found.differing

    assert differing(whole) == 0
    assert differing(whole[:2]) == 1
    assert differing(None) == 3
    assert differing([{"token": 9, "score": 0.5}], count=1) == 1
    assert differing(whole[1:], among=(1, 2)) == 0
    assert differing(whole[:2], among=(1, 2)) == 2
    found = Answers()
    assert found.each([1], 3) == [1, None, None]
    assert found.differing == 2


def test_what_an_assistant_says_follows_the_chat_or_continues_its_last_words() -> None:
    chat = [{"role": "user", "content": "a b"}]
    begun = [*chat, {"role": "assistant", "content": "c"}]
    assert spoken(answered(chat, "d e")) == [("user", "ab"), ("assistant", "de")]
    assert spoken(answered(begun, "d")) == [("user", "ab"), ("assistant", "cd")]
    assert spoken("a b") == "a b"


def test_labels_and_scores_are_compared_by_rank() -> None:
    own, names = [torch.tensor([0.2, 0.7, 0.1])], ["A", "B", "C"]
    right = [{"label": "B", "score": 0.7}, {"label": "A", "score": 0.2}, {"label": "C", "score": 0.1}]
    assert differences(own, names, [right]) == 0
    assert differences(own, names, [right[:2]]) == 1
    assert differences(own, names, None) == 3
    assert differences(own, names, [[{**right[0], "score": 0.71}, *right[1:]]]) == 1


def test_a_stop_parts_rows_and_pads_stand_behind_it() -> None:
    new = [[300, 301, 302, 303, 304], [301, 305, 306, 307, 301]]
    assert parting_token(new, 100) == 302
    assert parting_token([[1, 2, 3, 4]] * 2) is None
    assert stopped(new, 302, 0) == [[300, 301, 302, 0, 0], new[1]]
    assert stopped([[5, 6, 7], [6, 7, 8]], 6, 0) == [[5, 6], [6, 0]]


def test_the_tokenizer_of_stop_strings_spells_any_word() -> None:
    tokenizer = spelling_tokenizer(512)
    assert tokenizer.decode(tokenizer("abcdef")["input_ids"]) == "abcdef"
    assert tokenizer.decode([317]) == "w317"
