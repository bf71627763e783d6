"""From cells to work: load groups in the order in which they run, and what is left of them. Pure.

In: expanded cells. Out: a `Plan`. A load group shares model, dtype, quantization and mode, so that one load and one
reference serve every attention backend in it. Groups of one model stand together, so that its checkpoint is read once;
inside a group eager comes first, since the others are judged against it.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from itertools import takewhile
from pathlib import Path

from compat.axes import ATTENTION, DTYPES, MODES, PLAIN, QUANTIZATIONS, nearest
from compat.checks import CHECKS
from compat.matrix import CellSpec

_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")  # the innermost


@dataclass(frozen=True)
class LoadGroup:
    """Cells that one load serves."""

    key: str
    model: str
    dtype: str
    quantization: str
    cells: tuple[CellSpec, ...]
    mode: str = PLAIN


@dataclass(frozen=True)
class Plan:
    """What runs, in order, and what does not (each with its reason in `excluded`)."""

    groups: tuple[LoadGroup, ...]
    left_out: tuple[CellSpec, ...]

    @property
    def cells(self) -> tuple[CellSpec, ...]:
        """Every cell that runs, in order."""
        return tuple(c for g in self.groups for c in g.cells)

    @property
    def tasks(self) -> tuple[tuple[CellSpec, str], ...]:
        """Every (cell, check), in order."""
        return tuple((c, check) for c in self.cells for check in c.checks)


def make_plan(cells: Iterable[CellSpec]) -> Plan:
    """Group and order `cells`; the order of models is that of their first appearance."""
    cells = tuple(cells)
    models = {name: i for i, name in enumerate(dict.fromkeys(c.model for c in cells))}

    def position(cell: CellSpec) -> tuple[int, int, int, int, int]:
        return (
            models[cell.model],
            QUANTIZATIONS.names.index(cell.quantization),
            MODES.names.index(cell.mode),
            DTYPES.names.index(cell.dtype),
            ATTENTION.names.index(cell.attention),
        )

    grouped: dict[str, list[CellSpec]] = {}
    for cell in sorted((c for c in cells if not c.excluded), key=position):
        grouped.setdefault(load_key(cell), []).append(cell)
    groups = tuple(
        LoadGroup(key, first.model, first.dtype, first.quantization, members, first.mode)
        for key, members in ((key, tuple(own)) for key, own in grouped.items())
        for first in members[:1]
    )
    return Plan(groups, tuple(c for c in cells if c.excluded))


def select(
    cells: Iterable[CellSpec],
    patterns: Iterable[str] = (),
    checks: Iterable[str] = (),
    tasks: Set[tuple[str, str]] | None = None,
) -> tuple[CellSpec, ...]:
    """Cells whose id fits any of `patterns` (shell wildcards, `*` also spans slashes, `{a,b}` is either; none: all),
    with only `checks`, and of those only `tasks`, (cell id, check) pairs (None: all)."""
    patterns, wanted = tuple(patterns), frozenset(checks)
    chosen = []
    for cell in cells:
        if patterns and not any(fits(cell.id, p) for p in patterns):
            continue
        kept = tuple(c for c in cell.checks if (not wanted or c in wanted) and (tasks is None or (cell.id, c) in tasks))
        if kept:
            chosen.append(replace(cell, checks=kept))
    return tuple(chosen)


def fits(cell: str, pattern: str) -> bool:
    """Whether the id of a cell fits `pattern`, see `select`."""
    return any(fnmatch.fnmatchcase(cell, p) for p in alternatives(pattern))


@cache
def alternatives(pattern: str) -> tuple[str, ...]:
    """What `pattern` stands for, each `{a,b}` in it replaced by one of its parts, as shells do: `x/{a,b}` is `x/a` and
    `x/b`. A brace without a partner or a comma stays as it is."""
    if (found := _BRACES.search(pattern)) is None:
        return (pattern,)
    before, after = pattern[: found.start()], pattern[found.end() :]
    return tuple(dict.fromkeys(p for part in found[1].split(",") for p in alternatives(before + part + after)))


def fits_nothing(
    matrix: Path, cells: Iterable[CellSpec], patterns: Sequence[str], chosen: Sequence[CellSpec] = (), what: str = ""
) -> str:
    """Why `chosen`, of `cells` by `patterns`, is not what was asked for: it is empty, since no cell `what` of `matrix`
    fits, or a pattern beside others fits none. "" where it is. Names the nearest value where a part of such a pattern,
    before its first `*`, is no value of the matrix."""
    cells = tuple(cells)
    unfit = [p for p in patterns if not select(cells, (p,))]
    if chosen and not unfit:
        return ""
    said = f"no cell {what}of {matrix} fits {' '.join(unfit or patterns) or 'it'}"
    said = said if chosen else f"nothing selected: {said}"
    axes = [list(dict.fromkeys(parts)) for parts in zip(*(c.id.split("/")[:4] for c in cells), strict=True)]
    for pattern in (p for given in unfit for p in alternatives(given)):
        plain = takewhile(lambda part: "*" not in part, pattern.split("/"))
        for part, known in zip(plain, axes, strict=False):
            if not fnmatch.filter(known, part) and (hint := nearest(part, known)):
                return f"{said}; {part!r}: nearest: {hint!r}"
    return said


def load_key(cell: CellSpec) -> str:
    """The key of the load group of `cell`: what one load can serve."""
    return f"{cell.model}/{cell.dtype}/{cell.quantization}" + (f"/{cell.mode}" if cell.mode != PLAIN else "")


def shard(
    cells: Iterable[CellSpec], index: int, count: int, seconds: Callable[[CellSpec], float]
) -> tuple[CellSpec, ...]:
    """Part `index` (from 1) of `count` of `cells`, in their order. No load group is cut; groups are handed out by
    falling `seconds` to the part that has least (so the longest part is at most 4/3 of the shortest possible: Graham,
    Bounds on multiprocessing timing anomalies, 1969). The same cells and seconds give the same parts in any order."""
    cells = tuple(cells)
    costs: dict[str, float] = {}
    for cell in sorted(cells, key=lambda c: c.id):  # sums of floats depend on their order
        costs[load_key(cell)] = costs.get(load_key(cell), 0.0) + (0.0 if cell.excluded else seconds(cell))
    loads, members = [0.0] * count, [0] * count
    part: dict[str, int] = {}
    for key in sorted(costs, key=lambda k: (-costs[k], k)):
        least = min(range(count), key=lambda i: (loads[i], members[i], i))
        part[key] = least
        loads[least] += costs[key]
        members[least] += 1
    return tuple(c for c in cells if part[load_key(c)] == index - 1)


def by_exclusive(plan: Plan, models: Set[str] = frozenset()) -> tuple[Plan, Plan]:
    """(checks that may run beside others, checks that need the machine to themselves), each as a plan of its own; all
    checks of `models` are among the latter."""
    exclusive = {(c.id, check) for c, check in plan.tasks if CHECKS[check].exclusive or c.model in models}
    shared = {(cell.id, check) for cell, check in plan.tasks} - exclusive
    return without(plan, exclusive), without(plan, shared)


def without(plan: Plan, done: Set[tuple[str, str]]) -> Plan:
    """What is left of `plan` when the (cell id, check) pairs in `done` have their answers: resuming is a plan too."""
    groups = []
    for group in plan.groups:
        cells = tuple(
            replace(cell, checks=rest)
            for cell in group.cells
            if (rest := tuple(c for c in cell.checks if (cell.id, c) not in done))
        )
        if cells:
            groups.append(replace(group, cells=cells))
    return Plan(tuple(groups), plan.left_out)
