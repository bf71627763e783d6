"""What `compat explain` and `compat schema` do: from parsed arguments to an exit code. A front end without logic."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compat.commands import arguments as read
from compat.commands import shared
from compat.exit_codes import FINDINGS, NOTHING, OK, USAGE

if TYPE_CHECKING:
    from compat.records import Cell, Check, Run
    from compat.render.issue import Tried
    from compat.story import Story


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument("stored", type=Path, metavar="RUN", help="a run's folder, or its run.json")
    parser.add_argument("cell", metavar="CELL", help="the cell's id, or a pattern that fits one cell")
    parser.add_argument(
        "--check", type=read.check, metavar="NAME", help="this check alone, with every row of its criteria"
    )
    parser.add_argument(
        "--history", type=Path, nargs="+", metavar="RUN", help="other runs (default: those beside this one)"
    )
    parser.add_argument("--script", type=Path, metavar="FILE", help="write the script that shows the failure")
    parser.add_argument("--issue", type=Path, metavar="FILE", help="write a text for an upstream issue, in Markdown")
    parser.add_argument(
        "--try", action="store_true", dest="attempt", help="run the script here first; exit 1 if it shows no defect"
    )
    parser.add_argument("--format", choices=("terminal", "markdown"), default="terminal")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write to FILE instead of the screen")
    parser.set_defaults(run=explain)


def add_schema(parser: argparse.ArgumentParser) -> None:
    """Describe `compat schema`, which has no arguments."""
    parser.set_defaults(run=schema)


def schema(arguments: argparse.Namespace) -> int:
    """Print the JSON Schema of run.json."""
    from compat.schema import text

    print(text(), end="")
    return OK


def explain(arguments: argparse.Namespace) -> int:
    """Tell the story of one cell of a stored run; write its script and a text for an issue where asked to."""
    from compat.compare import history
    from compat.store import read_run
    from compat.story import CellNotFound, find, find_check, story

    run = read_run(arguments.stored)
    try:
        cell = find(run, arguments.cell)
        check = find_check(cell, arguments.check) if arguments.check else None
    except CellNotFound as error:
        print(f"compat: {error}", file=sys.stderr)
        return USAGE
    paths, left = (arguments.history, 0) if arguments.history is not None else history.beside(arguments.stored)
    others = history.read(paths) if arguments.history is not None else _readable(paths, cell.id)
    told = story(run, cell, history.past(cell.id, [(str(arguments.stored), run), *others]), left)
    scripts = _scripts(run, cell, check)
    subject, script = next(iter(scripts), (None, ""))
    if (arguments.script or arguments.issue or arguments.attempt) and subject is None:
        asked = f"check {check.name!r}" if check else "any check"
        print(f"compat: {cell.id}: no script shows {asked} ({cell.reason or cell.outcome.value})", file=sys.stderr)
        return NOTHING
    files: dict[Path, str] = {}
    code, tried = OK, None
    if arguments.attempt and subject is not None:
        tried = _tried(script)
        if tried is None:
            return FINDINGS
        code = OK if tried.code == 1 else FINDINGS
    if subject is not None and arguments.script:
        files[arguments.script] = script
    if subject is not None and arguments.issue and code == OK:
        from compat.render.issue import render_issue

        files[arguments.issue] = render_issue(told, subject, script, tried)
    if arguments.out is not None:
        files[arguments.out] = _rendered(arguments, told, [c for c, _ in scripts])
    if wrong := _write(files):
        print(f"compat: {wrong}", file=sys.stderr)
        return USAGE
    if arguments.out is None:
        print(_rendered(arguments, told, [c for c, _ in scripts]), end="")
    if tried is not None:
        shows = {0: "does not show here", 1: "shows here too", 2: "could not be looked for"}.get(
            tried.code, "is unclear"
        )
        print(f"\nThe script was run with {tried.packages}: exit code {tried.code}, the defect {shows}.")
        if arguments.issue and code != OK:
            print(f"compat: {arguments.issue} was not written: the script shows no defect here", file=sys.stderr)
    return code


def _readable(paths: tuple[Path, ...], cell: str) -> list[tuple[str, Run]]:
    """The runs beside that have the cell: nobody named them, so one that cannot be read is told and left out."""
    from compat.compare import history
    from compat.store import StoreError

    found = []
    for path in paths:
        try:
            found += history.read([path])
        except StoreError as error:
            print(f"compat: left out of the history: {error}", file=sys.stderr)
    return [(where, run) for where, run in found if any(c.id == cell for c in run.cells)]


def _scripts(run: Run, cell: Cell, wanted: Check | None) -> list[tuple[Check, str]]:
    """The checks that have a script (of the one that is wanted, or of all), each with it."""
    from compat.stored import reproducer

    asked = cell.checks if wanted is None else (wanted,)
    return [(check, text) for check in asked if (text := reproducer(run, cell, check))]


def _rendered(arguments: argparse.Namespace, told: Story, shown: Sequence[Check]) -> str:
    from compat.render.story import story_markdown, story_terminal

    scripts = [(c.name, _place(arguments, told.cell.id, c, first=c is shown[0])) for c in shown]
    name = arguments.check or ""
    if arguments.format == "markdown":
        return story_markdown(told, name, scripts)
    width, color = shared.screen(piped=100, least=60) if arguments.out is None else (100, False)
    return story_terminal(told, name, scripts, width=width, color=color)


def _place(arguments: argparse.Namespace, cell: str, subject: Check, first: bool) -> str:
    """Where the script is: the file asked for, the one beside the run, or else the command that writes it."""
    from compat import reproduce
    from compat.render.telling import WRITES

    if arguments.script is not None and first:
        return str(arguments.script)
    beside = arguments.stored / reproduce.FOLDER / subject.evidence.script
    if subject.evidence.script and beside.is_file():
        return str(beside)
    words = [str(arguments.stored), cell, "--check", subject.name, "--script", reproduce.file_name(cell, subject.name)]
    return WRITES + shlex.join(words)


def _tried(script: str) -> Tried | None:
    from compat.trying import TryError, tried

    try:
        return tried(script)
    except TryError as error:
        print(f"compat: {error}", file=sys.stderr)
        return None


def _write(files: dict[Path, str]) -> str:
    """Write every file whole; "" or what went wrong."""
    from compat.store import write_whole

    for path, text in files.items():
        try:
            write_whole(path, text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            return f"{path}: {error.strerror}"
    return ""
