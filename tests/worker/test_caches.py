"""The parts of the cache check that need no model: positions compared, tokens excused, 8-bit rounding, windows."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st

from compat.worker.caches import in_turns, storage_bytes, windows
from compat.worker.continuations import unexcused
from compat.worker.metrics import Yardstick
from compat.worker.quantized_cache import LARGEST, rounded


def _tensor(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_view_keeps_its_whole_storage_and_shares_it() -> None:
    whole = torch.zeros(4, 6)
    assert storage_bytes([whole[:, :2], whole[:, 2:4]]) == 4 * 6 * 4
    assert storage_bytes([whole[:, :2].clone(), torch.zeros(3, dtype=torch.float64)]) == 4 * 2 * 4 + 3 * 8
    assert storage_bytes([]) == 0


# -- some of the tokens ------------------------------------------------------------------------------------------


@given(st.integers(0, 50), st.integers(1, 12))
def test_all_tokens_in_order_give_what_leaving_them_out_gives(seed: int, tokens: int) -> None:
    r, e, o = (_tensor(seed + i, tokens, 5) for i in range(3))
    yardstick = Yardstick(r, r + 0.01 * e, torch.float32, logits=True)
    whole, some = yardstick.compare(r + 0.01 * o), yardstick.compare(r + 0.01 * o, torch.arange(tokens))
    assert some.kl is None
    assert (some.ratio_rms, some.ratio_token, some.ratio_max) == (whole.ratio_rms, whole.ratio_token, whole.ratio_max)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(0, 5))
def test_each_token_is_compared_with_its_own(at: list[int], unknown: int) -> None:
    r = _tensor(1, 6, 4)
    r[unknown] = torch.inf
    yardstick = Yardstick(r, r + 1e-3, torch.float32, logits=True)
    figure = yardstick.compare(r[at], torch.tensor(at))
    known = [i for i in at if i != unknown]
    assert figure.tokens == len(known), "a token where the reference is not finite is left out"
    assert figure.ratio_token == (0 if known else None)


def test_a_wrong_token_shows_at_any_place() -> None:
    r = _tensor(2, 6, 4)
    yardstick = Yardstick(r, r + 1e-3, torch.float32, logits=True)
    figure = yardstick.compare(r[[4, 4]] + torch.tensor([[0.0], [1.0]], dtype=torch.float64), torch.tensor([4, 4]))
    assert figure.ratio_token is not None
    assert 900 < figure.ratio_token < 1100


def test_nothing_compared_gives_no_figure() -> None:
    r = _tensor(3, 6, 4)
    none = torch.zeros(0, dtype=torch.long)
    figure = Yardstick(r, r + 1e-3, torch.float32, logits=True).compare(r[:0], none)
    assert (figure.elements, figure.ratio_token) == (0, None)


# -- tokens chosen -----------------------------------------------------------------------------------------------


@given(st.integers(0, 200))
def test_the_references_best_is_always_excused(seed: int) -> None:
    r = _tensor(seed, 4, 6)
    assert unexcused(r, r, tuple(r.argmax(-1).tolist()), []) == 0


@given(st.integers(0, 200), st.floats(1e-3, 1.0))
def test_a_flip_is_excused_up_to_four_times_eagers_error(seed: int, error: float) -> None:
    r = _tensor(seed, 1, 6)
    e = r.clone()
    e[0, 3] += error
    for token in range(6):
        within = float(r.max() - r[0, token]) <= 4 * float((e - r).abs().max())
        assert unexcused(r, e, (token,), []) == (0 if within else 1)


def test_a_forbidden_token_is_neither_best_nor_judged() -> None:
    r = torch.tensor([[9.0, 5.0, 1.0]], dtype=torch.float64)
    assert unexcused(r, r, (1,), []) == 1
    assert unexcused(r, r, (1,), [0]) == 0
    assert unexcused(r, r, (0,), [0]) == 0


# -- eight bits --------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-LARGEST, LARGEST, width=32), min_size=1, max_size=20))
def test_own_rounding_is_the_format(values: list[float]) -> None:
    x = torch.tensor(values)
    unit = torch.tensor([LARGEST])  # a scale of one
    mine, inside = rounded(x, unit)
    assert bool(inside.all())
    assert torch.equal(mine, x.to(torch.float8_e4m3fn).float())


def test_the_first_part_sets_the_scale() -> None:
    mine, inside = rounded(torch.tensor([0.5, 2.0, 2.1]), torch.tensor([-2.0, 1.0]))
    assert inside.tolist() == [True, True, False]
    assert mine[:2].tolist() == [0.5, 2.0]


# -- the rest ----------------------------------------------------------------------------------------------------


def test_windows_are_the_configs() -> None:
    full = SimpleNamespace(sliding_window=None)
    every = SimpleNamespace(sliding_window=32)
    mixed = SimpleNamespace(sliding_window=32, layer_types=["sliding_attention", "full_attention"])
    assert windows(full, 2) == [None, None]
    assert windows(every, 2) == [32, 32]
    assert windows(mixed, 2) == [32, None]


def test_walks_take_turns_to_their_ends() -> None:
    said: list[str] = []

    def walk(name: str, steps: int) -> Iterator[None]:
        for i in range(steps):
            said.append(f"{name}{i}")
            yield

    in_turns(walk("a", 3), walk("b", 1))
    assert said == ["a0", "b0", "a1", "a2"]
