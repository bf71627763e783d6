"""The story of a cell as blocks of inert text, from which every format is made.

In: a `Story`, whose run is not trusted. Out: blocks: a title, and pairs, tables, code in their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from compat.axes import AXES
from compat.bounds import Found, Judged
from compat.compare.history import Past
from compat.records import Cell, Evidence, Measurement, Outcome, point_name
from compat.render.evidence import begins, kernels, sharper, smallest
from compat.render.figures import figure, plain, plural
from compat.render.inert import label, one_line, visible
from compat.render.summary import HEADLINE_PACKAGES, environment, headline_place
from compat.render.symbols import symbol
from compat.story import CheckStory, Story

TRACEBACK_LINES = 30
"""Lines of a traceback that are shown, the last ones."""

QUIET = frozenset({Outcome.PASS, Outcome.NOT_RUN})
"""Outcomes of a check that are told in one line unless it is asked for by name."""


WRITES = "compat explain "
"""What the command begins with that writes the script of a check where there is none yet."""


@dataclass(frozen=True)
class Pair:
    """A name and what it is."""

    name: str
    text: str


@dataclass(frozen=True)
class Table:
    """Rows under a head; the texts are of any length but one line each."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Code:
    """Text to be shown as it is: a command or a traceback."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Block:
    """A part of the story. `outcome` colours its title."""

    title: str
    items: tuple[Pair | Table | Code, ...]
    outcome: Outcome | None = None


def blocks(story: Story, check: str = "", scripts: Sequence[tuple[str, str]] = ()) -> Iterator[Block]:
    """The story; with `check` of that check alone, with every row. `scripts` are (check, where its script is)."""
    cell = story.cell
    shown = [c for c in story.checks if (c.check.name == check if check else c.check.outcome not in QUIET)]
    alone = cell.reason and all(c.check.outcome is not cell.outcome for c in shown)
    pairs = [Pair("why", one_line(cell.reason, 1000))] if alone else []
    yield Block(f"{label(cell.id, 300)}: {symbol(cell.outcome).word}", (*pairs, *_where(story)), cell.outcome)
    yield Block("Asked for, and what ran", tuple(_asked(cell)))
    places = dict(scripts)
    for one in shown:
        yield _check(one, bool(check), places.get(one.check.name, ""))
    if not check:
        yield from _rest(story, shown)
    yield from _past(story)


def _where(story: Story) -> Iterator[Pair]:
    known = dict(environment(story.run))
    yield Pair("on", headline_place(story.run))
    for name in ("device", "packages", "python", "run", "stack", "matrix"):
        if known.get(name):
            yield Pair(name, known[name])


def _asked(cell: Cell) -> Iterator[Pair | Table]:
    effective = cell.effective
    axes = [*(a for a in AXES if a in cell.axes), *(a for a in cell.axes if a not in AXES)]
    rows = [(label(a, 40), label(cell.axes[a], 80), _held(a, cell)) for a in axes]
    yield Table(("axis", "asked for", "held after loading"), tuple(rows))
    known = {"kernels": "kernels of a forward", "how": "backend reached by", "quantized_modules": "quantized modules"}
    for key, name in known.items():
        value = effective.get(key)
        if value not in (None, "", []):
            text = ", ".join(map(str, value)) if isinstance(value, list) else plain(value, 200)
            yield Pair(name, one_line(text))
    for key, value in effective.items():
        if key not in known and key not in (*AXES, "sharper"):
            yield Pair(label(key, 40), one_line(plain(value, 200)))
    if link := sharper(cell):
        yield Pair("in a finer dtype", link)


def _held(axis: str, cell: Cell) -> str:
    load = cell.check("load")
    if axis == "model":
        return one_line(str(load.evidence.facts.get("class") or "-"), 80) if load is not None else "-"
    value = cell.effective.get(axis)
    if value is None:
        return "-"
    text = one_line(plain(value, 80), 80) or "-"
    return text if value == cell.axes.get(axis) else f"{text} (not as asked)"


def _check(told: CheckStory, every: bool, script: str) -> Block:
    check, evidence = told.check, told.check.evidence
    items: list[Pair | Table | Code] = []
    if check.reason:
        items.append(Pair("why", one_line(check.reason, 1000)))
    if told.today is not None:
        items.append(Pair("by the criteria of this compat", symbol(told.today).word))
    if check.attempts > 1:
        items.append(Pair("attempts", str(check.attempts)))
    disturbed = evidence.facts.get("disturbed")
    if isinstance(disturbed, Mapping):
        items.append(Pair("disturbed at first", one_line(str(disturbed.get("reason", "")), 1000)))
    items += _cause(evidence)
    items += _exception(told)
    items += [_finding(f) for f in told.findings]
    items += _bounds(told.rows, every)
    if told.unjudged and check.measurements:
        items.append(Pair("bounds", f"this compat has none for it: {one_line(told.unjudged, 300)}"))
        items.append(Table(("measurement", "figure"), tuple((_name(m), _figure(m)) for m in check.measurements)))
    if every:
        items += _reported(told)
    if script.startswith(WRITES):
        items.append(Code(visible(script), "sh"))
    elif script:
        items.append(Pair("script that shows it", one_line(script, 600)))
    items.append(Code(visible(evidence.repro), "sh") if evidence.repro else Pair("again", "no command was recorded"))
    return Block(f"{label(check.name, 60)}: {symbol(check.outcome).word}", tuple(items), check.outcome)


def _cause(evidence: Evidence) -> Iterator[Pair]:
    named = (
        ("first module that leaves", begins(evidence)),
        ("smallest failing call", smallest(evidence)),
        ("its kernels", kernels(evidence)),
        ("kernels seen", ", ".join(label(k) for k in sorted(evidence.kernels)[:12])),
        ("seed", "" if evidence.seed is None else str(evidence.seed)),
    )
    yield from (Pair(name, text) for name, text in named if text)


def _exception(told: CheckStory) -> Iterator[Pair | Code]:
    exception = told.check.evidence.exception
    if exception is None:
        return
    yield Pair("raised", one_line(f"{exception.type}: {exception.message}", 1000))
    if told.refusal is not None:
        means = f"row {told.refusal.id} of compat/refusals.toml: {told.refusal.meaning} ({told.refusal.outcome.value})"
        yield Pair("recognised as", means)
    elif exception.refusal:
        yield Pair("recognised as", f"row {label(exception.refusal)}, which this compat does not have")
    else:
        yield Pair("recognised as", "nothing that compat/refusals.toml knows")
    lines = visible(exception.traceback, lines=True).rstrip().split("\n")
    if exception.traceback.strip():
        cut = len(lines) - TRACEBACK_LINES
        yield Code("\n".join([f"... {plural(cut, 'line')} above", *lines[-TRACEBACK_LINES:]] if cut > 0 else lines))


def _finding(found: Found) -> Pair:
    text = f"{one_line(found.reason, 300)} ({symbol(found.outcome).word}; {one_line(found.source, 400)})"
    return Pair(f"finding {found.name}", text)


def _bounds(rows: Sequence[Judged], every: bool) -> Iterator[Pair | Table]:
    """All rows as a table; the source of those that a reader wants to doubt."""
    if not rows:
        return
    table = [
        (
            _name(r.measured) if r.measured is not None else r.rule.measurement,
            _figure(r.measured) if r.measured is not None else "not measured",
            f"{r.sign} {figure(r.bound)}".strip() + (f" ({r.rule.passes:.4g} x stored)" if r.rule.band else ""),
            symbol(r.outcome).word + (" (guard)" if r.rule.guard else " (of figures only)" if r.rule.doubt else ""),
        )
        for r in sorted(rows, key=lambda r: r.outcome is Outcome.PASS)
    ]
    yield Table(("measurement", "figure", "pass", "is"), tuple(table))
    broken = [r for r in rows if every or r.outcome is not Outcome.PASS]
    told = dict.fromkeys((r.rule.measurement, r.rule.source) for r in broken)
    for name, source in told:
        yield Pair(f"bound of {name}", one_line(source, 600))


def _reported(told: CheckStory) -> Iterator[Table]:
    named = {r.rule.measurement for r in told.rows}
    rest = [m for m in told.check.measurements if m.name not in named] if told.rows else []
    if rest:
        yield Table(("reported, not judged", "figure"), tuple((_name(m), _figure(m)) for m in rest[:60]))


def _name(measurement: Measurement) -> str:
    at = f" at {point_name(measurement.at)}" if measurement.at else ""
    return label(measurement.name, 60) + at


def _figure(measurement: Measurement) -> str:
    return figure(measurement.value, "" if measurement.unit == "ratio" else measurement.unit)


def _rest(story: Story, shown: Sequence[CheckStory]) -> Iterator[Block]:
    left = [c.check for c in story.checks if c not in shown]
    if not left:
        return
    items: list[Pair | Table | Code] = []
    passed = [c.name for c in left if c.outcome is Outcome.PASS]
    if passed:
        items.append(Pair("passed", ", ".join(label(n, 60) for n in passed)))
    for reason in dict.fromkeys(c.reason for c in left if c.outcome is Outcome.NOT_RUN):
        names = ", ".join(label(c.name, 60) for c in left if c.outcome is Outcome.NOT_RUN and c.reason == reason)
        items.append(Pair("not run", f"{names}: {one_line(reason, 300) or 'no reason recorded'}"))
    yield Block("The other checks" if shown else "Checks", tuple(items))
    again = next((c.evidence.repro for c in left if c.evidence.repro), "")
    if again and not shown:
        yield Block("Ask again", (Code(visible(_all_checks(again)), "sh"),))


def _all_checks(command: str) -> str:
    """The command of one check, for all of them."""
    head, found, rest = command.rpartition(" --checks ")
    return " ".join([head, *rest.split(" ")[1:]]) if found else command


# -- history -----------------------------------------------------------------------------------------------------


def _past(story: Story) -> Iterator[Block]:
    if len(story.past) < 2:
        if story.left_out or story.past:
            yield Block("History", (Pair("other runs", "none was found beside this one; name some with --history"),))
        return
    rows = tuple(_row(one) for one in story.past)
    items: list[Pair | Table | Code] = [Table(("started", "outcome", "device and packages", "changed", "where"), rows)]
    own = next((p for p in story.past if p.run.run.id == story.run.run.id), None)
    device = story.run.run.device
    first = _first_change(story.past, own, device)
    if first is not None:
        words = f"{symbol(first.before).word} before, {symbol(first.outcome).word} since run {label(first.run.run.id)}"
        items.append(Pair(f"last change on {label(device, 40)}", words))
    else:
        items.append(Pair(f"last change on {label(device or 'this device', 40)}", "none in these runs"))
    if story.left_out:
        items.append(Pair("not looked at", f"{plural(story.left_out, 'older run')}; name them with --history"))
    yield Block("History", tuple(items))


def _first_change(past: Sequence[Past], own: Past | None, device: str) -> Past | None:
    """The run since which the cell has had the outcome that it has in `own`."""
    found = None
    for one in past:
        if one.run.run.device == device and one.before is not None and one.outcome not in (None, one.before):
            found = one
        if one is own:
            return found
    return found


def _row(one: Past) -> tuple[str, ...]:
    outcome = symbol(one.outcome).word if one.cell is not None else "not in the run"
    changes = [f"{label(n, 40)}: {symbol(a).word} to {symbol(b).word}" for n, a, b in one.changed[:4]]
    more = f" and {len(one.changed) - 4} more" if len(one.changed) > 4 else ""
    known = one.run.environment.packages
    versions = [f"{n} {label(known[n], 30)}" for n in HEADLINE_PACKAGES if n in known]
    return (
        label(one.run.run.started, 30),
        outcome,
        ", ".join([label(one.run.run.device, 20), *versions]),
        ", ".join(changes) + more or "-",
        one_line(one.where, 200),
    )
