"""Slots and columns of a batch under way, against a list of what each slot has seen."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from compat.worker.feeding import Feeding

ROWS = 3
STEPS = st.lists(
    st.one_of(
        st.integers(1, 4),
        st.just(["copy"]),
        st.just(["back"]),
        st.just(["reset"]),
        st.tuples(st.just("crop"), st.integers(1, 3)).map(list),
        st.tuples(st.just("repeat"), st.integers(1, 2)).map(list),
        st.tuples(st.sampled_from(["reorder", "select"]), st.lists(st.integers(0, 99), min_size=1, max_size=4)).map(
            list
        ),
    ),
    max_size=9,
)


class Told:
    """A cache that keeps, for each slot, the (row, column) pairs that were fed to it."""

    def __init__(self) -> None:
        self.seen: list[list[tuple[int, int]]] = [[] for _ in range(ROWS)]

    def batch_select_indices(self, order: torch.Tensor) -> None:
        self.seen = [list(self.seen[i]) for i in order.tolist()]

    reorder_cache = batch_select_indices

    def batch_repeat_interleave(self, times: int) -> None:
        self.seen = [list(own) for own in self.seen for _ in range(times)]

    def crop(self, length: int) -> None:
        self.seen = [own[:length] for own in self.seen]

    def reset(self) -> None:
        self.seen = [[] for _ in self.seen]


@given(STEPS)
def test_a_slot_has_seen_the_columns_of_the_row_that_it_follows(steps: list[Any]) -> None:
    way, blind = Feeding(list(range(ROWS)), Told()), Feeding(list(range(ROWS)))
    for step in steps:
        if isinstance(step, int):
            for slot, row in enumerate(way.slots):
                way.cache.seen[slot] += [(row, way.at + i) for i in range(step)]
            way.at += step
            blind.at += step
            continue
        if step[0] == "crop" and way.at < step[1]:
            continue
        if step[0] == "back" and (way.kept is None):
            continue
        own = [step[0], [i % len(way.slots) for i in step[1]]] if step[0] in ("reorder", "select") else step
        way.act(own)
        blind.act(own)
        assert (blind.slots, blind.at) == (way.slots, way.at), "without a cache the same is kept"
    assert way.cache.seen == [[(row, i) for i in range(way.at)] for row in way.slots]
