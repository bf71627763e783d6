"""Keep the generated parts of pages true: tables from stored runs, thresholds and names from compat's own tables.

In: Markdown files with marked places. Out: the same files with what stands between the marks made anew, or with
`--check` the names of those that are stale.

    <!-- compat:matrix run=reports/cpu dtypes=bf16 quantizations=none -->
    ...
    <!-- compat:end -->

A mark stands alone on its line; marks inside a fenced block are examples and are left alone. Paths in marks are
relative to `--root`, by default the working directory.

    python -m compat.render.readme README.md docs/*.md            # write
    python -m compat.render.readme --check README.md docs/*.md    # exit 1 and the names of stale files

Exit codes: 0 done or fresh, 1 stale, 4 a mark that cannot be used or a run that cannot be read.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import sys
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compat import store
from compat.axes import ATTENTION, DTYPES, QUANTIZATIONS, nearest
from compat.builtin import matrices_folder
from compat.checks import CHECKS
from compat.judge import Rule, criteria, criteria_tables, refusals, stored_context
from compat.records import Outcome, Run
from compat.render.figures import bare_ratio, duration, plural, ratio
from compat.render.groups import failures
from compat.render.markdown import _plain, _table, code, matrix_tables
from compat.render.speed import PHASES, speed
from compat.render.summary import environment, verdict
from compat.render.symbols import symbol

OK, STALE, USAGE = 0, 1, 4

_START = re.compile(r"<!-- compat:(?P<name>[\w-]+)(?P<options>( .*?)?) -->")
_END = "<!-- compat:end -->"
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


class MarkError(ValueError):
    """A mark that cannot be used; the message names file, line and what is wrong."""


@dataclass(frozen=True)
class Mark:
    """A marked place: `start` and `end` are the numbers (from 0) of the lines that hold the two comments."""

    name: str
    options: Mapping[str, str]
    start: int
    end: int


Options = Mapping[str, str]
Generator = Callable[[Options, Path], str]


# -- files -------------------------------------------------------------------------------------------------------


def marks(text: str, file: str = "(text)") -> tuple[Mark, ...]:
    """The marked places of a page, in order. Raises MarkError."""
    found: list[Mark] = []
    opened: tuple[int, str, dict[str, str]] | None = None
    fence = ""
    for number, line in enumerate(text.splitlines()):
        at = f"{file}:{number + 1}"
        if opened is None and (match := _FENCE.match(line)):
            closes = fence and match[1].startswith(fence) and not line.strip().strip(fence[0])
            fence = "" if closes else fence or match[1]
        if fence:
            continue
        if line.strip() == _END:
            if opened is None:
                raise MarkError(f"{at}: an end without a start")
            found.append(Mark(opened[1], opened[2], opened[0], number))
            opened = None
        elif match := _START.fullmatch(line.strip()):
            if opened is not None:
                raise MarkError(f"{at}: compat:{match['name']} starts before the one of line {opened[0] + 1} ends")
            opened = (number, match["name"], _options(match["name"], match["options"], at))
    if opened is not None:
        raise MarkError(f"{file}:{opened[0] + 1}: compat:{opened[1]} has no end")
    return tuple(found)


def _options(name: str, text: str, at: str) -> dict[str, str]:
    if name not in GENERATORS:
        raise MarkError(f"{at}: unknown mark compat:{name}{_hint(name, GENERATORS)}")
    known = GENERATORS[name][1]
    options = {}
    for word in shlex.split(text):
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise MarkError(f"{at}: compat:{name}: {word!r} is not key=value")
        if key not in known:
            raise MarkError(f"{at}: compat:{name}: unknown option {key!r}{_hint(key, known)}")
        options[key] = value
    missing = [k for k, required in known.items() if required and k not in options]
    if missing:
        raise MarkError(f"{at}: compat:{name}: {missing[0]} is missing")
    return options


def _hint(name: str, known: Collection[str]) -> str:
    hint = nearest(name, known)
    return f"; nearest: {hint!r}" if hint else ""


def refreshed(text: str, root: Path, file: str = "(text)") -> str:
    """The page with every marked place made anew. Raises MarkError."""
    new, problems = refreshed_where_possible(text, root, file)
    if problems:
        raise MarkError(problems[0])
    return new


def refreshed_where_possible(text: str, root: Path, file: str = "(text)") -> tuple[str, list[str]]:
    """The page with the marked places made anew that can be, and what is wrong with the others, which stay as they are.

    Raises MarkError for a page whose marks cannot be told apart.
    """
    lines = text.splitlines(keepends=True)
    problems: list[str] = []
    for mark in reversed(marks(text, file)):
        try:
            body = GENERATORS[mark.name][0](mark.options, root)
        except (store.StoreError, ValueError) as error:
            problems.insert(0, f"{file}:{mark.start + 1}: compat:{mark.name}: {error}")
        else:
            lines[mark.start + 1 : mark.end] = [f"\n{body.strip()}\n\n"]
    return "".join(lines), problems


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check files; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m compat.render.readme", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    parser.add_argument("--root", type=Path, default=Path(), help="folder that paths in marks start from")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    stale = broken = False
    for file in arguments.files:
        try:
            text = file.read_text(encoding="utf-8")
            new, problems = refreshed_where_possible(text, arguments.root, str(file))
        except OSError as error:
            text, new, problems = "", "", [f"{file}: {error.strerror}"]
        except MarkError as error:
            text, new, problems = "", "", [str(error)]
        for problem in problems:
            print(problem, file=sys.stderr)
            broken = True
        if new == text:
            continue
        stale = True
        if arguments.check:
            print(f"{file}: stale; write it anew: python -m compat.render.readme {file}")
        else:
            store.write_whole(file, new.encode("utf-8"))
            print(f"{file}: written")
    return USAGE if broken else STALE if stale and arguments.check else OK


# -- from a stored run -------------------------------------------------------------------------------------------


def _run(options: Options, root: Path) -> Run:
    where = root / options["run"]
    if not where.exists():
        raise MarkError(f"there is no run at {options['run']}")
    return store.read_run(where)


def _listed(options: Options, key: str, known: Collection[str]) -> list[str] | None:
    """The comma-separated values of an option, each one of `known`; None when it is not given."""
    if key not in options:
        return None
    values = options[key].split(",")
    for value in values:
        if value not in known:
            raise MarkError(f"{key}: unknown value {value!r}{_hint(value, known)}")
    return values


def _matrix(options: Options, root: Path) -> str:
    run = _run(options, root)
    dtypes = _listed(options, "dtypes", DTYPES.names)
    quantizations = _listed(options, "quantizations", QUANTIZATIONS.names)
    legend = _listed(options, "legend", ("yes", "no")) != ["no"]
    return matrix_tables(run, dtypes=dtypes, quantizations=quantizations, legend=legend)


def _verdict(options: Options, root: Path) -> str:
    run = _run(options, root)
    said = verdict(run)
    checks = sum(1 for cell in run.cells for check in cell.checks if check.outcome is not Outcome.NOT_RUN)
    size = f"{plural(len(run.cells), 'cell')}, {plural(checks, 'check')} asked, {duration(run.summary.seconds)}."
    return f"Run {code(run.run.id)}: {size}\n\n" + _plain(" ".join(p for p in (said.partial, said.headline) if p))


def _environment(options: Options, root: Path) -> str:
    shown = ("device", "packages", "python", "cpu", "run")
    rows = [[name, code(text)] for name, text in environment(_run(options, root)) if name in shown]
    return _table(["", ""], rows, "ll")


def _findings(options: Options, root: Path) -> str:
    """Failure groups of a run: which cells, which check, and the reason of the worst of them."""
    run = _run(options, root)
    outcomes = _listed(options, "outcomes", [o.value for o in Outcome])
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


def _speed(options: Options, root: Path) -> str:
    run = _run(options, root)
    table = speed(run.cells)
    if not table.rows:
        raise MarkError(f"run {run.run.id!r} measured no speedup")
    rows = []
    for row in table.rows:
        texts = [code(row.attention)]
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


def _margins(options: Options, root: Path) -> str:
    """How far a run's figures lie from each bound: the farthest within it and the nearest beyond it."""
    run = _run(options, root)
    checks = _listed(options, "check", CHECKS.names)
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
        _where(rule),
        f"{sign} {_bound(rule, rule.passes)}",
        f"{len(values):,}",
        middle,
        *ends,
    ]


def _costs(options: Options, root: Path) -> str:
    """Seconds of each check: in the eager cell, which pays for loading, reference and yardstick, and in the others."""
    run = _run(options, root)
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


# -- from compat's own tables ------------------------------------------------------------------------------------


def _criteria(options: Options, root: Path) -> str:
    checks = _listed(options, "check", CHECKS.names)
    rules = [r for r in criteria().rules if checks is None or r.check in checks]
    if not rules:
        raise MarkError(f"compat/criteria has no rule for {options.get('check', 'any check')}")
    rows = [
        [code(r.measurement), _where(r), _bound(r, r.passes), _beyond(r), _own(r.source)]
        for r in rules
    ]  # fmt: skip
    return _table(["measurement", "holds for", "pass", "beyond that", "source"], rows, "llrll")


def _where(rule: Rule) -> str:
    only = [f"{axis} {', '.join(values)}" for axis, values in rule.only.items()]
    but = [f"not {axis} {', '.join(values)}" for axis, values in rule.excepted.items()]
    return _own("; ".join([*only, *but])) or "every cell"


def _bound(rule: Rule, value: float) -> str:
    return f"{value:g} x stored" if rule.band else f"{value:g}"


def _beyond(rule: Rule) -> str:
    if rule.guard:
        return "inconclusive"
    return "fail" if rule.degraded is None else f"degraded to {_bound(rule, rule.degraded)}, then fail"


def _own_findings(options: Options, root: Path) -> str:
    """The facts of `load` that have an outcome of their own."""
    found = {name: row for table in criteria_tables().values() for name, row in table.get("finding", {}).items()}
    rows = [[code(name), row["outcome"], _own(row["source"])] for name, row in found.items()]
    return _table(["finding", "outcome", "source"], rows, "lll")


def _refusals(options: Options, root: Path) -> str:
    rows = [[code(r.id), r.outcome.value, code(r.type), _own(r.meaning)] for r in refusals()]
    return _table(["id", "outcome", "exception", "meaning"], rows, "llll")


def _own(text: str) -> str:
    """Text of compat's own tables, for a cell of a Markdown table."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def _axes(options: Options, root: Path) -> str:
    """The values of an axis, as its registry has them."""
    if options["axis"] == "dtype":
        return _table(["dtype", "torch"], [[code(d.name), code(d.torch_name)] for d in DTYPES], "ll")
    if options["axis"] == "attention":
        rows = [[code(a.name), code(a.implementation), _kernel(a.sdpa_kernel), ", ".join(sorted(a.kinds))]
                for a in ATTENTION]  # fmt: skip
        return _table(
            ["attention", "asked of transformers", "forced SDPA kernel", "counts as having run"], rows, "llll"
        )
    if options["axis"] == "quantization":
        rows = [[code(q.name), q.library or "-", f"{q.bits:g}" if q.bits else "-"] for q in QUANTIZATIONS]
        return _table(["quantization", "library", "bits a weight"], rows, "llr")
    raise MarkError("axis is one of dtype, attention, quantization; models have a mark of their own, compat:models")


def _kernel(name: str | None) -> str:
    return code(name) if name else "-"


def _models(options: Options, root: Path) -> str:
    data = tomllib.loads((matrices_folder() / "models.toml").read_text(encoding="utf-8"))
    rows = [
        [code(name), row["source"], row["task"], _own(", ".join(row.get("features", ())))]
        for name, row in data["models"].items()
    ]
    return _table(["model", "source", "task", "features"], rows, "llll")


# -- from a stored benchmark -------------------------------------------------------------------------------------


def _cost(options: Options, root: Path) -> str:
    """The tables of benchmarks/harness_cost.py from the JSON that it wrote."""
    path = root / options["file"]
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        return "\n\n".join(_cost_parts(data))
    except OSError as error:
        raise MarkError(f"{options['file']}: {error.strerror}") from error
    except (KeyError, TypeError) as error:
        raise MarkError(f"{options['file']}: not a file of benchmarks/harness_cost.py: {error}") from error


def _cost_parts(data: Any) -> Iterator[str]:
    machine, work = data["machine"], data["work"]
    packages = ", ".join(f"{name} {machine['packages'][name]}" for name in ("torch", "transformers"))
    yield (
        f"Measured on {code(machine['cpu'])} ({code(packages)}), {code(data['started'][:10])}: "
        f"{work['cells']:,} cells, {work['checks']:,} checks, median of {plural(work['repeats'], 'repeat')}."
    )
    overhead = data["overhead"]
    yield (
        f"Wall time over the seconds spent in model calls: {overhead['ratio']:.2f} ({overhead['wall_seconds']:.1f} s "
        f"over {overhead['model_seconds']:.1f} s)."
    )
    rows = [
        [name if name == "all" else code(name), f"{row['checks']:,}", f"{1e3 * row['harness_seconds']:.0f}",
         f"{1e3 * row['plain_seconds']:.0f}", f"{row['ratio']:.1f}", f"{row['median_ratio']:.1f}"]
        for name, row in data["per_check"].items()
    ]  # fmt: skip
    head = ["check", "asked", "compat, ms a check", "plain loop, ms a check", "ratio", "median ratio of a cell"]
    yield _table(head, rows, "lrrrrr")


_RUN = {"run": True}
GENERATORS: dict[str, tuple[Generator, dict[str, bool]]] = {
    "matrix": (_matrix, _RUN | {"dtypes": False, "quantizations": False, "legend": False}),
    "verdict": (_verdict, _RUN),
    "environment": (_environment, _RUN),
    "findings": (_findings, _RUN | {"outcomes": False}),
    "speed": (_speed, _RUN),
    "margins": (_margins, _RUN | {"check": False}),
    "costs": (_costs, _RUN),
    "criteria": (_criteria, {"check": False}),
    "load-findings": (_own_findings, {}),
    "refusals": (_refusals, {}),
    "axes": (_axes, {"axis": True}),
    "models": (_models, {}),
    "cost": (_cost, {"file": True}),
}
"""Name of a mark -> its generator, and its options: option -> whether it must be given."""


if __name__ == "__main__":
    raise SystemExit(main())
