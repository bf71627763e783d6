"""What plots and the tables beside them are made of, as plain values. compat.render.exhibits makes them from a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from compat.render.palette import Style


@dataclass(frozen=True)
class Dot:
    """A measured figure of a curve. `text` says it in words; `low` and `high` are its whiskers."""

    x: float
    y: float
    text: str
    low: float | None = None
    high: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Gap:
    """A place of a curve without a figure: why in words, and in one short word for the plot."""

    x: float
    why: str
    brief: str


@dataclass(frozen=True)
class Curve:
    """One backend."""

    style: Style
    dots: tuple[Dot, ...]
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True)
class Panel:
    """One of the small multiples: curves over lengths, each x of them a tick."""

    title: str
    xs: tuple[float, ...]
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Bar:
    """A dot on a row of its own: `text` beside it, `target` a tick to compare it with."""

    style: Style
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    hollow: bool = False
    target: float | None = None


@dataclass(frozen=True)
class BarPanel:
    """Rows of dots, those of one name together."""

    title: str
    rows: tuple[tuple[str, tuple[Bar, ...]], ...]


@dataclass(frozen=True)
class Plot:
    """What is drawn under one heading. All panels share their axes."""

    name: str
    title: str
    about: str
    """What the reader sees: the subject and the units."""
    kind: str
    """As `compat.render.points.Metric.kind`; decides the axis and its labels."""
    panels: tuple[Panel | BarPanel, ...]
    caption: str = ""
    x_title: str = "tokens of the longest row"
    reference: str = ""
    """Label of a line at 1, where there is one."""

    @property
    def styles(self) -> tuple[Style, ...]:
        """Every backend of the plot, once."""
        found: dict[int | str, Style] = {}
        for panel in self.panels:
            bars = [b for _, row in panel.rows for b in row] if isinstance(panel, BarPanel) else panel.curves
            for item in bars:
                found.setdefault(item.style.name, item.style)
        return tuple(found.values())


@dataclass(frozen=True)
class Exhibit:
    """One thing that is shown. `rows` have as many texts as `head`; all texts are inert, none is escaped."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    plot: Plot | None = None
    narrow: tuple[tuple[str, ...], ...] = ()
    """The rows without the intervals that another table has already, for narrow pages."""
    core: bool = True
    """Whether it is shown at once; the others fold, and stay out of a terminal."""


@dataclass(frozen=True)
class Section:
    """Exhibits under one heading, with what the machine did meanwhile."""

    title: str
    exhibits: tuple[Exhibit, ...]
    state: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


Namer = Callable[[str], str]
"""From words to the name of a plot, unlike all before."""
