"""What `compat upgrade` and `compat bisect` do: from parsed arguments to an exit code. Front ends without logic.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from compat.commands import arguments as read
from compat.commands import shared
from compat.exit_codes import FINDINGS, INTERNAL, INTERRUPTED, NOTHING, OK


def _two_stacks(parser: argparse.ArgumentParser) -> None:
    """What `upgrade` and `bisect` have in common."""
    for name, dest, words in (("--from", "before", "that is left"), ("--to", "after", "that is gone to")):
        parser.add_argument(
            name, dest=dest, type=read.stack, default="current", metavar="STACK",
            help=f"the stack {words}: a name or a file (default: current)",
        )  # fmt: skip
    parser.add_argument(
        "--matrix", type=read.matrix, default="upgrade", metavar="M", help="a matrix (default: upgrade)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: what is detected")
    parser.add_argument("--seed", type=int, help="seed of inputs (default: the matrix's)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder for checkpoints and stacks")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def add_upgrade(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of `compat upgrade`."""
    _two_stacks(parser)
    parser.add_argument("--cells", nargs="+", default=[], metavar="PATTERN", help="ids with wildcards")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the upgrade (default: compat-upgrades/ID)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="continue the upgrade in DIR")
    parser.add_argument("--show", type=Path, metavar="DIR", help="print a stored upgrade, run nothing")
    parser.add_argument(
        "--fail-on",
        type=read.upgrade_kinds,
        default=read.upgrade_kinds("regressed,changed,coverage"),
        metavar="LIST",
        help="kinds of findings that make it exit 1: regressed, changed, coverage, slower (default: the first three)",
    )
    parser.add_argument("--no-timing", action="store_true", help="time nothing")
    parser.add_argument("--workers", type=read.positive, metavar="N", help="worker processes of the runs")
    parser.add_argument("--timeout", type=read.seconds, metavar="SECONDS", help="limit of every question")
    parser.add_argument("--memory-limit", type=read.size, metavar="SIZE", help="host memory of a worker, e.g. 8G")
    parser.set_defaults(run=upgrade)


def add_bisect(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of `compat bisect`."""
    _two_stacks(parser)
    parser.add_argument("--cell", required=True, metavar="CELL", help="a cell's id, e.g. falcon/bf16/sdpa/bnb-nf4")
    about = parser.add_mutually_exclusive_group()
    about.add_argument("--check", type=read.check, metavar="NAME", help="the outcome of this check")
    about.add_argument(
        "--across", type=read.across, metavar="NAME", help="this finding of `compat upgrade` (default: the first)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the bisection (default: compat-bisects/ID)")
    parser.set_defaults(run=bisect)


def upgrade(arguments: argparse.Namespace) -> int:
    """Run both stacks, compare them, print and store what was found."""
    from compat.render.upgrade import render_markdown
    from compat.upgrade.conduct import Stopped, UpgradeOptions, again, conduct
    from compat.upgrade.result import FILE, failing, read, write

    if arguments.show is not None:
        return _shown(read(arguments.show), arguments.fail_on)
    options = UpgradeOptions(
        before=arguments.before,
        after=arguments.after,
        matrix=arguments.matrix,
        device=arguments.device,
        patterns=tuple(arguments.cells),
        out=arguments.out,
        resume=arguments.resume,
        workers=arguments.workers,
        seed=arguments.seed,
        timeout_seconds=arguments.timeout,
        memory_limit_bytes=arguments.memory_limit,
        cache=arguments.cache,
        timing=not arguments.no_timing,
        argv=tuple(sys.argv),
    )
    signal.signal(signal.SIGTERM, shared.as_interrupt)
    try:
        found, folder = conduct(options, shared.progress(arguments.quiet))
    except Stopped as stopped:
        print(f"Interrupted. Continue: {again(options, stopped.folder)}", file=sys.stderr)
        return INTERRUPTED
    _print(found, arguments.fail_on)
    try:
        files = write(found, folder, render_markdown(found, arguments.fail_on))
    except OSError as error:
        print(f"compat: {folder / FILE}: cannot be written: {error.strerror}", file=sys.stderr)
        return INTERNAL
    print(f"\nStored: {folder} ({', '.join(files)}, before, after)")
    return _code(found, failing(found, arguments.fail_on))


def bisect(arguments: argparse.Namespace) -> int:
    """Name the package and the version that changed a cell."""
    from compat.store import write_whole
    from compat.upgrade.bisecting import BisectOptions, conduct
    from compat.upgrade.bisection import FILE, encode, lines

    options = BisectOptions(
        before=arguments.before,
        after=arguments.after,
        matrix=arguments.matrix,
        cell=arguments.cell,
        check=arguments.check or "",
        across=arguments.across or "",
        device=arguments.device,
        out=arguments.out,
        seed=arguments.seed,
        cache=arguments.cache,
        argv=tuple(sys.argv),
    )
    signal.signal(signal.SIGTERM, shared.as_interrupt)
    found, folder = conduct(options, shared.progress(arguments.quiet))
    print("\n".join(lines(found)))
    try:
        write_whole(folder / FILE, encode(found))
    except OSError as error:
        print(f"compat: {folder / FILE}: cannot be written: {error.strerror}", file=sys.stderr)
        return INTERNAL
    print(f"\nStored: {folder} ({FILE}, stacks)")
    return NOTHING if found.nothing else OK


def _shown(found: Any, fail_on: tuple[str, ...]) -> int:
    """Print a stored upgrade; its exit code."""
    from compat.upgrade.result import failing

    _print(found, fail_on)
    return _code(found, failing(found, fail_on))


def _code(found: Any, failed: Any) -> int:
    if found.errors or any(f.after.startswith("error") for f in found.checks):
        return INTERNAL
    if not found.compared:
        return NOTHING
    return FINDINGS if failed else OK


def _print(found: Any, fail_on: tuple[str, ...]) -> None:
    from compat.render.upgrade import render_terminal

    width, color = shared.screen(piped=100)
    print(render_terminal(found, width=width, color=color, fail_on=fail_on), end="")
