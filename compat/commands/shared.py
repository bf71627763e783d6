"""What commands have in common: the parser, arguments of several commands, printing a run."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from compat.builtin import OWN
from compat.commands import arguments
from compat.exit_codes import USAGE

if TYPE_CHECKING:
    from compat.records import Run


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with exit code 4."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message; exit code 4."""
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(USAGE)


def selection(parser: argparse.ArgumentParser, default: str = "", only_with: str = "") -> None:
    """The matrix, and which of its cells. `default`: the one that need not be named, `only_with` this flag."""
    known = f"a matrix file, or one of {', '.join(OWN)}"
    if default:
        known += f" (default{' with ' + only_with if only_with else ''}: {default})"
    count = {"nargs": "?", "default": None if only_with else default} if default else {}
    parser.add_argument("matrix", type=arguments.matrix, metavar="MATRIX", help=known, **count)  # type: ignore[arg-type]
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: what is detected")
    parser.add_argument(
        "--cells",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="ids with wildcards, e.g. 'llama/{bf16,fp16}/sdpa*/none'",
    )


def checks(parser: argparse.ArgumentParser) -> None:
    """Which checks."""
    parser.add_argument("--checks", type=arguments.checks, default=(), metavar="LIST", help="e.g. load,agreement")


def conducting(parser: argparse.ArgumentParser) -> None:
    """What every command has that starts workers on a matrix."""
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: compat-runs/ID)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="continue the run in DIR")
    parser.add_argument(
        "--timeout", type=arguments.seconds, metavar="SECONDS", help="limit of every check (default: by check)"
    )
    parser.add_argument("--memory-limit", type=arguments.size, metavar="SIZE", help="host memory of a worker, e.g. 8G")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder for checkpoints and stacks")
    parser.add_argument(
        "--stack", type=arguments.stack, metavar="NAME", help="run the workers in this stack (default: the matrix's)"
    )
    parser.add_argument("--seed", type=int, help="seed of inputs (default: the matrix's)")
    known = ",".join(arguments.FAIL_ON)
    parser.add_argument(
        "--fail-on", type=arguments.outcomes, default=(), metavar="LIST", help=f"exit 1 for any of: {known}"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    github(parser)


def github(parser: argparse.ArgumentParser) -> None:
    """Whether to tell GitHub Actions."""
    parser.add_argument(
        "--github",
        action=argparse.BooleanOptionalAction,
        help="annotations and a step summary for GitHub Actions (default: in one of its steps)",
    )


def expecting(parser: argparse.ArgumentParser, what: str) -> None:
    """Which expectations, and how strictly; `what` is said of the file."""
    parser.add_argument("--expectations", type=Path, metavar="FILE", help=what)
    parser.add_argument("--strict", action="store_true", help="count unexpected passes too")


def as_interrupt(*_: Any) -> None:
    """A handler of SIGTERM: ended like Ctrl-C."""
    raise KeyboardInterrupt


def screen(piped: int = 80, least: int = 80) -> tuple[int, bool]:
    """Columns of the terminal, from `least` to 120 (`piped` where there is none), and whether it shows colour."""
    import shutil

    if not sys.stdout.isatty():
        return piped, False
    return max(least, min(shutil.get_terminal_size((80, 24)).columns, 120)), "NO_COLOR" not in os.environ


def put(text: str, out: Path | None) -> bool:
    """Print `text`, or write it to a file; False (and a message) where the file takes none."""
    from compat.store import write_whole

    if out is None:
        print(text, end="")
        return True
    try:
        write_whole(out, text.encode("utf-8"))
    except OSError as error:
        print(f"compat: {out}: {error.strerror}", file=sys.stderr)
        return False
    return True


def progress(quiet: bool) -> Callable[[str], None]:
    """What says how far a command is: a line on stderr, or nothing."""
    if quiet:
        return lambda text: None
    return functools.partial(print, file=sys.stderr, flush=True)


def print_report(run: Any) -> None:
    """A stored run as its terminal report."""
    from compat.render import render

    width, color = screen()
    print(render(run, "terminal", width=width, color=color))


def tell_step(run: Run, path: Path | None, expected: Set[tuple[str, str]] = frozenset()) -> None:
    """Annotations and summary of a step of GitHub Actions. A file that cannot be written is said, and no failure."""
    from compat import github

    if path is None:
        return
    try:
        print(github.tell(run, path, expected), end="")
    except OSError as error:
        print(f"compat: {path}: the step's summary cannot be written: {error.strerror}", file=sys.stderr)
