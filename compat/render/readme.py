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
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compat import store
from compat.render import readme_runs, readme_support, readme_tables
from compat.render.readme_marks import Generator, MarkError, hint

OK, STALE, USAGE = 0, 1, 4

_START = re.compile(r"<!-- compat:(?P<name>[\w-]+)(?P<options>( .*?)?) -->")
_END = "<!-- compat:end -->"
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


@dataclass(frozen=True)
class Mark:
    """A marked place: `start` and `end` are the numbers (from 0) of the lines that hold the two comments."""

    name: str
    options: Mapping[str, str]
    start: int
    end: int


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
        raise MarkError(f"{at}: unknown mark compat:{name}{hint(name, GENERATORS)}")
    known = GENERATORS[name][1]
    options = {}
    for word in shlex.split(text):
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise MarkError(f"{at}: compat:{name}: {word!r} is not key=value")
        if key not in known:
            raise MarkError(f"{at}: compat:{name}: unknown option {key!r}{hint(key, known)}")
        options[key] = value
    missing = [k for k, required in known.items() if required and k not in options]
    if missing:
        raise MarkError(f"{at}: compat:{name}: {missing[0]} is missing")
    return options


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


_RUN = {"run": True}
GENERATORS: dict[str, tuple[Generator, dict[str, bool]]] = {
    "matrix": (readme_runs.matrix_part, _RUN | {"dtypes": False, "quantizations": False, "legend": False}),
    "verdict": (readme_runs.verdict_part, _RUN),
    "environment": (readme_runs.environment_part, _RUN),
    "findings": (readme_runs.findings_part, _RUN | {"outcomes": False}),
    "speed": (readme_runs.speed_part, _RUN),
    "grids": (readme_runs.grids_part, _RUN | {"models": False, "plots": False}),
    "support": (readme_support.support_part, _RUN | {"models": False}),
    "systems": (readme_support.systems_part, {"reports": False, "form": False}),
    "margins": (readme_runs.margins_part, _RUN | {"check": False}),
    "costs": (readme_runs.costs_part, _RUN),
    "criteria": (readme_tables.criteria_part, {"check": False}),
    "load-findings": (readme_tables.own_findings_part, {}),
    "refusals": (readme_tables.refusals_part, {}),
    "axes": (readme_tables.axes_part, {"axis": True}),
    "models": (readme_tables.models_part, {}),
    "cost": (readme_tables.cost_part, {"file": True}),
    "noise": (readme_tables.noise_part, {"file": True}),
    "filter": (readme_tables.filter_part, {"file": True}),
}
"""Name of a mark -> its generator, and its options: option -> whether it must be given."""


if __name__ == "__main__":
    raise SystemExit(main())
