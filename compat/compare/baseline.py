"""A baseline: what failed in a run, written down as expectations, so that only what is new counts from then on. Pure.

In: a run, and the text of the file as it is. Out: the text as it will be, and what changed. Entries that still say
something true keep their text to the letter, comments included; entries of which nothing fails any more go; what fails
and no entry expects is appended, one entry for each cause, with the run's own reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compat.compare.expect import EXPECTABLE, Entry, Expectations
from compat.records import Check, Outcome, Run
from compat.render.inert import one_line

_HEADER = re.compile(r"\s*\[\[\s*expect\s*\]\]\s*(#.*)?")


@dataclass(frozen=True)
class Update:
    """A baseline file as it will be. Texts are `cell: check outcome`."""

    text: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    """Reasons of entries of which nothing fails any more, with their keys."""
    kept: int
    """Entries."""


def updated(run: Run, old: str = "", book: Expectations | None = None) -> Update:
    """The baseline of `run` from the file's text `old`, which `book` was read from (made for the run by `on`)."""
    entries = book.entries if book else ()
    preamble, parts = _parts(old, len(entries))
    failing = [(c.id, k) for c in run.cells for k in c.checks if k.outcome in EXPECTABLE]
    stays = [_stays(run, book, entry, failing) if book else True for entry in entries]
    lines = [preamble.rstrip("\n")] if preamble.strip() else [_opening(run)]
    lines += [part.rstrip("\n") for part, stay in zip(parts, stays, strict=True) if stay]
    left = [(c, k) for c, k in failing if book is None or book.covering(c, k) is None]
    lines += list(_entries(run.run.device, left))
    return Update(
        text="\n\n".join(lines) + "\n",
        added=tuple(f"{c}: {k.name} {k.outcome.value}" for c, k in left),
        removed=tuple(f"{e.key}: {e.told}" for e, stay in zip(entries, stays, strict=True) if not stay),
        kept=sum(stays),
    )


def _stays(run: Run, book: Expectations, entry: Entry, failing: Sequence[tuple[str, Check]]) -> bool:
    """Whether `entry` is not for this run (another device, other packages, cells that it lacks) or still expects a
    failure of it; what is expired goes."""
    if not entry.applies(book.device, book.packages):
        return True
    if entry.expired(book.today):
        return False
    asked = any(entry.fits(c.id, k.name) and k.outcome is not Outcome.NOT_RUN for c in run.cells for k in c.checks)
    return not asked or any(k.outcome in entry.outcomes and entry.fits(c, k.name) for c, k in failing)


def _parts(text: str, count: int) -> tuple[str, list[str]]:
    """What stands before the first entry, and the text of each entry with the comments right above it."""
    lines = text.splitlines(keepends=True)
    starts = []
    for i, line in enumerate(lines):
        if _HEADER.fullmatch(line.rstrip("\n")):
            start = i
            while start and lines[start - 1].lstrip().startswith("#"):
                start -= 1
            starts.append(start)
    if len(starts) != count:  # [[expect]] inside a text of several lines: nothing is kept to the letter by guessing
        raise ValueError(
            f"{count} entries, but {len(starts)} lines that read [[expect]]: write each on a line of its own"
        )
    if not starts:
        return text, []
    ends = [*starts[1:], len(lines)]
    return "".join(lines[: starts[0]]), ["".join(lines[a:b]) for a, b in zip(starts, ends, strict=True)]


def _opening(run: Run) -> str:
    device = f"device {one_line(run.run.device, 40)}, run {one_line(run.run.id, 80)}"
    return f"# What is known to fail, {device}. Read each entry before you commit it: a reason, an issue, a date.\n" + (
        "# Form: docs/gate.md. Update: compat baseline update RUN --out THIS"
    )


def _entries(device: str, failing: Sequence[tuple[str, Check]]) -> Iterator[str]:
    """One entry for each outcome and cause, cells and checks in the order of the run."""
    found: dict[tuple[Outcome, str, str], list[str]] = {}
    reasons: dict[tuple[Outcome, str, str], str] = {}
    for cell, check in failing:
        key = (check.outcome, check.name, check.evidence.signature or re.sub(r"\d+(\.\d+)?", "#", check.reason))
        found.setdefault(key, []).append(cell)
        reasons.setdefault(key, one_line(check.reason, 200) or "no reason recorded")
    for (outcome, check_name, _), cells in found.items():
        rows = "".join(f"    {_text(_literal(c))},\n" for c in cells)
        yield "\n".join([
            "[[expect]]",
            f"cells = [\n{rows}]",
            f"checks = [{_text(check_name)}]",
            f"outcome = {_text(outcome.value)}",
            *([f"device = {_text(device)}"] if device in ("cpu", "cuda") else []),
            f"reason = {_text(reasons[outcome, check_name, _])}",
        ])  # fmt: skip


def _literal(text: str) -> str:
    """A pattern that fits `text` alone."""
    return re.sub(r"([*?\[])", r"[\1]", text)


def _text(text: str) -> str:
    """`text` as a TOML basic string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
