"""Laws of planning: everything once, in an order that saves loads, and resuming loses and invents nothing."""

from __future__ import annotations

import itertools
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.checks import CHECKS
from compat.matrix import CellSpec
from compat.plan import alternatives, fits_nothing, make_plan, select, without

from .matrix_files import CELLS


def _tasks(cells: list[CellSpec]) -> set[tuple[str, str]]:
    return {(c.id, check) for c in cells if not c.excluded for check in c.checks}


@given(CELLS)
def test_every_task_appears_exactly_once(cells: list[CellSpec]) -> None:
    plan = make_plan(cells)
    tasks = [(cell.id, check) for cell, check in plan.tasks]
    assert len(set(tasks)) == len(tasks)
    assert set(tasks) == _tasks(cells)
    assert {c.id for c in plan.left_out} == {c.id for c in cells if c.excluded}, "an excluded cell was lost"


@given(CELLS)
def test_a_group_is_one_load_and_its_model_stands_together(cells: list[CellSpec]) -> None:
    plan = make_plan(cells)
    for group in plan.groups:
        assert {(c.model, c.dtype, c.quantization) for c in group.cells} == {
            (group.model, group.dtype, group.quantization)
        }
    assert len({g.key for g in plan.groups}) == len(plan.groups), "a group was split"
    runs = [model for model, _ in itertools.groupby(g.model for g in plan.groups)]
    assert len(set(runs)) == len(runs), f"a model is left and come back to: {runs}"
    first_seen = list(dict.fromkeys(c.model for c in cells))
    assert runs == [m for m in first_seen if m in runs], "models run in the order in which the matrix names them"


@given(CELLS)
def test_eager_comes_first_in_its_group(cells: list[CellSpec]) -> None:
    for group in make_plan(cells).groups:
        names = [c.attention for c in group.cells]
        assert "eager" not in names[1:], f"{group.key}: the yardstick runs after {names[0]}"


@given(CELLS)
def test_checks_keep_their_order_with_load_first(cells: list[CellSpec]) -> None:
    for cell in make_plan(cells).cells:
        assert list(cell.checks) == sorted(cell.checks, key=CHECKS.names.index)


@given(CELLS)
def test_the_plan_does_not_depend_on_the_order_within_a_model(cells: list[CellSpec]) -> None:
    order = list(dict.fromkeys(c.model for c in cells))
    turned = list(reversed(cells))
    turned.sort(key=lambda c: order.index(c.model))
    assert make_plan(turned).groups == make_plan(cells).groups


@given(CELLS, st.randoms(use_true_random=False))
def test_what_is_done_and_what_remains_make_up_the_plan(cells: list[CellSpec], random: Random) -> None:
    plan = make_plan(cells)
    tasks = [(cell.id, check) for cell, check in plan.tasks]
    done = {task for task in tasks if random.random() < 0.5}
    rest = [(cell.id, check) for cell, check in without(plan, done).tasks]
    assert [t for t in tasks if t not in done] == rest, "the order is kept, nothing is lost or invented"
    assert without(plan, set()) == plan
    assert without(plan, set(tasks)).groups == ()
    assert without(plan, done).left_out == plan.left_out


@given(CELLS, st.sampled_from(["", "*", "llama/*", "*/bf16/*", "*sdpa*", "*/none", "nothing/fits"]),
       st.sets(st.sampled_from(CHECKS.names)))  # fmt: skip
def test_selecting_is_idempotent_and_invents_nothing(cells: list[CellSpec], pattern: str, checks: set[str]) -> None:
    patterns = (pattern,) if pattern else ()
    once = select(cells, patterns, checks)
    assert select(once, patterns, checks) == once
    known = {c.id: c for c in cells}
    for cell in once:
        assert set(cell.checks) <= set(known[cell.id].checks)
        assert cell.excluded == known[cell.id].excluded
        assert cell.checks, "a cell without a check would never get an outcome"
    if not patterns and not checks:
        assert list(once) == cells


@given(CELLS)
def test_selecting_by_tasks_gives_those_tasks(cells: list[CellSpec]) -> None:
    wanted = set(sorted(_tasks(cells))[::2])
    chosen = select(cells, tasks=wanted)
    assert _tasks(list(chosen)) == wanted


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("lama/*", "; 'lama': nearest: 'llama'"),
        ("llama/bf61/sdpa/none", "; 'bf61': nearest: 'bf16'"),
        ("*/bf61/*", ""),
        ("{llama,opt}/{bf61,fp16}/*", "; 'bf61': nearest: 'bf16'"),
        ("llama/*/no", ""),
    ],
)
def test_what_fits_nothing_is_told_with_the_nearest_value(pattern: str, hint: str) -> None:
    cells = [CellSpec(m, d, "sdpa", "none", ("load",)) for m in ("llama", "opt") for d in ("fp32", "bf16")]
    said = fits_nothing(Path("m.toml"), cells, [pattern])
    assert said == f"nothing selected: no cell of m.toml fits {pattern}{hint}"
    assert fits_nothing(Path("m.toml"), [], []) == "nothing selected: no cell of m.toml fits it"
    assert (
        fits_nothing(Path("m.toml"), cells, ["opt/*", pattern], cells[2:]) == f"no cell of m.toml fits {pattern}{hint}"
    )
    assert fits_nothing(Path("m.toml"), cells, ["opt/*", "llama/*"], cells) == ""


@pytest.mark.parametrize(
    ("pattern", "means"),
    [
        ("a/b", ("a/b",)),
        ("a/{b,c}/{d,e}", ("a/b/d", "a/b/e", "a/c/d", "a/c/e")),
        ("a/{b,{c,d}e}", ("a/b", "a/ce", "a/de")),
        ("a/{b,b}", ("a/b",)),
        ("{,x}a", ("a", "xa")),
        ("a/{b}", ("a/{b}",)),
        ("a/{b,c", ("a/{b,c",)),
    ],
)
def test_braces_are_alternatives_as_shells_have_them(pattern: str, means: tuple[str, ...]) -> None:
    assert set(alternatives(pattern)) == set(means)


@given(CELLS, st.lists(st.sampled_from(["llama", "opt", "*"]), min_size=1, max_size=3))
def test_a_pattern_with_braces_selects_what_its_parts_select(cells: list[CellSpec], parts: list[str]) -> None:
    assert select(cells, ["{" + ",".join(parts) + ",}/*"]) == select(cells, [f"{p}/*" for p in (*parts, "")])
