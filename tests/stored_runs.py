"""Hypothesis strategies for what is stored: checks, journals, runs."""

from __future__ import annotations

from hypothesis import strategies as st

from compat.checks import CHECKS
from compat.records import (
    Cell,
    Check,
    Environment,
    Evidence,
    ExceptionInfo,
    Gpu,
    Measurement,
    Outcome,
    Run,
    RunInfo,
    summarize,
)
from compat.store import JOURNAL_SCHEMA, Header, Line, Planned, make_cell

from .matrix_files import CELLS

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
FACTS = st.dictionaries(
    TEXT,
    st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), NUMBER, TEXT),
                 lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(TEXT, inner, max_size=2)),
                 max_leaves=4),
    max_size=3,
)  # fmt: skip
MEASUREMENT = st.builds(
    Measurement,
    name=TEXT,
    unit=TEXT,
    better=st.sampled_from(["lower", "higher", "equal", "none"]),
    values=st.lists(st.one_of(st.none(), NUMBER), max_size=4).map(tuple),
    value=st.one_of(st.none(), NUMBER),
    ci95=st.one_of(st.none(), st.tuples(NUMBER, NUMBER)),
    method=TEXT,
)
EVIDENCE = st.builds(
    Evidence,
    kernels=st.dictionaries(TEXT, st.integers(0, 1000), max_size=2),
    exception=st.one_of(st.none(), st.builds(ExceptionInfo, type=TEXT, message=TEXT, traceback=TEXT)),
    signature=TEXT,
    seed=st.one_of(st.none(), st.integers(0, 9)),
    facts=FACTS,
)
OUTCOME = st.sampled_from(Outcome)


def checks(name: str) -> st.SearchStrategy[Check]:
    """A check of that name with any outcome and evidence."""
    return st.builds(
        Check,
        name=st.just(name),
        outcome=OUTCOME,
        reason=TEXT,
        seconds=st.floats(0, 1e4).map(lambda s: round(s, 3)),
        measurements=st.lists(MEASUREMENT, max_size=2).map(tuple),
        evidence=EVIDENCE,
    )


CHECK = st.sampled_from(CHECKS.names).flatmap(checks)


@st.composite
def journals(draw: st.DrawFn) -> tuple[Header, list[Line]]:
    """A header and results for some of what it plans, in any order."""
    cells = draw(CELLS)
    planned = tuple(Planned(id=c.id, axes=c.axes, checks=c.checks, excluded=c.excluded) for c in cells)
    info = RunInfo(id="run", started="2026-01-01T00:00:00Z", settings=draw(FACTS))
    header = Header(journal=JOURNAL_SCHEMA, run=info, environment=Environment(python=draw(TEXT)), planned=planned)
    tasks = [(p.id, c) for p in planned if not p.excluded for c in p.checks]
    done = draw(st.lists(st.sampled_from(tasks), unique=True, max_size=8)) if tasks else []
    lines = [Line(cell=cell, check=draw(checks(name)), effective={"how": "loaded"} if name == "load" else {})
             for cell, name in done]  # fmt: skip
    return header, lines


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Any run."""
    cells: list[Cell] = []
    for cell in draw(CELLS)[:6]:
        own = [draw(checks(name)) for name in cell.checks[:2]]
        cells.append(make_cell(Planned(id=cell.id, axes=cell.axes, checks=cell.checks), own, draw(FACTS)))
    return Run(
        run=RunInfo(id=draw(TEXT), started="2026-01-01T00:00:00Z", argv=(draw(TEXT),), settings=draw(FACTS)),
        environment=Environment(gpus=(Gpu(name=draw(TEXT)),), packages={"torch": draw(TEXT)}, volatile=draw(FACTS)),
        cells=tuple(cells),
        summary=summarize(cells, draw(st.floats(0, 1e6))),
    )
