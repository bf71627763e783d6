"""Law: patterns, read as selectors over the run, pick exactly the cells they stand for."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from compat.records import Cell, Outcome
from compat.render.patterns import patterns

VALUES = (
    ("llama", "gpt2", "opt", "phi", "phi3", "t5", "bert"),
    ("fp32", "fp16", "bf16"),
    ("eager", "sdpa", "sdpa-math", "sdpa-flash", "sdpa-cudnn", "flash_attention_2"),
    ("none", "bnb-int8", "bnb-nf4"),
)
points = st.tuples(*(st.sampled_from(values) for values in VALUES))


def cell(point: tuple[str, ...]) -> Cell:
    """A cell at `point`."""
    axes = dict(zip(("model", "dtype", "attention", "quantization"), point, strict=True))
    return Cell(id="/".join(point), axes=axes, outcome=Outcome.PASS)


def picks(word: str, value: str) -> bool:
    """Whether `word` of a pattern lets `value` in."""
    if word.startswith("{all but "):
        return value not in word[9:-1].split(",")
    if word.startswith("{"):
        return value in word[1:-1].split(",")
    return value.startswith(word[:-1]) if word.endswith("*") else value == word


@settings(max_examples=150, deadline=None, database=None)
@given(st.sets(points, min_size=1, max_size=60), st.data())
def test_patterns_are_exact(everything: set[tuple[str, ...]], data: st.DataObject) -> None:
    ordered = sorted(everything)
    excluded = data.draw(st.sets(st.sampled_from(VALUES[0] + VALUES[2]), max_size=4))
    chosen = [p for p in ordered if not excluded & set(p)]
    found = patterns([cell(p) for p in chosen], [cell(p) for p in ordered], limit=1000)
    words = [text.split("/") for text in found.texts]
    selected = {p for p in ordered if any(all(map(picks, w, p)) for w in words)}
    assert selected == set(chosen)
    assert found.shown == found.total == len(chosen)


@settings(max_examples=50, deadline=None, database=None)
@given(st.sets(points, min_size=1, max_size=40), st.integers(1, 3))
def test_what_is_left_out_is_counted(everything: set[tuple[str, ...]], limit: int) -> None:
    chosen = [cell(p) for p in sorted(everything)[::2]]
    found = patterns(chosen, [cell(p) for p in everything], limit)
    assert len(found.texts) <= limit
    assert 0 < found.shown <= found.total == len(chosen)
    assert bool(found.rest) == (found.shown < found.total)
