"""The self-test as text: for a terminal, and as a Markdown page.

In: a `SelfTestResult`. Out: text. Pure, like every renderer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from compat.render.figures import duration, plural
from compat.render.inert import label, one_line
from compat.render.markdown import code
from compat.render.terminal_lines import Line, paint, text_width, wrap
from compat.selftest_result import SelfTestResult, Status, Trial, by_class

WORDS = {
    Status.KILLED: ("killed", "green"),
    Status.OTHER_CHECK: ("other check", "yellow"),
    Status.UNSEEN: ("NOT SEEN", "bold red"),
    Status.DISTURBED: ("DISTURBED", "bold red"),
    Status.NOT_REACHED: ("not reached", "yellow"),
    Status.NOT_APPLIED: ("not applied", "yellow"),
    Status.CRASHED: ("CRASHED", "bold red"),
    Status.QUIET: ("quiet", "green"),
    Status.FLAGGED: ("FLAGGED", "bold red"),
}
"""Word and style of each status."""

MEANINGS = {
    Status.OTHER_CHECK: "seen, but by checks that are not named to see it",
    Status.UNSEEN: "it changed something, and no check turned",
    Status.DISTURBED: "an outcome changed in a cell that it does not touch",
    Status.NOT_REACHED: "the code that it changes never ran",
    Status.NOT_APPLIED: "it could not be put in on this stack",
    Status.CRASHED: "the worker died or hung under it; that is not counted as seen",
    Status.FLAGGED: "a benign change that a check minded: a false alarm",
}

FINE = (Status.KILLED, Status.QUIET)


def verdict(result: SelfTestResult) -> str:
    """`54 of 56 faults killed (96.4%), 0 of 11 benign changes flagged; ...` in one paragraph."""
    parts = []
    if not result.complete:
        parts.append(f"PARTIAL: {len(result.trials)} of {result.planned} trials were made.")
    if result.faults:
        parts.append(f"{result.killed} of {plural(len(result.faults), 'fault')} killed ({result.rate:.1f}%)")
    if result.benign:
        parts.append(f"{result.flagged} of {plural(len(result.benign), 'benign change')} flagged")
    idle = sum(t.status in (Status.NOT_REACHED, Status.NOT_APPLIED) for t in result.trials)
    if idle:
        parts.append(f"{idle} not reached")
    text = ", ".join(p for p in parts if not p.startswith("PARTIAL")) or "Nothing was tried"
    return " ".join([*(p for p in parts if p.startswith("PARTIAL")), f"{text}."])


def facts(result: SelfTestResult) -> tuple[tuple[str, str], ...]:
    """Where, when and how it ran, as (label, text) pairs."""
    packages = ", ".join(
        f"{name} {label(result.environment.packages[name], 40)}"
        for name in ("torch", "transformers", "bitsandbytes", "accelerate", "flash-attn", "flash_attn")
        if name in result.environment.packages
    )
    gpus = ", ".join(dict.fromkeys(label(g.name, 60) for g in result.environment.gpus))
    lanes = plural(result.lanes, "worker")
    pairs = [
        ("device", ", ".join(x for x in (result.device, gpus) if x)),
        ("packages", packages),
        ("cpu", one_line(result.environment.cpu)),
        ("depth", f"{result.depth}, seed {result.seed}"),
        ("took", f"{duration(result.seconds)} with {lanes}, {result.started.replace('T', ' ').rstrip('Z')} UTC"),
        ("compat", f"{result.compat}, checks, criteria and faults {result.sources}"),
        ("checks", ", ".join(result.checks) + (f" (not {', '.join(result.left_out)})" if result.left_out else "")),
        ("asked", result.rule),
    ]
    return tuple((name, text) for name, text in pairs if text)


def class_rows(result: SelfTestResult) -> list[tuple[str, str, str]]:
    """(class, killed of faults, percent) for each class, and for all; benign changes have a row of their own."""
    rows = []
    for name, trials in by_class(result.faults).items():
        rows.append((name, *_rate(trials)))
    if result.faults:
        rows.append(("all", *_rate(result.faults)))
    if result.benign:
        quiet = sum(t.status == Status.QUIET for t in result.benign)
        rows.append(("benign", f"{quiet} of {len(result.benign)} quiet", ""))
    return rows


def _rate(trials: Sequence[Trial]) -> tuple[str, str]:
    killed = sum(t.status == Status.KILLED for t in trials)
    return f"{killed} of {len(trials)}", f"{100 * killed / len(trials):.0f}%"


def where(trial: Trial) -> str:
    """The cells in which it was seen: the first, and how many more of those that it touches."""
    seen = trial.seen_in
    if not seen:
        return ""
    return seen[0] + (f" +{len(seen) - 1}" if len(seen) > 1 else "")


def remarks(trial: Trial) -> Iterator[str]:
    """What there is to say of a trial that did not end as it should."""
    if trial.status in FINE:
        return
    yield f"{MEANINGS[trial.status]}" + (f": {one_line(trial.note, 200)}" if trial.note else "")
    if trial.status == Status.OTHER_CHECK:
        yield f"named to see it: {', '.join(trial.expected)}; seen by {', '.join(trial.seen_by)}"
    if trial.status == Status.UNSEEN:
        yield f"named to see it: {', '.join(trial.expected)}; in {', '.join(trial.cells)}"
    for change in (*trial.disturbed, *trial.other):
        reason = f": {one_line(change.reason, 200)}" if change.reason else ""
        yield f"{change.cell} {change.check}: {change.before.value} -> {change.after.value}{reason}"


# -- terminal ----------------------------------------------------------------------------------------------------


def render_terminal(result: SelfTestResult, *, width: int = 80, color: bool = False) -> str:
    """The table for a terminal of `width` columns; escape codes only with `color`."""
    bad = result.flagged or any(t.status not in FINE for t in result.faults)
    lines: list[Line] = wrap(verdict(result), width, style="bold yellow" if bad else "bold green")
    lines.append([])
    for name, text in facts(result):
        head, *rest = wrap(text, width, indent=" " * 10)
        lines.append([(name.ljust(10), "dim"), *((t[10:] if i == 0 else t, s) for i, (t, s) in enumerate(head))])
        lines += rest
    for name, trials in by_class(result.trials).items():
        lines += [[], [(f"{name}: {_summary(trials)}", "bold")]]
        for trial in trials:
            lines += _trial_lines(trial, width)
    lines += [[], [("Killed by class", "bold")]]
    lines += [
        [(f"  {name:<14}{count:>12}", ""), (f"{percent:>6}", "dim")] for name, count, percent in class_rows(result)
    ]
    if result.before:
        lines += [[], *wrap(f"Not pass before any fault: {len(result.before)} checks", width, style="bold")]
        for change in result.before[:12]:
            text = f"{change.cell} {change.check} {change.before.value}: {one_line(change.reason, 120)}"
            lines += wrap(text, width, indent="    ", first="  ", style="dim")
        if len(result.before) > 12:
            lines.append([(f"  and {len(result.before) - 12} more", "dim")])
    return "\n".join(paint(line, color) for line in lines) + "\n"


def _summary(trials: Sequence[Trial]) -> str:
    if trials[0].benign:
        return f"{sum(t.status == Status.FLAGGED for t in trials)} of {len(trials)} flagged"
    return f"{_rate(trials)[0]} killed"


def _trial_lines(trial: Trial, width: int) -> Iterator[Line]:
    word, style = WORDS[trial.status]
    head = f"  {word:<12}{trial.fault}"
    by = ", ".join(trial.seen_by)
    tail = f"  {by}" + (f" in {where(trial)}" if by else "")
    if not by:
        tail = ""
    if text_width(head + tail) <= width:
        yield [(f"  {word:<12}", style), (trial.fault, ""), (tail, "dim")]
    else:
        yield [(f"  {word:<12}", style), (trial.fault, "")]
        yield from wrap(tail.strip(), width, indent=" " * 14, style="dim")
    for remark in remarks(trial):
        yield from wrap(remark, width, indent=" " * 16, first=" " * 14)


# -- Markdown ----------------------------------------------------------------------------------------------------


def render_markdown(result: SelfTestResult) -> str:
    """The page: verdict, facts, rates by class, a table for each class, what did not end as it should."""
    lines = ["# compat self-test", "", f"**{verdict(result)}**", "", "| | |", "|:--|:--|"]
    lines += [f"| {name} | {code(text)} |" for name, text in facts(result)]
    lines += ["", "| class | killed | rate |", "|:--|--:|--:|"]
    lines += [f"| {name} | {count} | {percent} |" for name, count, percent in class_rows(result)]
    for name, trials in by_class(result.trials).items():
        lines += ["", f"## {name}", ""]
        if trials[0].benign:
            lines += ["| change | what it does | origin | result | in cells |", "|:--|:--|:--|:--|:--|"]
            lines += [
                f"| {code(t.fault)} | {_cell(t.title)} | {_cell(t.origin)} | {WORDS[t.status][0]} | {_codes(t.cells)} |"
                for t in trials
            ]
            continue
        lines += ["| fault | what a user meets | origin | result | seen by | in cells | unseen in |"]
        lines += ["|:--|:--|:--|:--|:--|:--|:--|"]
        lines += [
            f"| {code(t.fault)} | {_cell(t.title)} | {_cell(t.origin)} | {WORDS[t.status][0]} | "
            f"{', '.join(t.seen_by)} | {_codes(t.seen_in)} | {_spared(t)} |"
            for t in trials
        ]
    odd = [t for t in result.trials if t.status not in FINE]
    if odd:
        lines += ["", "## What did not end as it should", ""]
        for trial in odd:
            lines.append(f"- {code(trial.fault)} ({trial.group}): {WORDS[trial.status][0]}")
            lines += [f"  - {_cell(remark)}" for remark in remarks(trial)]
    if result.before:
        lines += ["", "## Not pass before any fault", ""]
        lines += [
            f"- {code(c.cell)} {c.check}: {c.before.value}: {_cell(one_line(c.reason, 300))}" for c in result.before
        ]
    return "\n".join(lines) + "\n"


def _spared(trial: Trial) -> str:
    """Cells that it does not touch: unchanged, or what changed in them."""
    if not trial.spared:
        return ""
    changed = {c.cell for c in trial.disturbed}
    return ", ".join(f"{code(c)}{' (disturbed)' if c in changed else ''}" for c in trial.spared)


def _codes(cells: Sequence[str]) -> str:
    return ", ".join(code(c) for c in cells)


def _cell(text: str) -> str:
    """`text` harmless inside a table of Markdown."""
    return one_line(text, 400).replace("|", "\\|").replace("<", "&lt;")
