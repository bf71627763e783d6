"""Parts of pages that are made from a stored run.

In: the options of a mark and the folder that its paths start from. Out: Markdown.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec

from compat import store
from compat.axes import DTYPES, QUANTIZATIONS
from compat.checks import CHECKS
from compat.records import Outcome, Run
from compat.render.exhibits import sections
from compat.render.figures import bare_ratio, duration, plural, ratio
from compat.render.groups import failures
from compat.render.markdown import _fold, _plain, _table, code, matrix_tables
from compat.render.markdown_exhibits import exhibit_parts
from compat.render.readme_marks import MarkError, Options, bound, listed, where
from compat.render.speed import PHASES, speed
from compat.render.summary import environment, headline_place, verdict
from compat.render.symbols import symbol
from compat.rules import Rule, criteria, stored_context


def stored_run(options: Options, root: Path) -> Run:
    """The run that a mark names. Raises MarkError and store.StoreError."""
    place = root / options["run"]
    if not place.exists():
        raise MarkError(f"there is no run at {options['run']}")
    return store.read_run(place)


def matrix_part(options: Options, root: Path) -> str:
    """The grid tables of a run."""
    run = stored_run(options, root)
    dtypes = listed(options, "dtypes", DTYPES.names)
    quantizations = listed(options, "quantizations", QUANTIZATIONS.names)
    legend = listed(options, "legend", ("yes", "no")) != ["no"]
    return matrix_tables(run, dtypes=dtypes, quantizations=quantizations, legend=legend)


def verdict_part(options: Options, root: Path) -> str:
    """What may be concluded from a run, and its size."""
    run = stored_run(options, root)
    said = verdict(run)
    checks = sum(1 for cell in run.cells for check in cell.checks if check.outcome is not Outcome.NOT_RUN)
    size = f"{plural(len(run.cells), 'cell')}, {plural(checks, 'check')} asked, {duration(run.summary.seconds)}."
    return f"Run {code(run.run.id)}: {size}\n\n" + _plain(" ".join(p for p in (said.partial, said.headline) if p))


def environment_part(options: Options, root: Path) -> str:
    """The machine and packages of a run."""
    shown = ("device", "packages", "python", "cpu", "run")
    rows = [[name, code(text)] for name, text in environment(stored_run(options, root)) if name in shown]
    return _table(["", ""], rows, "ll")


def findings_part(options: Options, root: Path) -> str:
    """Failure groups of a run: which cells, which check, and the reason of the worst of them."""
    run = stored_run(options, root)
    outcomes = listed(options, "outcomes", [o.value for o in Outcome])
    groups = [g for g in failures(run.cells) if outcomes is None or g.outcome.value in outcomes]
    if not groups:
        return f"None in run {code(run.run.id)}."
    rows = []
    for group in groups:
        rest = f" and {group.where.rest}" if group.where.rest else ""
        cells = ", ".join(code(text) for text in group.where.texts) + rest
        mark = symbol(group.outcome)
        checks = ", ".join(group.checks)
        rows.append([mark.word, f"{len(group.cells):,}", cells, _plain(checks), code(group.reason, 200)])
    return f"From run {code(run.run.id)}:\n\n" + _table(["outcome", "cells", "which", "check", "why"], rows, "lrlll")


def speed_part(options: Options, root: Path) -> str:
    """Speedups over cells, for what was timed at one point."""
    run = stored_run(options, root)
    table = speed(run.cells)
    if not table.rows:
        raise MarkError(f"run {run.run.id!r} measured no speedup")
    rows = []
    for row in table.rows:
        texts = [code(f"{row.attention}, {row.at}" if row.at else row.attention)]
        for phase in PHASES:
            p = row.phase(phase)
            spread = f"{ratio(p.median)} ({bare_ratio(p.low)} to {bare_ratio(p.high)})" if p else "-"
            texts += [spread, f"{p.faster:,} / {p.slower:,} of {p.cells:,}" if p else "-"]
        rows.append(texts)
    head = ["attention", *(text for phase in PHASES for text in (phase, f"{phase}: faster / slower"))]
    about = (
        f"Run {code(run.run.id)}: rate over that of eager in the same cell, median over cells with the range in "
        "brackets; then the cells whose 95% interval lies wholly above or below 1."
    )
    return f"{about}\n\n" + _table(head, rows, "lrrrr")


def grids_part(options: Options, root: Path) -> str:
    """Speed and memory on a grid and by quantization, of all models or those named; with pictures from a folder."""
    run = stored_run(options, root)
    models = listed(options, "models", list(dict.fromkeys(c.axes["model"] for c in run.cells)))
    cells = tuple(c for c in run.cells if models is None or c.axes["model"] in models)
    found = sections(msgspec.structs.replace(run, cells=cells))
    if not found:
        raise MarkError(f"run {run.run.id!r} measured nothing on a grid")
    head = f"Measured on {code(headline_place(run))}, {code(run.run.started[:10])}, run {code(run.run.id)}."
    _, *parts = exhibit_parts(found, options.get("plots", ""), _table, _fold, lambda text: code(text), _plain)
    return "\n\n".join([head, *(part for part in parts if part)])


def margins_part(options: Options, root: Path) -> str:
    """How far a run's figures lie from each bound: the farthest within it and the nearest beyond it."""
    run = stored_run(options, root)
    checks = listed(options, "check", CHECKS.names)
    rules = criteria().rules
    found: dict[int, list[tuple[float, str]]] = {}
    for cell in run.cells:
        context = stored_context(run, cell)
        for check in cell.checks:
            decided: set[str] = set()
            for number, rule in enumerate(rules):
                if rule.check != check.name or rule.measurement in decided or not rule.holds(context):
                    continue
                decided.add(rule.measurement)
                measured = check.measurement(rule.measurement)
                if measured is not None and measured.value is not None:
                    unit = rule.unit(context) or 1.0
                    found.setdefault(number, []).append((measured.value / unit, measured.better))
    chosen = [(rules[n], found[n]) for n in sorted(found) if checks is None or rules[n].check in checks]
    if not chosen:
        raise MarkError(f"run {run.run.id!r} measured nothing that a rule speaks of")
    head = ["measurement", "holds for", "pass", "cells", "median", "farthest within", "nearest beyond"]
    return f"From run {code(run.run.id)}:\n\n" + _table(head, [_margin(*pair) for pair in chosen], "llrrrrr")


def _margin(rule: Rule, measured: Sequence[tuple[float, str]]) -> list[str]:
    """`measured`: (value in units of the rule, the measurement's direction) of each cell."""
    higher = measured[0][1] == "higher"
    values = sorted((value for value, _ in measured), reverse=higher)
    within = [v for v in values if (v >= rule.passes if higher else v <= rule.passes)]
    beyond = values[len(within) :]
    sign = "&gt;=" if higher else "&lt;="
    ends = [f"{within[-1]:.3g}" if within else "none", f"{beyond[0]:.3g}" if beyond else "none"]
    middle = f"{statistics.median(values):.3g}"
    return [
        code(rule.measurement),
        where(rule),
        f"{sign} {bound(rule, rule.passes)}",
        f"{len(values):,}",
        middle,
        *ends,
    ]


def costs_part(options: Options, root: Path) -> str:
    """Seconds of each check: in the eager cell, which pays for loading, reference and yardstick, and in the others."""
    run = stored_run(options, root)
    rows = []
    for check in CHECKS.names:
        own: dict[bool, list[float]] = {True: [], False: []}
        for cell in run.cells:
            own[cell.axes["attention"] == "eager"] += [
                c.seconds for c in cell.checks if c.name == check and c.measurements
            ]
        if not own[True] or not own[False]:
            continue
        first, later = (statistics.fmean(own[k]) for k in (True, False))
        saved = max(0.0, first - later) * len(own[False])
        rows.append(
            [code(check), f"{len(own[True]) + len(own[False]):,}", f"{first:.3f}", f"{later:.3f}", f"{saved:.0f}"]
        )
    head = ["check", "cells", "eager cell, s", "other cell, s", "saved by sharing, s"]
    return f"From run {code(run.run.id)}, mean seconds:\n\n" + _table(head, rows, "lrrrr")
