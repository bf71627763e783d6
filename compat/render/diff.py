"""A diff of two runs as text: for a terminal, and in Markdown.

In: a `Diff`, and what a gate found in it. Out: text: what changed in stack, machine and settings first, then verdict,
counts, changed checks by cause (the worst first), cells that run other kernels, speeds. Pure, like every renderer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from compat.compare.result import Diff, Difference, Group, Kind, Side, SpeedChange, Speeds, groups
from compat.records import point_name
from compat.render.figures import bare_ratio, plural
from compat.render.inert import label, one_line, visible
from compat.render.markdown import code
from compat.render.patterns import Patterns, patterns
from compat.render.terminal_lines import Line, cut, paint, wrap

FORMATS = ("terminal", "markdown", "json")
"""What `render_diff` takes."""

STYLES = {
    Kind.REGRESSED: "bold red",
    Kind.MIXED: "bold red",
    Kind.FIXED: "green",
    Kind.FLAKY: "bold yellow",
    Kind.SPURIOUS: "yellow",
    Kind.CHANGED: "yellow",
}

MEANINGS = {
    Kind.REGRESSED: "worse",
    Kind.MIXED: "one check worse, another better",
    Kind.FIXED: "better",
    Kind.FLAKY: "asked again, another outcome",
    Kind.SPURIOUS: "out of memory or time once: until it repeats",
    Kind.CHANGED: "other, without being better or worse",
    Kind.NEW: "in head alone",
    Kind.GONE: "in base alone",
    Kind.SAME: "alike",
}

BRIEF = (Kind.NEW, Kind.GONE)
"""Kinds of which only the number and the patterns are said."""

MOST_GROUPS = 20
"""Causes that are shown of each kind; the rest is counted."""

Found = Mapping[str, Sequence[str]]
"""Gate -> what it found, as compat.gate.findings gives it."""


def render_diff(diff: Diff, format: str, *, found: Found | None = None, width: int = 80, color: bool = False) -> str:
    """`diff` as text in one of `FORMATS`, ending in a newline; `found` says what of it counts (None: no gate).

    Raises `ValueError` for an unknown format.
    """
    match format:
        case "terminal":
            return "\n".join(paint(line, color) for line in _terminal(diff, found, max(width, 40))) + "\n"
        case "markdown":
            return "\n\n".join(_markdown(diff, found)) + "\n"
        case "json":
            from compat.compare.result import encode_diff

            return encode_diff(diff).decode()
    raise ValueError(f"unknown format {format!r}; one of: {', '.join(FORMATS)}")


def verdict(diff: Diff) -> str:
    """What happened, in a sentence or two."""
    if not diff.compared:
        return "Nothing can be compared: no check was asked in both runs."
    partial = [name for name, side in (("base", diff.base), ("head", diff.head)) if not side.complete]
    warning = f" PARTIAL: {' and '.join(partial)} did not finish." if partial else ""
    counts = diff.counts()
    said = [
        f"{plural(checks, 'check')} {kind.value}"
        for kind in (Kind.REGRESSED, Kind.FIXED, Kind.FLAKY, Kind.SPURIOUS, Kind.CHANGED, Kind.NEW, Kind.GONE)
        if (checks := counts.get(kind, (0, 0))[1])
    ]
    same = f"{plural(counts.get(Kind.SAME, (0, 0))[1], 'check')} alike"
    return f"{', '.join([*said, same])}.{warning}"


def gate_text(found: Found) -> str:
    """What a gate found, in one line."""
    if not found:
        return "Gate: clean."
    return "Gate: " + ", ".join(f"{name} ({len(texts):,})" for name, texts in found.items()) + "."


@dataclass(frozen=True)
class _Section:
    """One kind of change."""

    kind: Kind
    groups: tuple[Group, ...]
    cells: int


def _sections(diff: Diff) -> list[_Section]:
    every = groups(diff.checks())
    sections = []
    for kind in Kind:
        own = tuple(g for g in every if g.kind is kind)
        if own and kind not in BRIEF:
            sections.append(_Section(kind, own, len({c.id for g in own for c in g.cells})))
    return sections


def _where(diff: Diff, group: Group) -> Patterns:
    return patterns(group.cells, diff.cells, 4)


def _step(group: Group) -> str:
    before = group.base.value if group.base else "absent"
    after = group.head.value if group.head else "absent"
    return before if before == after else f"{before} -> {after}"


def _side(side: Side) -> str:
    return one_line(f"{side.id} ({side.started or 'undated'}, {side.device}, {plural(side.cells, 'cell')})", 200)


def _change(difference: Difference) -> str:
    """`transformers 5.22.0 -> 5.23.0`, `gguf 0.19.0 added`."""
    name, base, head = label(difference.name, 60), one_line(difference.base, 160), one_line(difference.head, 160)
    if not difference.base:
        return f"{name} {head} added" if difference.subject == "package" else f"{name}: not said -> {head}"
    if not difference.head:
        return f"{name} {base} removed" if difference.subject == "package" else f"{name}: {base} -> not said"
    return f"{name} {base} -> {head}" if difference.subject == "package" else f"{name}: {base} -> {head}"


def _kernels(diff: Diff) -> dict[str, list[str]]:
    """What held after loading and is other -> cells."""
    found: dict[str, list[str]] = {}
    for cell in diff.cells:
        for difference in cell.effective:
            found.setdefault(_change(difference), []).append(cell.id)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def _speed(speed: SpeedChange) -> str:
    low, high = speed.ci95
    at = f" at {point_name(speed.at)}" if speed.at else ""
    interval = f"{bare_ratio(low)} to {bare_ratio(high)}"
    return f"{speed.says.value}: {label(speed.name, 40)}{at} is {bare_ratio(speed.ratio)} of base's ({interval})"


def _speed_note(diff: Diff) -> str:
    stated = {says: sum(s.says is says for s in diff.speed) for says in Speeds}
    text = ", ".join(f"{count:,} {says.value}" for says, count in stated.items()) if diff.speed else "none compared"
    return f"{text} (a difference of {100 * diff.least_effect:g}% or more is stated where the whole interval shows it)"


# -- terminal ----------------------------------------------------------------------------------------------------


def _terminal(diff: Diff, found: Found | None, width: int) -> Iterator[Line]:
    yield from wrap(f"base  {_side(diff.base)}", width, indent="      ", first="")
    yield from wrap(f"head  {_side(diff.head)}", width, indent="      ", first="")
    yield []
    if diff.differences:
        yield [("What changed beside the outcomes", "bold")]
        for difference in diff.differences:
            yield from wrap(_change(difference), width, indent="    ", first="  ")
    else:
        yield from wrap("Packages, machine and settings are alike, as far as both runs recorded them.", width)
    yield []
    regressed = Kind.REGRESSED in diff.counts() or not diff.compared
    yield from wrap(verdict(diff), width, style="bold red" if regressed else "bold green")
    if found is not None:
        yield from wrap(gate_text(found), width, style="bold red" if found else "bold green")
    for kind, (cells, checks) in diff.counts().items():
        text = f"  {kind.value:<10}{plural(cells, 'cell'):>13}{plural(checks, 'check'):>14}  "
        yield [(text, ""), (cut(MEANINGS[kind], width - len(text)), "dim")]
    for section in _sections(diff):
        yield []
        title = f"{section.kind.value.capitalize()}: {plural(section.cells, 'cell')}"
        yield from wrap(f"{title}, {plural(len(section.groups), 'cause')}", width, style=STYLES[section.kind])
        for number, group in enumerate(section.groups[:MOST_GROUPS], 1):
            yield from _group_lines(diff, group, number, width)
        if left := section.groups[MOST_GROUPS:]:
            yield [(f"  and {plural(len(left), 'other cause')}: --format json has them", "dim")]
    if kernels := _kernels(diff):
        yield []
        yield [("What held after loading is other", "bold")]
        for text, ids in kernels.items():
            more = f" and {len(ids) - 1:,} more" if len(ids) > 1 else ""
            yield from wrap(f"{text}: {label(ids[0], 200)}{more}", width, indent="    ", first="  ")
    if diff.speed or diff.speed_not_comparable:
        yield []
        yield from wrap(f"Speed: {_speed_note(diff)}", width, style="bold")
        for speed in diff.speed:
            if speed.says is not Speeds.ALIKE:
                yield from wrap(f"{label(speed.cell, 200)}: {_speed(speed)}", width, indent="    ", first="  ")
        for why, count in diff.speed_not_comparable.items():
            yield from wrap(f"not comparable, {plural(count, 'figure')}: {why}", width, indent="    ", first="  ")


def _group_lines(diff: Diff, group: Group, number: int, width: int) -> Iterator[Line]:
    checks = ", ".join(label(c, 40) for c in group.checks)
    title = f"{number}. {_step(group)} in {plural(len(group.cells), 'cell')} ({checks})"
    yield from wrap(title, width, indent="   ", first="")
    yield from wrap(f"cells: {_where(diff, group).text}", width, indent="          ", first="   ")
    if group.reason:
        yield from wrap(f"why: {one_line(group.reason)}", width, indent="        ", first="   ")
    if group.repro and group.kind in (Kind.REGRESSED, Kind.FLAKY, Kind.SPURIOUS):
        yield [("   $ ", "dim"), (visible(group.repro), "bold")]


# -- Markdown ----------------------------------------------------------------------------------------------------


def _markdown(diff: Diff, found: Found | None) -> Iterator[str]:
    yield f"**{verdict(diff)}**"
    if found is not None:
        yield gate_text(found)
    yield f"- base: {code(_side(diff.base))}\n- head: {code(_side(diff.head))}"
    if diff.differences:
        rows = [f"| {d.subject} | {code(d.name)} | {_value(d.base)} | {_value(d.head)} |" for d in diff.differences]
        yield "\n".join(["| changed | | base | head |", "| :-- | :-- | :-- | :-- |", *rows])
    else:
        yield "Packages, machine and settings are alike, as far as both runs recorded them."
    rows = [f"| {k.value} | {cells:,} | {checks:,} | {MEANINGS[k]} |" for k, (cells, checks) in diff.counts().items()]
    yield "\n".join(["| | cells | checks | |", "| :-- | --: | --: | :-- |", *rows])
    for section in _sections(diff):
        yield f"## {section.kind.value.capitalize()}: {plural(section.cells, 'cell')}"
        for group in section.groups[:MOST_GROUPS]:
            yield "\n".join(_group_items(diff, group))
        if left := section.groups[MOST_GROUPS:]:
            yield f"And {plural(len(left), 'other cause')}."
    if kernels := _kernels(diff):
        items = [
            f"- {code(text)}: {code(i[0])}" + (f" and {len(i) - 1:,} more" if i[1:] else "")
            for text, i in kernels.items()
        ]
        yield "\n".join(["## What held after loading is other", "", *items])
    if diff.speed or diff.speed_not_comparable:
        told = [f"- {code(s.cell)}: {code(_speed(s))}" for s in diff.speed if s.says is not Speeds.ALIKE]
        told += [
            f"- not comparable, {plural(n, 'figure')}: {code(why)}" for why, n in diff.speed_not_comparable.items()
        ]
        yield "\n".join(["## Speed", "", f"{_speed_note(diff)}.", "", *told])


def _value(text: str) -> str:
    return code(text) if text else "-"


def _group_items(diff: Diff, group: Group) -> Iterator[str]:
    where = _where(diff, group)
    rest = f" and {where.rest}" if where.rest else ""
    checks = ", ".join(code(c, 60) for c in group.checks)
    yield f"- **{_step(group).replace('->', '→')}** in {plural(len(group.cells), 'cell')} ({checks}): " + (
        ", ".join(code(text) for text in where.texts) + rest
    )
    if group.reason:
        yield f"  - why: {code(group.reason)}"
    if group.repro and group.kind in (Kind.REGRESSED, Kind.FLAKY, Kind.SPURIOUS):
        yield f"  - again: {code(group.repro, 2000)}"
