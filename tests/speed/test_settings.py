"""Laws of the speed check's settings: what is written is what is measured, and what cannot be says why."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compat.matrix import CellSpec, MatrixError, read_matrix
from compat.speed.settings import (
    DEFAULT_GRID,
    EAGER,
    Grid,
    Item,
    Point,
    SettingError,
    SpeedOptions,
    SpeedSettings,
    baselines,
    read_baseline,
    read_item,
)

from ..matrix_files import CELLS, TINY, write

BATCHES = st.integers(1, 64)
LENGTHS = st.integers(1, 10_000)
SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.9])
ITEMS = st.builds(Item, LENGTHS, st.none() | BATCHES, st.none() | SHARES)
GRIDS = st.builds(
    Grid,
    st.lists(ITEMS, min_size=1, max_size=4).map(tuple),
    st.lists(BATCHES, min_size=1, max_size=3).map(tuple),
    st.lists(SHARES, min_size=1, max_size=3).map(tuple),
)


@given(st.builds(Point, BATCHES, LENGTHS, SHARES))
def test_a_point_is_read_as_it_is_shown(point: Point) -> None:
    assert read_item("points", str(point)) == Item(point.length, point.batch, point.padding)


@given(GRIDS)
def test_a_grid_holds_every_combination_that_rows_can_have_and_no_other(grid: Grid) -> None:
    named = [
        {
            Point(batch, item.length, share)
            for batch in (grid.batches if item.batch is None else (item.batch,))
            for share in (grid.padding if item.padding is None else (item.padding,))
        }
        for item in grid.items
    ]
    if not all(any(p.possible for p in points) for points in named):
        with pytest.raises(SettingError, match="cannot be: the longest row has no padding"):
            grid.points("points")
        return
    found = grid.points("points")
    assert len(set(found)) == len(found)
    assert set(found) == {p for points in named for p in points if p.possible}


@given(st.integers(1, 6), st.integers(1, 12), st.floats(0, 0.99))
def test_a_point_is_possible_when_some_lengths_have_so_many_pads(batch: int, length: int, share: float) -> None:
    """The most pads: one row of `length` tokens, all others of one."""
    most = sum(length - n for n in [length, *[1] * (batch - 1)]) / (batch * length)
    assert Point(batch, length, share).possible == (share <= most)


@given(GRIDS, st.none() | st.floats(0.01, 100), st.sampled_from([EAGER, "*/*/sdpa/*", "llama/bf16/sdpa/none"]))
def test_the_words_of_settings_ask_for_the_same_settings(grid: Grid, budget: float | None, baseline: str) -> None:
    """The command in a check's evidence, and the one that continues an interrupted run."""
    try:
        points = grid.points("points")
    except SettingError:
        return
    settings = SpeedSettings(grid, None if budget is None else float(f"{budget:g}"), baseline, extras=True)
    words = settings.words()
    asked = dict(zip(words[::2], words[1::2], strict=True))
    options = SpeedOptions(
        items=tuple(read_item("--grid", t) for t in asked["--grid"].split(",")),
        budget_seconds=float(asked["--budget"]) if "--budget" in asked else None,
        baseline=asked.get("--baseline"),
    )
    again = options.over(SpeedSettings())
    assert again.points == points
    assert again.stored() == settings.stored()


def test_settings_of_the_check_itself_say_nothing() -> None:
    assert SpeedSettings().request() == {}
    assert SpeedSettings().stored() == {}
    assert SpeedSettings().patience_seconds == 0


def test_options_replace_the_grid_or_its_batches_and_shares() -> None:
    own = SpeedSettings(Grid((Item(256), Item(512, 8)), (2, 4), (0.0, 0.3)), budget_seconds=2.0)
    assert SpeedOptions().over(own).points == own.points
    assert SpeedOptions(items=(Item(64),)).over(own).points == (Point(1, 64),), "a new grid has one row, unpadded"
    shares = {p.padding for p in SpeedOptions(padding=(0.4,)).over(own).points}
    assert shares == {0.4}
    assert {p.batch for p in SpeedOptions(batches=(3,)).over(own).points} == {3, 8}
    assert SpeedOptions().over(own).budget_seconds == 2.0
    assert SpeedOptions(budget_seconds=9.0).over(own).budget_seconds == 9.0
    assert SpeedOptions().over(SpeedSettings()).points == DEFAULT_GRID.points("")
    assert SpeedOptions().over(own).extras


# -- tables of a matrix ------------------------------------------------------------------------------------------


def test_a_table_is_read(tmp_path: Path) -> None:
    table = """
[speed]
lengths = [256, 2048]
batches = [1, 4]
padding = [0, 0.3]
points = ["8x64", "2x128@50%"]
budget_seconds = 5
baseline = "sdpa"
"""
    with pytest.raises(MatrixError, match=r"speed\.points\[1\]: 2x128@0\.5 cannot be.*at most 0\.49"):
        read_matrix(write(tmp_path, TINY + table), "cpu")
    speed = read_matrix(write(tmp_path, TINY + table.replace("50%", "30%")), "cpu").settings.speed
    assert [str(p) for p in speed.points] == [
        "1x256@0", "4x256@0", "4x256@0.3", "1x2048@0", "4x2048@0", "4x2048@0.3", "8x64@0", "8x64@0.3", "2x128@0.3",
    ]  # fmt: skip
    assert (speed.budget_seconds, speed.baseline, speed.extras) == (5, "*/*/sdpa/*", False)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("length = [256]", "speed.length: unknown key; nearest valid: 'lengths'"),
        ("lengths = 256", "speed.lengths: 256 is a int, not a list"),
        ("lengths = []", "speed.lengths: is empty"),
        ("lengths = [256, 0]", "speed.lengths[1]: 0 is not a whole number above 0"),
        ("lengths = [true]", "speed.lengths[0]: True is not a whole number above 0"),
        ("batches = [1]", "speed.lengths: is missing"),
        ("lengths = [256]\npadding = [1.0]", "speed.padding[0]: 1.0 is not a share of at least 0 and below 1"),
        ("lengths = [256]\npadding = [30]", "nearest valid: '0.3'"),
        ('lengths = [256]\npadding = ["x"]', "speed.padding[0]: 'x' is not a number"),
        ("lengths = [256]\npadding = [0.3]", "speed.lengths[0]: 1x256@0.3 cannot be"),
        ('points = ["4*256"]', "speed.points[0]: '4*256' is no point like 4x2048@0.3"),
        ('points = ["4*256"]', "nearest valid: '4x256'"),
        ('points = ["4x256@30"]', "nearest valid: '4x256@0.3'"),
        ('points = ["0x256"]', "speed.points[0]: '0' is not a whole number above 0"),
        ("points = [4]", "speed.points[0]: 4 is not text"),
        ("budget_seconds = 0", "speed.budget_seconds: 0 is not above 0"),
        ("budget_seconds = nan", "speed.budget_seconds: nan is not above 0"),
        ('budget_seconds = "5"', "speed.budget_seconds: '5' is not a number"),
        ('baseline = "spda"', "speed.baseline: 'spda' is neither an attention backend nor a cell's id"),
        ('baseline = "spda"', "nearest valid: 'sdpa'"),
        ('baseline = "*/bf61/sdpa/none"', "unknown dtype 'bf61'; nearest valid: 'bf16'"),
        ('baseline = "llama/bf16"', "speed.baseline: 'llama/bf16' is no id"),
        ("baseline = 1", "speed.baseline: 1 is not text"),
    ],
)
def test_a_table_that_cannot_be_used_names_file_key_and_what_would_be_right(
    line: str, says: str, tmp_path: Path
) -> None:
    path = write(tmp_path, f"{TINY}\n[speed]\n{line}\n")
    with pytest.raises(MatrixError) as raised:
        read_matrix(path, "cpu")
    assert str(raised.value).startswith(f"{path}: speed")
    assert says in str(raised.value)


# -- baselines ---------------------------------------------------------------------------------------------------


@given(CELLS, st.sampled_from(["sdpa", "*/*/*/none", "*/bf16/sdpa/none", "*/*/*/*", "llama/fp32/eager/none"]))
def test_a_baseline_is_a_cell_of_the_matrix_with_the_same_model(cells: list[CellSpec], text: str) -> None:
    baseline = read_baseline("baseline", text)
    able = [c for c in cells if not c.excluded]
    parts = baseline.split("/")
    wanted = ["/".join(o if p == "*" else p for p, o in zip(parts, c.axes.values(), strict=True)) for c in able]
    models = {c.model for c in able} | {w.split("/")[0] for w in wanted}
    if not {c.id for c in able}.issuperset(wanted) or (not baseline.startswith("*") and len(models) > 1):
        with pytest.raises(SettingError, match="baseline"):
            baselines(able, cells, baseline, "baseline")
        return
    found = baselines(able, cells, baseline, "baseline")
    assert found.keys() == {c.id for c in able}
    for cell in able:
        other = found[cell.id]
        assert other.model == cell.model
        assert not other.excluded
        for part, own, his in zip(baseline.split("/"), cell.axes.values(), other.axes.values(), strict=True):
            assert his == (own if part == "*" else part)


def test_eager_needs_no_cell() -> None:
    cell = CellSpec("llama", "fp32", "sdpa", "none", ("speed",))
    assert baselines([cell], [cell], EAGER, "baseline") == {}


def test_a_baseline_that_is_not_there_names_the_nearest() -> None:
    cells = [CellSpec("llama", "fp32", a, "none", ("speed",)) for a in ("eager", "sdpa")]
    with pytest.raises(SettingError) as raised:
        baselines(cells, cells, "*/bf16/sdpa/none", "--baseline")
    assert raised.value.hint == "llama/fp32/sdpa/none"
    other = CellSpec("opt", "fp32", "sdpa", "none", ("speed",))
    with pytest.raises(SettingError) as raised:
        baselines([*cells, other], [*cells, other], "llama/fp32/sdpa/none", "--baseline")
    assert raised.value.hint == "*/fp32/sdpa/none"
    assert "opt/fp32/sdpa/none" in raised.value.problem


def test_another_environment_takes_the_place_of_every_baseline_and_is_kept() -> None:
    settings = SpeedOptions(baseline=None, against="/envs/old/bin/python").over(SpeedSettings(baseline="*/*/sdpa/none"))
    assert (settings.baseline, settings.against) == (EAGER, "/envs/old/bin/python")
    assert settings.stored()["against"] == settings.words()[-1] == "/envs/old/bin/python"
    assert "against" not in settings.request(), "the worker of this environment knows nothing of it"
