"""Bisection: the least that fails, nothing that was not tried, and the layout of smaller calls."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from compat.worker import cases, minimise
from compat.worker.minimise import minimised, shortest

DECODING: dict[str, Any] = {
    "kind": "decode", "rows": [list(range(5, 25)), list(range(30, 47))], "side": "left", "length": 20, "pad": 0,
    "steps": [14, 1, 1, 1, 1, 1, 1], "cache": "dynamic",
}  # fmt: skip
PADDED: dict[str, Any] = {
    "kind": "padded", "rows": [list(range(5, 25)), list(range(30, 47))], "side": "right", "length": 20, "pad": 0,
}  # fmt: skip


@given(longest=st.integers(1, 300), threshold=st.integers(1, 300))
def test_the_least_that_fails_is_found_where_failing_is_monotone(longest: int, threshold: int) -> None:
    tried: list[int] = []

    def fails(n: int) -> bool:
        tried.append(n)
        return n >= threshold

    found = shortest(longest, fails)
    assert found == min(threshold, longest) or (threshold > longest and found == longest)
    assert len(tried) <= longest.bit_length() + 1


@given(longest=st.integers(1, 60), failing=st.sets(st.integers(1, 60)))
def test_what_is_found_was_seen_to_fail(longest: int, failing: set[int]) -> None:
    found = shortest(longest, lambda n: n in failing)
    assert found == longest or found in failing


@given(data=st.data())
def test_every_smaller_call_is_well_formed_and_the_result_was_tried(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from([DECODING, PADDED, {"kind": "forward", "rows": [[5, 6, 7], [8, 9, 4]]}]))
    seen = []

    def shows(smaller: cases.Case) -> bool:
        assert smaller["rows"]
        assert all(smaller["rows"])
        if "length" in smaller:
            assert smaller["length"] >= max(len(r) for r in smaller["rows"])
        if smaller["kind"] == "decode":
            assert sum(smaller["steps"]) == smaller["length"]
            assert min(smaller["steps"]) >= 1
        answer: bool = data.draw(st.booleans())
        if answer:
            seen.append(smaller)
        return answer

    found, whole = minimised(case, shows)
    assert whole
    assert found == (seen[-1] if seen else case)


def test_a_call_is_made_as_small_as_it_can_be() -> None:
    """Fails wherever token 40 is followed by something, in a padded batch."""
    found, _ = minimised(PADDED, lambda c: any(40 in r[:-1] for r in c["rows"]) and cases.pads(c) + 20 > 0)
    assert found["rows"] == [[40, 41]]
    assert found["length"] == 3, "one pad"


def test_decode_steps_and_prefill_shrink() -> None:
    found, _ = minimised(DECODING, lambda c: len(c["steps"]) > 2 and len(c["rows"]) == 1)
    assert found["steps"] == [1, 1, 1]
    assert [len(r) for r in found["rows"]] == [3]


def test_what_was_found_before_time_was_up_stands() -> None:
    calls: list[cases.Case] = []

    def shows(case: cases.Case) -> bool:
        if len(calls) == 3:
            raise minimise.OutOfTime
        calls.append(case)
        return True

    found, whole = minimised({"kind": "forward", "rows": [[5] * 40, [6] * 40]}, shows)
    assert not whole
    assert found == calls[-1]
