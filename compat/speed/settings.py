"""What the speed check is asked to measure: a grid of points, a budget, a baseline. Pure.

In: the `[speed]` table of a matrix, or the options of `compat speed`. Out: `SpeedSettings`, and each cell's baseline.
A point is written `4x2048@0.3`: 4 rows of which the longest has 2048 tokens, with 30% of all positions padding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compat.axes import ALL_AXES, ATTENTION, AXES, DTYPES, MODES, PLAIN, QUANTIZATIONS, nearest

if TYPE_CHECKING:
    from compat.matrix import CellSpec

KEYS = ("lengths", "batches", "padding", "points", "budget_seconds", "baseline")
"""Keys of a `[speed]` table."""

EAGER = "eager"
"""The baseline that every group has."""

PATIENCE_SECONDS = 30.0
"""What a comparison may take beyond its budget, before a worker counts as hanging."""

_ITEM = re.compile(r"(?:(?P<batch>\d+)x)?(?P<length>\d+)(?:@(?P<padding>\d*\.?\d+)(?P<percent>%?))?")


class SettingError(ValueError):
    """A setting that cannot be used: `key`, what is wrong with it, and the nearest that could be meant."""

    def __init__(self, key: str, problem: str, hint: str = "") -> None:
        super().__init__(f"{key}: {problem}" + (f"; nearest valid: {hint!r}" if hint else ""))
        self.key, self.problem, self.hint = key, problem, hint


@dataclass(frozen=True, order=True)
class Point:
    """`batch` rows, `length` tokens in the longest, `padding` as a share of all positions."""

    batch: int
    length: int
    padding: float = 0.0

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}@{self.padding:g}"

    @property
    def most_padding(self) -> float:
        """The largest share that pads can have: one row has none, and every other row has a token."""
        return (self.batch - 1) * (self.length - 1) / (self.batch * self.length)

    @property
    def possible(self) -> bool:
        """Whether rows of such lengths exist."""
        return self.padding <= self.most_padding


@dataclass(frozen=True)
class Item:
    """A point as it was written; what it leaves out is taken from the grid's batches and padding shares."""

    length: int
    batch: int | None = None
    padding: float | None = None


@dataclass(frozen=True)
class Grid:
    """Items, each combined with every batch and padding share that it does not name itself."""

    items: tuple[Item, ...]
    batches: tuple[int, ...] = (1,)
    padding: tuple[float, ...] = (0.0,)

    def points(self, key: str) -> tuple[Point, ...]:
        """Each point once, in the order written; combinations that no rows can have are left out. Raises SettingError
        for an item of which nothing is left."""
        found: dict[Point, None] = {}
        for item in self.items:
            batches = self.batches if item.batch is None else (item.batch,)
            shares = self.padding if item.padding is None else (item.padding,)
            own = [Point(b, item.length, p) for b in batches for p in shares]
            possible = [p for p in own if p.possible]
            if not possible:
                most = math.floor(max(p.most_padding for p in own) * 100) / 100
                why = f"the longest row has no padding, so the share is at most {most:g}; more rows allow more"
                raise SettingError(key, f"{own[0]} cannot be: {why}")
            found |= dict.fromkeys(possible)
        return tuple(found)


DEFAULT_GRID = Grid((Item(128), Item(256)), (4,), (0.0, 0.3))
"""What `compat speed` measures where neither matrix nor user names a grid: it fits every probe."""


@dataclass(frozen=True)
class SpeedSettings:
    """The speed check's settings. No grid: the check's own single point."""

    grid: Grid | None = None
    budget_seconds: float | None = None
    """Of one comparison (a phase at a point); None: the check's own."""
    baseline: str = EAGER
    """`eager`, or a cell's id with `*` for parts that are those of the cell compared with it."""
    against: str = ""
    """Another environment's Python, in which the same cell is the baseline; "" for a baseline in this one."""
    extras: bool = False
    """Whether to measure beside prefill and decode: pipeline against generate, energy, attention alone."""

    @property
    def points(self) -> tuple[Point, ...]:
        """The points of the grid; () stands for the check's own."""
        return () if self.grid is None else self.grid.points("points")

    def request(self) -> dict[str, Any]:
        """What a worker is told, but for a baseline that is a cell: only what is set; {} for the check's own."""
        said = {
            "points": [[p.batch, p.length, p.padding] for p in self.points],
            "budget_seconds": self.budget_seconds,
            "extras": self.extras,
        }
        return {key: value for key, value in said.items() if value}

    @property
    def patience_seconds(self) -> float:
        """What a grid adds to the time limit of the speed check: each point has two phases, and each of them a budget,
        warm-up on both sides and, where extras are asked for, more to measure."""
        budget = self.budget_seconds or 0.0
        return len(self.points) * 2 * (PATIENCE_SECONDS + 4 * budget)

    def stored(self) -> dict[str, Any]:
        """What run.json and a resumed run compare; {} for settings that are all the check's own."""
        named = {"baseline": self.baseline} if self.baseline != EAGER else {}
        return self.request() | named | ({"against": self.against} if self.against else {})

    def words(self) -> list[str]:
        """The options of `compat speed` that ask for these settings."""
        words = ["--grid", ",".join(map(str, self.points))] if self.points else []
        if self.budget_seconds is not None:
            words += ["--budget", f"{self.budget_seconds:g}"]
        words += ["--baseline", self.baseline] if self.baseline != EAGER else []
        return words + (["--against", self.against] if self.against else [])


@dataclass(frozen=True)
class SpeedOptions:
    """What a user of `compat speed` asks for; None leaves what the matrix says."""

    items: tuple[Item, ...] | None = None
    batches: tuple[int, ...] | None = None
    padding: tuple[float, ...] | None = None
    budget_seconds: float | None = None
    baseline: str | None = None
    against: str = ""

    def over(self, settings: SpeedSettings) -> SpeedSettings:
        """`settings` with what was asked for in their place, extras included. `items` start a new grid, with one row
        and no padding unless said otherwise; batches and padding alone change the matrix's. Raises SettingError."""
        grid = settings.grid or DEFAULT_GRID
        if self.items is not None:
            grid = Grid(self.items)
        if self.batches is not None:
            grid = replace(grid, batches=self.batches)
        if self.padding is not None:
            grid = replace(grid, padding=self.padding)
        grid.points("--grid")
        return SpeedSettings(
            grid=grid,
            budget_seconds=self.budget_seconds or settings.budget_seconds,
            baseline=EAGER if self.against else self.baseline or settings.baseline,
            against=self.against,
            extras=True,
        )


# -- reading -----------------------------------------------------------------------------------------------------


def read_item(key: str, text: str) -> Item:
    """`4x2048@0.3`, `4x2048`, `2048@30%` or `2048`. Raises SettingError with what may have been meant."""
    found = _ITEM.fullmatch(text.strip())
    if found is None:
        raise SettingError(key, f"{text!r} is no point like 4x2048@0.3 (rows x tokens @ padding share)", _mended(text))
    share = None
    if found["padding"] is not None:
        try:
            share = read_share(key, found["padding"] + found["percent"])
        except SettingError as error:
            before = text.strip().rpartition("@")[0]
            raise SettingError(key, f"{text!r}: {error.problem}", error.hint and f"{before}@{error.hint}") from error
    batch = None if found["batch"] is None else read_count(key, found["batch"])
    return Item(read_count(key, found["length"]), batch, share)


def _mended(text: str) -> str:
    """`text` with the usual slips put right, or "" where that is no point either."""
    parts = re.split(r"\s*[xX*:]\s*", text.strip())
    mended = re.sub(r"\s*[@pP,]\s*", "@", "x".join(parts)).replace(" ", "")
    return mended if _ITEM.fullmatch(mended) and mended != text.strip() else ""


def read_count(key: str, text: str) -> int:
    """A whole number above 0. Raises SettingError."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise SettingError(key, f"{text!r} is not a whole number above 0")
    return int(text)


def read_share(key: str, text: str) -> float:
    """`0.3` or `30%`: at least 0 and below 1. Raises SettingError."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    return check_share(key, share, text)


def check_share(key: str, share: float, shown: object) -> float:
    """`share` when it is one: at least 0 and below 1. Raises SettingError."""
    if 0 <= share < 1:
        return float(share)
    hint = f"{share / 100:g}" if 2 <= share < 100 else ""
    raise SettingError(key, f"{shown!r} is not a share of at least 0 and below 1", hint)


def from_table(table: Mapping[str, Any]) -> SpeedSettings:
    """A `[speed]` table. Raises SettingError with the key below `speed`."""
    for name in table:
        if name not in KEYS:
            raise SettingError(name, "unknown key", nearest(name, KEYS))
    lengths = tuple(_count(f"lengths[{i}]", v) for i, v in enumerate(_list(table, "lengths")))
    points = tuple(_point(f"points[{i}]", v) for i, v in enumerate(_list(table, "points")))
    batches = tuple(_count(f"batches[{i}]", v) for i, v in enumerate(_list(table, "batches")))
    padding = tuple(_share(f"padding[{i}]", v) for i, v in enumerate(_list(table, "padding")))
    items = (*(Item(n) for n in lengths), *points)
    if not items and (batches or padding):
        raise SettingError("lengths", "is missing: batches and padding are combined with lengths or points")
    grid = Grid(items, batches or (1,), padding or (0.0,))
    for i, item in enumerate(items):
        own = i - len(lengths)
        replace(grid, items=(item,)).points(f"points[{own}]" if own >= 0 else f"lengths[{i}]")
    budget = table.get("budget_seconds")
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int | float)):
        raise SettingError("budget_seconds", f"{budget!r} is not a number")
    if budget is not None and not 0 < budget < math.inf:
        raise SettingError("budget_seconds", f"{budget!r} is not above 0")
    return SpeedSettings(grid if items else None, budget, read_baseline("baseline", table.get("baseline", EAGER)))


def _list(table: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = table.get(key, [])
    if not isinstance(value, list):
        raise SettingError(key, f"{value!r} is a {type(value).__name__}, not a list")
    if key in table and not value:
        raise SettingError(key, "is empty")
    return value


def _count(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(key, f"{value!r} is not a whole number above 0")
    return value


def _share(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingError(key, f"{value!r} is not a number")
    return check_share(key, value, value)


def _point(key: str, value: Any) -> Item:
    if not isinstance(value, str):
        raise SettingError(key, f'{value!r} is not text like "4x2048@0.3"')
    return read_item(key, value)


# -- baselines ---------------------------------------------------------------------------------------------------


def read_baseline(key: str, value: Any) -> str:
    """`eager`, or a cell's id of which any part may be `*`: an attention backend alone stands for `*/*/BACKEND/*`.
    A baseline of four parts is a plain cell. Raises SettingError."""
    if not isinstance(value, str):
        raise SettingError(key, f"{value!r} is not text")
    if value == EAGER:
        return value
    parts = value.split("/")
    if len(parts) == 1:
        if value not in ATTENTION:
            problem = f"{value!r} is neither an attention backend nor a cell's id"
            raise SettingError(key, problem, nearest(value, ATTENTION.names))
        return f"*/*/{value}/*"
    if len(parts) not in (len(AXES), len(ALL_AXES)):
        raise SettingError(
            key, f"{value!r} is no id: MODEL/DTYPE/ATTENTION/QUANTIZATION[/MODE], with * for `as the cell's own`"
        )
    known = (None, DTYPES.names, ATTENTION.names, QUANTIZATIONS.names, MODES.names)
    for axis, part, names in zip(ALL_AXES, parts, known, strict=False):
        if names is not None and part != "*" and part not in names:
            raise SettingError(key, f"{value!r}: unknown {axis} {part!r}", nearest(part, names))
    return value


def baselines(cells: Iterable[CellSpec], known: Iterable[CellSpec], baseline: str, key: str) -> dict[str, CellSpec]:
    """Cell id -> the cell that it is compared with, for each of `cells`; {} for `eager`.

    A cell that fits the baseline is its own. Raises SettingError where `known` (the matrix) has no such cell, or one of
    another model.
    """
    if baseline == EAGER:
        return {}
    runs = {cell.id: cell for cell in known if not cell.excluded}
    found = {}
    for cell in cells:
        own = [getattr(cell, axis) for axis in ALL_AXES]
        parts = [mine if part == "*" else part for part, mine in zip(baseline.split("/"), own, strict=False)]
        wanted = "/".join(parts[: len(AXES)] if parts[len(AXES) :] == [PLAIN] else parts)
        model = wanted.split("/")[0]
        if wanted not in runs:
            raise SettingError(
                key, f"the matrix has no cell {wanted!r} to compare {cell.id} with", nearest(wanted, runs)
            )
        if model != cell.model:
            problem = f"{baseline!r} is of model {model!r}, and {cell.id} is of another; choose cells of one model"
            raise SettingError(key, problem, "/".join(["*", *baseline.split("/")[1:]]))
        found[cell.id] = runs[wanted]
    return found
