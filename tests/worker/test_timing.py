"""The timing engine, on calls whose time is known."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import pytest
import torch

from compat.speed.rounds import LEAST_ROUNDS
from compat.speed.stats import median_interval, paired_ratios, stated
from compat.worker.ceilings import Canary, ceilings
from compat.worker.stepping import Point
from compat.worker.timing import Clock, Side, compare, warm_up

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def spinning(seconds: float) -> Callable[[], None]:
    """A call that keeps the processor busy for that long, by the time that this thread really ran."""

    def spin() -> None:
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass

    return spin


def test_the_same_against_the_same_is_not_told_apart() -> None:
    timing = compare([Side(spinning(0.002)), Side(spinning(0.002))], CPU, 0.2)
    low, high = median_interval(paired_ratios(*timing.seconds))
    assert stated(low, high) == ""


def test_a_slower_candidate_is_told_apart() -> None:
    timing = compare([Side(spinning(0.003)), Side(spinning(0.002))], CPU, 0.2)
    low, high = median_interval(paired_ratios(*timing.seconds))
    assert stated(low, high) == "slower"


def test_sides_alternate_so_that_drift_cancels() -> None:
    order: list[int] = []
    grown = [0]

    def drifting(name: int) -> Callable[[], None]:
        def call() -> None:
            order.append(name)
            grown[0] += 1
            time.sleep(0.0005 + 0.00002 * grown[0])

        return call

    compare([Side(drifting(0)), Side(drifting(1))], CPU, 0.05)
    rounds = order[-4 * LEAST_ROUNDS :]
    assert [rounds[i : i + 4] for i in range(0, len(rounds), 4)] == [[0, 1, 1, 0]] * LEAST_ROUNDS


def test_the_first_call_is_kept_apart_from_the_samples() -> None:
    calls = [0]

    def compiling() -> None:
        calls[0] += 1
        time.sleep(0.1 if calls[0] == 1 else 0.001)

    timing = compare([Side(compiling)], CPU, 0.05)
    assert timing.first_seconds[0] > 0.09
    assert max(timing.seconds[0]) < 0.09


def test_warm_up_goes_on_until_the_rate_settles() -> None:
    calls = [0]

    def settling() -> None:
        calls[0] += 1
        spinning(max(0.0005, 0.004 - 0.0004 * calls[0]))()

    seconds = warm_up(Side(settling), Clock(CPU), 10.0)
    assert len(seconds) >= 9, "the first nine calls become faster and faster"
    assert warm_up(Side(spinning(0.02)), Clock(CPU), 0.001) != []


def test_a_warm_up_walks_as_often_as_asked_whatever_its_budget() -> None:
    assert len(warm_up(Side(spinning(0.0005)), Clock(CPU), 0.0, least=20)) >= 20


def test_what_comes_before_a_call_is_not_timed() -> None:
    side = Side(spinning(0.001), before=lambda: time.sleep(0.01))
    timing = compare([side], CPU, 0.1)
    assert max(sorted(timing.seconds[0])[:-1]) < 0.01


def test_a_budget_ends_a_noisy_comparison_and_a_steady_one_ends_by_itself() -> None:
    import random

    draw = random.Random(1)
    noisy = compare([Side(lambda: time.sleep(draw.uniform(0.001, 0.01)))] * 2, CPU, 0.15)
    assert noisy.stopped == "budget"
    assert len(noisy.seconds[0]) == len(noisy.seconds[1]) >= 2 * LEAST_ROUNDS


def test_short_calls_are_repeated_within_a_sample_and_divided_again() -> None:
    timing = compare([Side(lambda: None)], CPU, 0.02)
    assert timing.calls > 100
    assert max(timing.seconds[0]) < 1e-4


def test_an_error_of_a_call_is_raised_and_leaves_the_collector_as_it_was() -> None:
    calls = [0]

    def failing() -> None:
        calls[0] += 1
        if calls[0] > 8:
            raise RuntimeError("enough")
        time.sleep(0.001)

    with pytest.raises(RuntimeError, match="enough"):
        compare([Side(failing)], CPU, 1.0)
    assert gc.isenabled()


def test_a_sleeping_thread_counts_as_one_that_lost_its_processor() -> None:
    busy = compare([Side(spinning(0.002))], CPU, 0.05)
    waiting = compare([Side(lambda: time.sleep(0.002))], CPU, 0.05)
    assert waiting.contention is not None
    assert busy.contention is not None
    assert waiting.contention > 0.8 > 0.5 > busy.contention - 0.3


def test_ceilings_and_the_canary_are_rates_of_this_machine() -> None:
    found = ceilings(CPU, torch.float32, torch.get_num_threads())
    assert found["copy_bytes_per_second"] > 1e8
    assert found["matmul_flops_per_second"] > 1e8
    canary = Canary(CPU)
    assert 0 < canary() <= 1
    assert canary.last <= 1


@pytest.mark.parametrize("point", [Point(4, 4096, 0.3), Point(8, 256, 0.3), Point(2, 128), Point(4, 100, 0.7)])
def test_rows_of_a_point_have_its_longest_row_and_its_share_of_pads(point: Point) -> None:
    lengths = point.lengths
    assert len(lengths) == point.batch
    assert max(lengths) == point.length
    assert min(lengths) >= 1
    pads = 1 - sum(lengths) / (point.batch * point.length)
    assert pads == pytest.approx(point.padding, abs=0.01)
