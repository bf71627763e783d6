"""What `compat stack create|list|check` does: from parsed arguments to an exit code. A front end without logic.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from compat.commands import arguments as read
from compat.commands import shared
from compat.exit_codes import FINDINGS, OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the read."""
    add = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=shared.Parser)
    create_ = add.add_parser("create", help="make the environment of a stack, unless it exists")
    check_ = add.add_parser("check", help="import what a stack pins and compare the versions; 1 where they differ")
    listing_ = add.add_parser("list", help="every stack: pins, whether it is created, size, folder")
    for one in (create_, check_):
        one.add_argument("stack", type=read.stack, metavar="NAME", help="a stack, or a file of that form")
    create_.add_argument("-q", "--quiet", action="store_true", help="no progress")
    for each, run in (
        (create_, create),
        (listing_, listing),
        (check_, check),
    ):
        each.add_argument("--cache", type=Path, metavar="DIR", help="folder for checkpoints and stacks")
        each.set_defaults(run=run)


def create(arguments: argparse.Namespace) -> int:
    """Make the environment of a stack, unless it exists."""
    from compat import environments, stacks

    stack = stacks.find(arguments.stack)
    if stack.current:
        print(f"{stack.name} is what is installed in {sys.prefix}: there is nothing to create")
        return OK
    folder = environments.create(stack, arguments.cache, shared.progress(arguments.quiet))
    made = environments.receipt(folder)
    assert made is not None
    print(f"{stack.name}: {folder} ({_megabytes(made.bytes)}, made in {made.seconds:.0f} s)")
    return OK


def listing(arguments: argparse.Namespace) -> int:
    """Every stack: pins, whether it is created, size, folder."""
    from compat import environments, stacks

    below = environments.base()
    for name in stacks.names():
        stack = stacks.find(name)
        print(f"{stack.name}: {stack.title}")
        if stack.current:
            print(f"  here: Python {below.python}, {sys.prefix}")
            continue
        print("  pins: " + ", ".join(f"{n} {v}" for n, v in stack.pins.items()))
        folder = environments.place(stack, arguments.cache, below)
        made = environments.receipt(folder)
        if made is None:
            print(f"  not created: compat stack create {stack.name}")
        else:
            kind = f"over {made.prefix}" if made.overlay else "shares nothing"
            print(f"  created {made.created}, {_megabytes(made.bytes)}, {kind}: {folder}")
        for other in environments.older(stack, arguments.cache):
            print(f"  not used from here (its file or its base was another): {_size(other)}, {other}")
    return OK


def check(arguments: argparse.Namespace) -> int:
    """Import what a stack pins, compare the versions."""
    from compat import environments, stacks

    stack = stacks.find(arguments.stack)
    findings = environments.check(stack, environments.interpreter(arguments.stack, arguments.cache))
    for finding in findings:
        said = finding.problem or finding.found or "imported"
        print(f"{'wrong' if finding.problem else 'ok':<6} {finding.subject} {said}".rstrip())
    wrong = sum(bool(f.problem) for f in findings)
    print(f"{stack.name}: {len(findings)} looked at, {wrong} wrong" if wrong else f"{stack.name} is as its file says")
    return FINDINGS if wrong else OK


def _size(folder: Path) -> str:
    from compat.environments import receipt

    made = receipt(folder)
    return _megabytes(made.bytes if made is not None else 0)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
