"""The histories of a site: the runs of each place in order of time, the outcome of every cell in each of them.

In: entries and their letters, one run after another. Out: places with their cells as columns and one text a cell, a
letter a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compat.records import BAD, Outcome
from compat.render.grids import AXES, in_order
from compat.render.groups import QUIET
from compat.render.summary import READING_ORDER
from compat.render.symbols import Symbol, symbol

from .changes import KINDS, Change, change
from .columns import ABSENT, OUTCOMES, Columns, Key, columns
from .entries import Entry, Place


@dataclass
class Gathered:
    """What is known of a place while runs are read."""

    place: Place
    entries: list[Entry] = field(default_factory=list)
    axes: dict[Key, Mapping[str, str]] = field(default_factory=dict)
    found: dict[str, dict[Key, str]] = field(default_factory=dict)
    """Digest of a run -> cell -> letter."""

    def add(self, entry: Entry, axes: Mapping[Key, Mapping[str, str]], letters: dict[Key, str]) -> None:
        """Take one more run; the same run twice counts once."""
        if entry.digest not in self.found:
            self.entries.append(entry)
            self.found[entry.digest] = letters
            for key, value in axes.items():
                self.axes.setdefault(key, value)


@dataclass(frozen=True)
class History:
    """The runs of a place, oldest first, and what came of each cell in each of them."""

    place: Place
    entries: tuple[Entry, ...]
    latest: int
    """Which run stands for the place: the last that asked for the whole matrix, else the last."""
    table: Columns
    letters: tuple[str, ...]
    """One text a cell, one letter a run."""

    @property
    def shown(self) -> Entry:
        """The run that stands for the place."""
        return self.entries[self.latest]

    @property
    def before(self) -> Entry | None:
        """The run before it that asked for the whole matrix."""
        found = self._before()
        return None if found is None else self.entries[found]

    def _before(self) -> int | None:
        return next((i for i in range(self.latest - 1, -1, -1) if self.entries[i].whole), None)

    def changes(self) -> tuple[tuple[Change, int], ...]:
        """What changed from the run before, with the number of cells."""
        base = self._before()
        if base is None:
            return ()
        kinds = Counter(change(OUTCOMES.get(h[base]), OUTCOMES.get(h[self.latest])) for h in self.letters)
        return tuple((kind, kinds[kind]) for kind in KINDS if kinds[kind])

    def models(self) -> dict[str, Tally]:
        """Model -> what the shown run says of its cells, in the order of models."""
        axis = self.table.axes.index("model")
        names = self.table.values[axis]
        counts: dict[int, Counter[Outcome]] = {}
        for numbers, history in zip(self.table.cells, self.letters, strict=True):
            if history[self.latest] != ABSENT:
                counts.setdefault(numbers[axis], Counter())[OUTCOMES[history[self.latest]]] += 1
        return {names[n]: Tally.of(counts[n]) for n in sorted(n for n in counts if n >= 0)}

    @property
    def content(self) -> dict[str, Any]:
        """The history as JSON of a site."""
        return {
            "stack": self.place.stack,
            "device": self.place.device,
            "matrix": self.place.matrix,
            "runs": [
                {
                    "digest": e.digest,
                    "name": e.name,
                    "started": e.time,
                    "whole": e.whole,
                    "complete": e.head.run.complete,
                }
                for e in self.entries
            ],
            "shown": self.latest,
            **self.table.content,
            "history": self.letters,
        }


@dataclass(frozen=True)
class Tally:
    """Cells counted by outcome, in reading order."""

    counts: tuple[tuple[Outcome, int], ...]

    @staticmethod
    def of(counted: Mapping[Outcome, int]) -> Tally:
        """From any mapping."""
        return Tally(tuple((o, counted[o]) for o in READING_ORDER if counted.get(o)))

    @property
    def passed(self) -> int:
        """Cells that pass."""
        return dict(self.counts).get(Outcome.PASS, 0)

    @property
    def asked(self) -> int:
        """Cells of which something was asked: all but the refused, missing and left out."""
        return sum(n for o, n in self.counts if o not in QUIET)

    @property
    def quiet(self) -> int:
        """The others."""
        return sum(n for o, n in self.counts if o in QUIET)

    @property
    def bad(self) -> int:
        """Cells not to use."""
        return sum(n for o, n in self.counts if o in BAD)

    @property
    def worst(self) -> Symbol:
        """The mark of the worst outcome among those that were asked; where none was, of the first that is there."""
        asked = [o for o, _ in self.counts if o not in QUIET]
        rest = [o for o in asked if o is not Outcome.PASS]
        return symbol((rest or asked or [o for o, _ in self.counts] or [None])[0])


def histories(gathered: Sequence[Gathered]) -> tuple[History, ...]:
    """The places, sorted by stack, device and matrix; in each the models of the shown run come first."""
    ordered = sorted(
        gathered, key=lambda g: (g.place.stack != "current", g.place.stack, g.place.device, g.place.matrix)
    )
    return tuple(_history(g) for g in ordered)


def _history(gathered: Gathered) -> History:
    entries = tuple(sorted(gathered.entries, key=lambda e: e.order))
    whole = [i for i, e in enumerate(entries) if e.whole]
    latest = whole[-1] if whole else len(entries) - 1
    first = gathered.found[entries[latest].digest]
    keys = _sorted([*first, *(k for k in gathered.axes if k not in first)], gathered.axes)
    columned = columns([(key[0], gathered.axes[key]) for key in keys])
    found = [gathered.found[e.digest] for e in entries]
    return History(
        gathered.place, entries, latest, columned, tuple("".join(f.get(k, ABSENT) for f in found) for k in keys)
    )


def _sorted(keys: list[Key], axes: Mapping[Key, Mapping[str, str]]) -> list[Key]:
    places = {
        name: {v: i for i, v in enumerate(in_order(name, (axes[k].get(name, "") for k in keys)))}
        for name in ("model", "dtype", "quantization", "attention")
    }
    extras = [tuple((n, v) for n, v in axes[k].items() if n not in AXES) for k in keys]
    order = range(len(keys))
    ranked = sorted(
        order, key=lambda i: (places["model"][axes[keys[i]].get("model", "")], extras[i], *(
            places[n][axes[keys[i]].get(n, "")] for n in ("dtype", "quantization", "attention")), i)
    )  # fmt: skip
    return [keys[i] for i in ranked]
