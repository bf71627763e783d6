"""Halving a line of versions, and what pip's answers mean: laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from compat.upgrade.bisection import Bisection, Step, answer, lines
from compat.upgrade.releases import between, conflicts, here, last_of_minors
from compat.upgrade.search import first_other


@given(st.data())
def test_the_boundary_is_found_around_what_cannot_be_tested(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 40))
    true = data.draw(st.integers(0, size - 1))
    dead = data.draw(st.sets(st.integers(0, size - 2))) if size > 1 else set()
    asked: list[int] = []

    def other(item: int) -> bool | None:
        asked.append(item)
        return None if item in dead else item >= true

    found = first_other(list(range(size)), other)
    assert found.first >= true
    assert found.last is None or found.last < true
    assert len(asked) == len(set(asked))
    low = -1 if found.last is None else found.last
    assert list(found.untested) == list(range(low + 1, found.first))
    assert set(found.untested) <= dead, "only what cannot be tested stays between"
    if not dead:
        assert found.first == true
        assert len(asked) <= size.bit_length() + 1


def test_nothing_to_search_is_said() -> None:
    with pytest.raises(ValueError, match="nothing"):
        first_other([], lambda item: True)


VERSION = st.builds(lambda a, b, c: Version(f"{a}.{b}.{c}"), *(st.integers(0, 4) for _ in range(3)))


@given(st.lists(VERSION, unique=True), VERSION, VERSION)
def test_versions_between_run_from_one_to_the_other(known: list[Version], first: Version, last: Version) -> None:
    line = between(known, str(first), str(last))
    assert line[-1] == last
    inside = line[:-1]
    assert set(inside) <= set(known)
    assert all(min(first, last) < v < max(first, last) for v in inside)
    assert line == sorted(line, reverse=first > last)
    minors = last_of_minors(line)
    assert minors[-1] == last
    assert set(minors) <= set(line)
    series = [v.release[:2] for v in minors]
    assert series == list(dict.fromkeys(v.release[:2] for v in line))


def test_requirements_that_hold_here_and_are_not_met() -> None:
    required = tuple(
        here(
            [
                "huggingface-hub<2.0,>=1.3.0",
                "tokenizers<=0.23.0,>=0.22.0",
                "numpy>=1.17",
                "colorama; platform_system == 'Nowhere'",
                "torch>=2.4; extra == 'torch'",
                "not a requirement at all !",
            ]
        )
    )
    assert [r.name for r in required] == ["huggingface-hub", "tokenizers", "numpy"]
    unmet = conflicts(required, {"huggingface-hub": "0.36.2", "tokenizers": "0.22.1", "numpy": "2.4.6"})
    assert list(unmet) == ["huggingface-hub"]
    assert list(conflicts(required, {"huggingface-hub": "1.3.0", "tokenizers": "0.22.1"})) == ["numpy"], "is not there"


def _found(**more: object) -> Bisection:
    return Bisection(before="a", after="b", cell="c", question="across token_gap", **more)  # type: ignore[arg-type]


def test_the_answer_says_what_moved_with_it_and_what_was_not_tested() -> None:
    found = _found(
        packages=("transformers", "accelerate"), together=("huggingface-hub",), first_other="5.0.0", last_same="4.57.6",
        untested=("4.58.0",), moved_at_boundary=("huggingface-hub",),
        steps=(Step(name="x", swapped={"t": "1"}, other=None),),
    )  # fmt: skip
    said = answer(found)
    for part in ("transformers changes it", "first in 5.0.0", "not yet in 4.57.6", "4.58.0",
                 "huggingface-hub moved with it", "by itself: accelerate"):  # fmt: skip
        assert part in said
    assert "cannot be tested" in "\n".join(lines(found))
    assert answer(_found(nothing="both stacks\x1b[2J behave the same")).startswith("Nothing named: both stacks")
    assert "\x1b" not in answer(_found(nothing="both stacks\x1b[2J"))
