"""What a bisection found, as frozen structs, and as text for a terminal.

In: nothing but values. Out: the content of bisect.json (`compat-bisect/1`), lines for people.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from compat.records import Record
from compat.render.inert import label, one_line

SCHEMA = "compat-bisect/1"
FILE = "bisect.json"


class Step(Record, frozen=True, omit_defaults=True):
    """One set of versions that was tested, or could not be."""

    name: str
    swapped: dict[str, str]
    """Distribution -> version, where it is not that of the stack before."""
    other: bool | None
    """Whether it behaves otherwise than the stack before; None: it could not be tested."""
    shown: str = ""
    """What was seen; why it could not be tested."""
    seconds: float = 0.0


class Bisection(Record, frozen=True, omit_defaults=True):
    """The content of bisect.json."""

    before: str
    after: str
    cell: str
    question: str
    """`across NAME` or `check NAME`."""
    packages: tuple[str, ...] = ()
    """The packages that change it when they alone are swapped; the first is the one that was searched further."""
    together: tuple[str, ...] = ()
    """Packages that had to move with the first, and why it cannot be told apart from them alone."""
    why_together: str = ""
    first_other: str = ""
    """The first version of the package that behaves otherwise."""
    last_same: str = ""
    untested: tuple[str, ...] = ()
    """Versions between the two that could not be tested."""
    moved_at_boundary: tuple[str, ...] = ()
    """Packages whose version differs too between the last that is the same and the first that is other."""
    steps: tuple[Step, ...] = ()
    nothing: str = ""
    """Why nothing could be named."""
    schema: str = SCHEMA


def encode(found: Bisection) -> bytes:
    """`found` as the bytes of bisect.json."""
    return msgspec.json.format(msgspec.json.encode(found, order="deterministic"), indent=1) + b"\n"


def lines(found: Bisection) -> Iterator[str]:
    """The bisection for a terminal; the last line is the answer."""
    yield f"{label(found.cell)}: {label(found.question)}, from {label(found.before)} to {label(found.after)}"
    for step in found.steps:
        said = {True: "other", False: "same", None: "cannot be tested"}[step.other]
        swapped = ", ".join(f"{label(n)} {label(v)}" for n, v in sorted(step.swapped.items())) or "nothing swapped"
        yield f"  {said:<16} {swapped}" + (f": {one_line(step.shown, 160)}" if step.shown else "")
    yield ""
    yield answer(found)


def answer(found: Bisection) -> str:
    """What changed it, in one line."""
    if found.nothing:
        return f"Nothing named: {one_line(found.nothing, 600)}"
    package = label(found.packages[0])
    text = f"{package} changes it"
    if found.first_other:
        text += f": first in {label(found.first_other)}, not yet in {label(found.last_same)}"
    if found.untested:
        text += f" (between them and not testable: {', '.join(map(label, found.untested))})"
    if found.moved_at_boundary:
        text += f"; {', '.join(map(label, found.moved_at_boundary))} moved with it there"
    elif found.together and found.first_other:
        text += f"; {', '.join(map(label, found.together))} moved with it from stack to stack, and not at this step"
    elif found.together:
        text += f", moved together with {', '.join(map(label, found.together))} ({one_line(found.why_together, 200)})"
    if len(found.packages) > 1:
        text += f". So does, by itself: {', '.join(map(label, found.packages[1:]))}"
    return f"{text}."
