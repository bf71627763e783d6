"""An upgrade as text: for a terminal, and as a Markdown page.

In: an `Upgrade` and what fails it. Out: text. Pure, like every renderer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from compat.records import Measurement
from compat.render.figures import duration, plural
from compat.render.inert import label, one_line
from compat.render.markdown import code
from compat.render.terminal_lines import Line, paint, wrap
from compat.upgrade.result import DEFAULT_FAIL_ON, Finding, Group, Kind, Upgrade, failing, grouped

STYLES = {
    Kind.REGRESSED: "bold red",
    Kind.CHANGED: "yellow",
    Kind.COVERAGE: "yellow",
    Kind.SLOWER: "yellow",
    Kind.FIXED: "green",
    Kind.FASTER: "green",
    Kind.GAINED: "green",
    Kind.NOTED: "dim",
}

MEANINGS = {
    Kind.REGRESSED: "worse",
    Kind.CHANGED: "an unchanged call behaves otherwise",
    Kind.COVERAGE: "worked or could be judged before, not now",
    Kind.SLOWER: "slower, on every pair of fresh processes",
    Kind.FIXED: "wrong before, right now",
    Kind.FASTER: "faster, on every pair of fresh processes",
    Kind.GAINED: "refused before, works now",
    Kind.NOTED: "other without counting",
}

SHOWN_CELLS = 4
SHOWN_VALUES = 3
"""Pairs of values of one group that are shown; the JSON has all."""

LEAST_NAMED = (Kind.NOTED, Kind.FIXED, Kind.GAINED)
"""Kinds of which the checks of the runs get one line each on a terminal."""


def verdict(upgrade: Upgrade, fail_on: Collection[str]) -> str:
    """`REGRESSED: 12 findings in 7 of 120 cells ...` in one line."""
    if upgrade.interrupted:
        return "INTERRUPTED: nothing is said of what was not reached."
    if upgrade.errors:
        return f"ERROR: the harness failed in {plural(len(upgrade.errors), 'cell')}; the upgrade is not judged."
    if not upgrade.compared:
        return "NOTHING COMPARABLE: no cell could be asked of both stacks."
    found = failing(upgrade, fail_on)
    over = f"{plural(len(upgrade.across), 'cell')}, {upgrade.compared} compared"
    if not found:
        rest = Counter(f.kind.value for f in upgrade.findings)
        beside = ", ".join(f"{n} {name}" for name, n in rest.most_common())
        return f"CLEAN: nothing that fails an upgrade in {over}." + (f" Beside that: {beside}." if beside else "")
    kinds = Counter(g.kind.value for g in grouped(found))
    named = ", ".join(f"{n} {name}" for name, n in kinds.items())
    return f"REGRESSED: {named}, in {len({f.cell for f in found})} of {over}."


def facts(upgrade: Upgrade) -> tuple[tuple[str, str], ...]:
    """Where, when and what, as (label, text) pairs."""
    sides = upgrade.before, upgrade.after
    differing = sorted(
        name
        for name in {*sides[0].packages, *sides[1].packages}
        if sides[0].packages.get(name) != sides[1].packages.get(name)
    )
    packages = ", ".join(
        f"{label(n, 40)} {label(sides[0].packages.get(n, 'none'), 40)} -> {label(sides[1].packages.get(n, 'none'), 40)}"
        for n in differing
    )
    stages = ", ".join(f"{label(name, 40)} {duration(s)}" for name, s in upgrade.seconds.items())
    same = {n: v for n, v in sides[0].packages.items() if n in ("torch", "bitsandbytes") and n not in differing}
    pairs = [
        ("from", label(sides[0].stack.name)),
        ("to", label(sides[1].stack.name)),
        ("packages", packages or "the same versions"),
        ("both", ", ".join(f"{n} {label(v, 40)}" for n, v in sorted(same.items()))),
        ("matrix", f"{label(upgrade.matrix.path)} on {label(upgrade.device)}, {plural(len(upgrade.across), 'cell')}"),
        ("took", stages),
    ]
    return tuple((name, text) for name, text in pairs if text)


def example(finding: Finding) -> str:
    """`right -> left (6.2 eager errors, at most 3)` in one line."""
    sides = " -> ".join(one_line(s, 200) for s in (finding.before, finding.after) if s)
    if finding.value is None or finding.bound is None or finding.unit == "x":
        return sides
    far = f"{finding.value:.3g} {finding.unit}, at most {finding.bound:g}"
    return f"{sides} ({far})" if sides else far


def cells_of(group: Group, most: int = SHOWN_CELLS) -> str:
    """The first cells of a group, and how many more."""
    named = ", ".join(label(c) for c in group.cells[:most])
    return named + (f" and {len(group.cells) - most} more" if len(group.cells) > most else "")


def _split(upgrade: Upgrade) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Groups of what was compared directly, and of the runs' own checks."""
    groups = grouped(upgrade.findings)
    own = tuple(g for g in groups if g.name.startswith("check:"))
    return tuple(g for g in groups if g not in own), own


def not_comparable(upgrade: Upgrade) -> dict[str, list[str]]:
    """Why cells were not compared -> their ids."""
    found: dict[str, list[str]] = {}
    for one in upgrade.across:
        if one.status != "compared":
            found.setdefault(one_line(one.reason, 160), []).append(one.cell)
    return found


# -- terminal ----------------------------------------------------------------------------------------------------


def render_terminal(
    upgrade: Upgrade, width: int = 100, color: bool = False, fail_on: Collection[str] = DEFAULT_FAIL_ON
) -> str:
    """The upgrade for a terminal of `width` columns; ends with the verdict."""
    return "".join(f"{paint(line, color)}\n" for line in _terminal(upgrade, width, fail_on))


def _terminal(upgrade: Upgrade, width: int, fail_on: Collection[str]) -> Iterator[Line]:
    yield [(f"Upgrade from {label(upgrade.before.stack.name)} to {label(upgrade.after.stack.name)}", "bold")]
    yield []
    for name, text in facts(upgrade):
        yield from wrap(text, width, indent=" " * 10, first=f"{name:<10}")
    across, own = _split(upgrade)
    for title, groups in (("Both stacks asked the same", across), ("The checks of the two runs", own)):
        yield []
        yield [(title, "bold")]
        if not groups:
            yield [("  no difference", "green")]
        for group in groups:
            yield from _group(group, width, fail_on, brief=groups is own and group.kind in LEAST_NAMED)
    missing = not_comparable(upgrade)
    if missing:
        yield []
        yield [("Not compared", "bold")]
        for reason, cells in missing.items():
            yield from wrap(
                f"{plural(len(cells), 'cell')}: {reason} ({label(cells[0])})", width, indent="    ", first="  "
            )
    unstated = [t for t in upgrade.timed if t.not_stated]
    yield []
    yield from _timing(upgrade, width)
    if unstated:
        for one in unstated:
            yield from wrap(f"{label(one.cell)}: {one_line(one.not_stated, 200)}", width, indent="    ", first="  ")
    yield []
    said = verdict(upgrade, fail_on)
    yield from wrap(said, width, style="bold green" if said.startswith("CLEAN") else "bold red")


def _timing(upgrade: Upgrade, width: int) -> Iterator[Line]:
    if not upgrade.timed:
        yield [("Nothing was timed.", "dim")]
        return
    stated = sum(bool(t.findings) for t in upgrade.timed)
    silent = sum(bool(t.not_stated) for t in upgrade.timed)
    text = f"{plural(len(upgrade.timed), 'cell')} timed in turns: a difference is stated in {stated}"
    text += f", nothing can be said of {silent}" if silent else ""
    yield from wrap(f"{text}.", width)


def _group(group: Group, width: int, fail_on: Collection[str], brief: bool) -> Iterator[Line]:
    style = STYLES[group.kind] if group.kind.value in fail_on or group.kind not in _CAN_FAIL else "dim"
    head = f"  {group.kind.value:<10}"
    yield [(head, style), (f"{label(group.name)}  ", "bold"), (plural(len(group.cells), "cell"), "")]
    if brief:
        return
    indent = " " * 12
    yield from wrap(f"{one_line(group.words)}: {cells_of(group)}", width, indent=indent, first=indent)
    for finding in group.examples[:SHOWN_VALUES]:
        yield from wrap(
            f"{example(finding)}  [{label(finding.cell)}]", width, indent=f"{indent}  ", first=f"{indent}  "
        )
    if len(group.examples) > SHOWN_VALUES:
        yield [(f"{indent}  and {len(group.examples) - SHOWN_VALUES} other pairs of values", "dim")]
    if group.follow:
        yield from wrap(f"from which follow: {', '.join(map(label, group.follow))}", width, indent=indent, first=indent)


_CAN_FAIL = (Kind.REGRESSED, Kind.CHANGED, Kind.COVERAGE, Kind.SLOWER)


def speedup(measured: Measurement) -> str:
    """`prefill 1.02x [0.99, 1.05]`."""
    low, high = measured.ci95 or (float("nan"), float("nan"))
    return f"{measured.name.removesuffix('_speedup')} {measured.value or 0:.3g}x [{low:.3g}, {high:.3g}]"


# -- Markdown ----------------------------------------------------------------------------------------------------


def render_markdown(upgrade: Upgrade, fail_on: Collection[str] = DEFAULT_FAIL_ON) -> str:
    """The upgrade as a Markdown page."""
    return "\n".join(_markdown(upgrade, fail_on)) + "\n"


def _markdown(upgrade: Upgrade, fail_on: Collection[str]) -> Iterator[str]:
    yield f"# Upgrade from {code(upgrade.before.stack.name)} to {code(upgrade.after.stack.name)}"
    yield ""
    yield f"**{verdict(upgrade, fail_on)}**"
    yield ""
    yield "| | |"
    yield "|:--|:--|"
    for name, text in facts(upgrade):
        yield f"| {name} | {code(text, 1000)} |"
    across, own = _split(upgrade)
    for title, groups in (("Both stacks asked the same", across), ("The checks of the two runs", own)):
        yield ""
        yield f"## {title}"
        yield ""
        if not groups:
            yield "No difference."
            continue
        yield "| kind | name | what | cells | before -> after | follows |"
        yield "|:--|:--|:--|:--|:--|:--|"
        for group in groups:
            values = "<br>".join(code(example(f)) for f in group.examples[:SHOWN_VALUES] if example(f))
            follow = ", ".join(code(name) for name in group.follow)
            where = f"{len(group.cells)}: {code(cells_of(group))}"
            yield f"| {group.kind.value} | {code(group.name)} | {code(group.words)} | {where} | {values} | {follow} |"
    yield ""
    yield ", ".join(f"*{kind.value}*: {MEANINGS[kind]}" for kind in Kind) + "."
    missing = not_comparable(upgrade)
    if missing:
        yield ""
        yield "## Not compared"
        yield ""
        for reason, cells in missing.items():
            yield f"- {plural(len(cells), 'cell')}, the first {code(cells[0])}: {code(reason)}"
    if upgrade.timed:
        yield ""
        yield "## Timed in turns"
        yield ""
        yield "The speed after over that before, each pair of fresh processes with its 95% interval."
        yield ""
        yield "| cell | speedups | said |"
        yield "|:--|:--|:--|"
        for one in upgrade.timed:
            said = [speedup(m) for attempt in one.attempts for m in attempt]
            words = one.not_stated or ", ".join(f"{f.name} {f.after}" for f in one.findings) or "no difference stated"
            yield f"| {code(one.cell)} | {code('; '.join(said)) if said else ''} | {code(words)} |"
