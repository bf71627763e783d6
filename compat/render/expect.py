"""What expectations say of a run, as lines for a terminal.

In: an `Account`. Out: text: known failures by reason, unexpected ones by cause, entries that no longer fit. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compat.compare.expect import Account, Entry, Expectations
from compat.records import Cell, Check, Run
from compat.render.figures import plural
from compat.render.inert import label, one_line, visible
from compat.render.patterns import patterns
from compat.render.terminal_lines import Line, paint, wrap

MOST = 12
"""Causes that are shown; the rest is counted."""

Failing = Sequence[tuple[Cell, Check]]


def render_account(
    run: Run,
    account: Account,
    expectations: Expectations | None,
    *,
    update: str,
    width: int = 80,
    color: bool = False,
    whole: bool = True,
) -> str:
    """`account` of `run`, ending in a newline. `update` is the command that accepts what failed; `whole` says that the
    run is of all that its matrix holds, so that an entry that fits nothing is worth a word."""
    lines = list(_lines(run, account, expectations, update, width, whole))
    return "\n".join(paint(line, color) for line in lines) + "\n"


def _lines(
    run: Run, account: Account, book: Expectations | None, update: str, width: int, whole: bool
) -> Iterator[Line]:
    where = f" ({label(str(book.path), 200)})" if book is not None else " (no file)"
    counts = f"{plural(len(account.expected), 'failure')} expected, {len(account.unexpected):,} unexpected"
    bad = bool(account.unexpected)
    yield from wrap(f"Expectations: {counts}{where}.", width, style="bold red" if bad else "bold green")
    known: dict[Entry, dict[str, Cell]] = {}
    for cell, _, entry in account.expected:
        known.setdefault(entry, {})[cell.id] = cell
    for entry, cells in known.items():
        text = f"known {entry.key}: {plural(len(cells), 'cell')}: {one_line(entry.told)}"
        yield from wrap(text, width, indent="    ", first="  ", style="dim")
    yield from _unexpected(run, account.unexpected, width)
    if account.unexpected:
        yield from wrap("Accept them after a look, with a reason:", width, first="  ")
        yield [("   $ ", "dim"), (visible(update), "bold")]
    if account.passing:
        text = f"{len(account.passing):,} passed although a failure is expected; --strict makes that count:"
        yield from wrap(text, width, style="bold yellow")
        for entry, passed in _by_entry(account.passing).items():
            checks = ", ".join(dict.fromkeys(label(k.name, 40) for _, k in passed))
            found = patterns(tuple({c.id: c for c, _ in passed}.values()), run.cells, 3).text
            yield from wrap(
                f"{entry.key}: {found} ({checks}): {one_line(entry.told)}", width, indent="    ", first="  "
            )
    for entry in account.expired:
        text = f"expired on {entry.expires}, counts no more: {entry.key}: {one_line(entry.told)}"
        yield from wrap(text, width, indent="    ", first="  ", style="bold yellow")
    for entry in account.idle if whole else ():
        fits = label(", ".join(entry.cells), 200)
        text = f"{entry.key} fits nothing in this run: {fits}: {one_line(entry.told)}"
        yield from wrap(text, width, indent="    ", first="  ", style="yellow")


def _by_entry(passing: Sequence[tuple[Cell, Check, Entry]]) -> dict[Entry, list[tuple[Cell, Check]]]:
    found: dict[Entry, list[tuple[Cell, Check]]] = {}
    for cell, check, entry in passing:
        found.setdefault(entry, []).append((cell, check))
    return found


def _unexpected(run: Run, failing: Failing, width: int) -> Iterator[Line]:
    causes: dict[tuple[str, str, str], list[tuple[Cell, Check]]] = {}
    for cell, check in failing:
        key = (check.outcome.value, check.name, check.evidence.signature or check.reason)
        causes.setdefault(key, []).append((cell, check))
    ordered = sorted(causes.items(), key=lambda item: -len(item[1]))
    for (outcome, name, _), members in ordered[:MOST]:
        found = patterns([c for c, _ in members], run.cells, 3).text
        head = f"unexpected {outcome} ({label(name, 40)}): {found}: {one_line(members[0][1].reason)}"
        yield from wrap(head, width, indent="    ", first="  ", style="red")
    if left := ordered[MOST:]:
        yield [(f"  and {plural(len(left), 'other cause')}", "dim")]
