"""The `compat` command: its parser, put together from those of the commands (compat/commands), and what ends it.

Exit codes: 0 done (whatever was found; `--fail-on` makes findings count), 1 a result that --fail-on names, 2
interrupted, 3 the harness failed (an `error` outcome, or an exception of ours), 4 usage (arguments, matrix, stored
run), 5 nothing to run.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from compat import __version__
from compat.commands import diff, expect, explain, listing, run, selftest, shared, stack, stored, upgrade
from compat.exit_codes import INTERNAL, INTERRUPTED, NOTHING, OK, USAGE
from compat.publish import command as publish


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parsed = _parser().parse_args(argv)
    if parsed.command is None:
        _parser().print_help()
        return USAGE
    from compat.environments import CreateError, NotCreated
    from compat.github import GithubError
    from compat.matrix import MatrixError
    from compat.session import SessionError
    from compat.store import StoreError
    from compat.upgrade.releases import ReleaseError

    try:
        code = int(parsed.run(parsed))
        sys.stdout.flush()  # here, where a reader that has left is no error
        return code
    except (CreateError, ReleaseError) as error:
        print(f"compat: {error}", file=sys.stderr)
        return INTERNAL
    except (MatrixError, StoreError, NotCreated, GithubError) as error:
        print(f"compat: {error}", file=sys.stderr)
        return USAGE
    except SessionError as error:
        print(f"compat: {error}", file=sys.stderr)
        return NOTHING if str(error).startswith("nothing selected") else USAGE
    except KeyboardInterrupt:
        print("compat: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left; that is not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception:  # a fault of ours: code 1 would mean findings
        traceback.print_exc()
        return INTERNAL


def _parser() -> argparse.ArgumentParser:
    parser = shared.Parser(
        prog="compat",
        description="Which model x dtype x attention x quantization combinations work here, with evidence.",
        epilog="exit codes: 0 done, 1 a result that --fail-on names, 2 interrupted, 3 harness failure, 4 usage, "
        "5 nothing to run",
    )
    parser.add_argument("--version", action="version", version=f"compat {__version__}")
    add = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=shared.Parser)
    run.add_run(add.add_parser("run", help="run a matrix, print the table, store the run and its reports"))
    run.add_speed(
        add.add_parser(
            "speed",
            help="time a matrix over a grid of lengths, batches and padding",
            description="Time the cells of a matrix that have a speed check, over a grid, each against a baseline.",
            epilog=run.SPEED_HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    listing.add_arguments(
        add.add_parser("list", help="what would run, why the rest would not, and an estimate of time")
    )
    selftest.add_arguments(
        add.add_parser(
            "selftest",
            help="inject known bugs one at a time: which checks see each?",
            epilog="exit codes: 0 done, 1 the kill rate is below --at-least or a benign change was flagged, "
            "2 interrupted, 3 harness failure, 4 usage (an unknown fault)",
        )
    )
    stack.add_arguments(add.add_parser("stack", help="make, list and check environments of other package versions"))
    upgrade.add_upgrade(
        add.add_parser(
            "upgrade",
            help="run two stacks, compare what they do: is anything worse or otherwise?",
            description="Make the environments of two stacks, run a matrix on both with the same stored weights, ask "
            "both the same beside that, time them in turns, and say what is not as it was.",
            epilog="exit codes: 0 clean, 1 a finding that --fail-on names, 2 interrupted, 3 harness failure or an "
            "environment that cannot be made, 4 usage, 5 nothing comparable",
        )
    )
    upgrade.add_bisect(
        add.add_parser(
            "bisect",
            help="which package, and which version of it, changed a cell between two stacks",
            description="Test both stacks again, swap the versions of one package at a time, then halve the versions "
            "of the package that does it. Environments are made as they are needed, and kept.",
            epilog="exit codes: 0 named, 2 interrupted, 3 harness failure, an environment that cannot be made, or no "
            "answer from the package index, 4 usage, 5 the two stacks behave the same, or no package can be named",
        )
    )
    stored.add(add)
    explain.add_arguments(
        add.add_parser("explain", help="the whole story of one cell of a stored run, and a script that shows it")
    )
    explain.add_schema(add.add_parser("schema", help="print the JSON Schema of run.json"))
    diff.add(add)
    expect.add(add)
    publish.add_arguments(add.add_parser("publish", help="make a static site of stored runs"))
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
