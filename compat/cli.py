"""The `compat` command: its arguments, and what ends it. compat/commands.py, compat/stack_commands.py and
compat/upgrade_commands.py say what each command does.

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
from pathlib import Path
from typing import Any, NoReturn

from compat import (
    __version__,
    arguments,
    commands,
    diff_commands,
    expect_commands,
    explain_commands,
    list_models,
    stack_commands,
    upgrade_commands,
)
from compat.exit_codes import INTERNAL, INTERRUPTED, NOTHING, OK, USAGE
from compat.publish import command as publish_command

SPEED_HELP = """\
a point is written ROWSxTOKENS@PADDING: 4x2048@0.3 is 4 rows, the longest of 2048 tokens, with 30% of all positions
padding. What an item of --grid leaves out comes from --batch (default 1) and --padding (default 0):

  compat speed                                                     compat's own matrix and grid for speed
  compat speed default --grid 4x256,4x2048@0.3                     two points
  compat speed default --grid 256,2048,4096 --batch 1,4            six points
  compat speed default --grid 256,2048 --batch 4 --padding 0,0.3   four points
  compat speed mine.toml --padding 0,0.5                           the grid of the matrix, padded otherwise

One row has no padding, so such combinations are left out. Without --grid the matrix's [speed] table says what is
measured; without that, 128 and 256 tokens in 4 rows, padded by 0 and 0.3.

a baseline is `eager` (the default), an attention backend, or a cell's id in which * stands for what is the cell's own:

  compat speed default --baseline sdpa                             every backend against sdpa
  compat speed default --baseline '*/*/*/none'                     every quantization against none
  compat speed default --baseline '*/bf16/sdpa/none'               every cell of a model against one
"""
"""The second half of `compat speed --help`."""


DEFAULT_GATES = ("regressed",)
"""What fails `compat diff` where nothing is named."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(USAGE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parsed = _parser().parse_args(argv)
    if parsed.command is None:
        _parser().print_help()
        return USAGE
    from compat.environments import CreateError, NotCreated
    from compat.github import GithubError
    from compat.matrix import MatrixError
    from compat.releases import ReleaseError
    from compat.session import SessionError
    from compat.store import StoreError

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
    parser = _Parser(
        prog="compat",
        description="Which model x dtype x attention x quantization combinations work here, with evidence.",
        epilog="exit codes: 0 done, 1 a result that --fail-on names, 2 interrupted, 3 harness failure, 4 usage, "
        "5 nothing to run",
    )
    parser.add_argument("--version", action="version", version=f"compat {__version__}")
    add = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    _run(add.add_parser("run", help="run a matrix, print the table, store the run and its reports"))
    _speed(
        add.add_parser(
            "speed",
            help="time a matrix over a grid of lengths, batches and padding",
            description="Time the cells of a matrix that have a speed check, over a grid, each against a baseline.",
            epilog=SPEED_HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    _list(add.add_parser("list", help="what would run, why the rest would not, and an estimate of time"))
    _selftest(
        add.add_parser(
            "selftest",
            help="inject known bugs one at a time: which checks see each?",
            epilog="exit codes: 0 done, 1 the kill rate is below --at-least or a benign change was flagged, "
            "2 interrupted, 3 harness failure, 4 usage (an unknown fault)",
        )
    )
    _stack(add.add_parser("stack", help="make, list and check environments of other package versions"))
    _upgrade(
        add.add_parser(
            "upgrade",
            help="run two stacks, compare what they do: is anything worse or otherwise?",
            description="Make the environments of two stacks, run a matrix on both with the same stored weights, ask "
            "both the same beside that, time them in turns, and say what is not as it was.",
            epilog="exit codes: 0 clean, 1 a finding that --fail-on names, 2 interrupted, 3 harness failure or an "
            "environment that cannot be made, 4 usage, 5 nothing comparable",
        )
    )
    _bisect(
        add.add_parser(
            "bisect",
            help="which package, and which version of it, changed a cell between two stacks",
            description="Test both stacks again, swap the versions of one package at a time, then halve the versions "
            "of the package that does it. Environments are made as they are needed, and kept.",
            epilog="exit codes: 0 named, 2 interrupted, 3 harness failure, an environment that cannot be made, or no "
            "answer from the package index, 4 usage, 5 the two stacks behave the same, or no package can be named",
        )
    )
    _stored(add)
    _diff(add)
    publish_command.add_arguments(add.add_parser("publish", help="make a static site of stored runs"))
    return parser


def _conducting(parser: argparse.ArgumentParser) -> None:
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
    _github(parser)


def _github(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--github",
        action=argparse.BooleanOptionalAction,
        help="annotations and a step summary for GitHub Actions (default: in one of its steps)",
    )


def _run(parser: argparse.ArgumentParser) -> None:
    _selection(parser)
    _checks(parser)
    _conducting(parser)
    parser.add_argument(
        "--workers", type=arguments.positive, metavar="N", help="worker processes (default: one a GPU, two on a CPU)"
    )
    parser.add_argument(
        "--depth", choices=("quick", "standard", "deep"), help="how much each check looks at (default: the matrix's)"
    )
    parser.add_argument("--shard", type=arguments.part, metavar="I/N", help="part I of N; compat merge joins them")
    parser.add_argument(
        "--expect", action="store_true", help="count only failures that the matrix's expectations do not name"
    )
    _expecting(parser, "like --expect, by this file")
    parser.add_argument(
        "--rerun-failures", action="store_true", help="ask unexpected failures once more (--expect does too)"
    )
    parser.set_defaults(run=commands.run_matrix)


def _expecting(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--expectations", type=Path, metavar="FILE", help=what)
    parser.add_argument("--strict", action="store_true", help="count unexpected passes too")


def _speed(parser: argparse.ArgumentParser) -> None:
    _selection(parser, "speed")
    parser.add_argument("--grid", type=arguments.grid, metavar="POINTS", help="e.g. 4x256,4x2048@0.3 or 256,2048")
    parser.add_argument("--batch", type=arguments.batches, metavar="LIST", help="rows, e.g. 1,4")
    parser.add_argument("--padding", type=arguments.padding, metavar="LIST", help="shares of pads, e.g. 0,0.3")
    parser.add_argument(
        "--budget", type=arguments.seconds, metavar="SECONDS", help="time for one comparison (default: by check)"
    )
    against = parser.add_mutually_exclusive_group()
    against.add_argument(
        "--baseline", type=arguments.baseline, metavar="eager|CELL", help="what each cell is compared with"
    )
    against.add_argument(
        "--against",
        type=arguments.environment,
        metavar="STACK|PYTHON",
        help="compare with the same cell in that stack or environment",
    )
    _conducting(parser)
    parser.set_defaults(run=commands.run_speed)


def _list(parser: argparse.ArgumentParser) -> None:
    _selection(parser, "families", only_with="--models")
    _checks(parser)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--ids", action="store_true", help="one cell id a line, nothing else")
    shown.add_argument("--models", action="store_true", help="families: what their classes declare, and was measured")
    own = parser.add_argument_group("with --models")
    own.add_argument("--run", type=Path, metavar="RUN", dest="run_stored", help="a stored run: what was measured")
    own.add_argument("--format", default="terminal", help="terminal, markdown or json")
    own.add_argument("--stack", type=arguments.stack, default="current", metavar="NAME", help="look at its classes")
    own.add_argument("--cache", type=Path, metavar="DIR", help="folder for checkpoints and stacks")

    def conduct(parsed: argparse.Namespace) -> int:
        if parsed.models:
            parsed.matrix = parsed.matrix or arguments.matrix("families")
            return list_models.list_models(parsed)
        if parsed.matrix is None:
            parser.error("the following arguments are required: MATRIX")
        return commands.list_matrix(parsed)

    parser.set_defaults(run=conduct)


def _stack(parser: argparse.ArgumentParser) -> None:
    add = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=_Parser)
    create = add.add_parser("create", help="make the environment of a stack, unless it exists")
    check = add.add_parser("check", help="import what a stack pins and compare the versions; 1 where they differ")
    listing = add.add_parser("list", help="every stack: pins, whether it is created, size, folder")
    for one in (create, check):
        one.add_argument("stack", type=arguments.stack, metavar="NAME", help="a stack, or a file of that form")
    create.add_argument("-q", "--quiet", action="store_true", help="no progress")
    for each, run in (
        (create, stack_commands.create),
        (listing, stack_commands.listing),
        (check, stack_commands.check),
    ):
        each.add_argument("--cache", type=Path, metavar="DIR", help="folder for checkpoints and stacks")
        each.set_defaults(run=run)


def _two_stacks(parser: argparse.ArgumentParser) -> None:
    """What `upgrade` and `bisect` have in common."""
    for name, dest, words in (("--from", "before", "that is left"), ("--to", "after", "that is gone to")):
        parser.add_argument(
            name, dest=dest, type=arguments.stack, default="current", metavar="STACK",
            help=f"the stack {words}: a name or a file (default: current)",
        )  # fmt: skip
    parser.add_argument(
        "--matrix", type=arguments.matrix, default="upgrade", metavar="M", help="a matrix (default: upgrade)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: what is detected")
    parser.add_argument("--seed", type=int, help="seed of inputs (default: the matrix's)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder for checkpoints and stacks")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")


def _bisect(parser: argparse.ArgumentParser) -> None:
    _two_stacks(parser)
    parser.add_argument("--cell", required=True, metavar="CELL", help="a cell's id, e.g. falcon/bf16/sdpa/bnb-nf4")
    about = parser.add_mutually_exclusive_group()
    about.add_argument("--check", type=arguments.check, metavar="NAME", help="the outcome of this check")
    about.add_argument(
        "--across", type=arguments.across, metavar="NAME", help="this finding of `compat upgrade` (default: the first)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the bisection (default: compat-bisects/ID)")
    parser.set_defaults(run=upgrade_commands.bisect)


def _upgrade(parser: argparse.ArgumentParser) -> None:
    _two_stacks(parser)
    parser.add_argument("--cells", nargs="+", default=[], metavar="PATTERN", help="ids with wildcards")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the upgrade (default: compat-upgrades/ID)")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="continue the upgrade in DIR")
    parser.add_argument("--show", type=Path, metavar="DIR", help="print a stored upgrade, run nothing")
    parser.add_argument(
        "--fail-on",
        type=arguments.upgrade_kinds,
        default=arguments.upgrade_kinds("regressed,changed,coverage"),
        metavar="LIST",
        help="kinds of findings that make it exit 1: regressed, changed, coverage, slower (default: the first three)",
    )
    parser.add_argument("--no-timing", action="store_true", help="time nothing")
    parser.add_argument("--workers", type=arguments.positive, metavar="N", help="worker processes of the runs")
    parser.add_argument("--timeout", type=arguments.seconds, metavar="SECONDS", help="limit of every question")
    parser.add_argument("--memory-limit", type=arguments.size, metavar="SIZE", help="host memory of a worker, e.g. 8G")
    parser.set_defaults(run=upgrade_commands.upgrade)


def _selftest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="names with wildcards (default: all)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: what is detected")
    parser.add_argument("--depth", choices=("quick", "standard", "deep"), default="standard")
    parser.add_argument(
        "--at-least",
        type=arguments.percent,
        metavar="PERCENT",
        help="exit 1 below this kill rate (default: 95; quick: 80)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="store selftest.json and selftest.md in DIR")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print a stored self-test, run nothing")
    parser.add_argument("--list", action="store_true", dest="catalogue", help="print the catalogue, run nothing")
    parser.add_argument(
        "--workers",
        type=arguments.positive,
        metavar="N",
        help="worker processes (default: one a processor, at most four)",
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder for checkpoints that compat makes")
    parser.add_argument("--seed", type=int, default=0, help="seed of inputs (default: 0)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=commands.run_selftest)


def _stored(add: Any) -> None:
    """Commands that read stored runs and start nothing."""
    calibrate = add.add_parser("calibrate", help="store what is normal: clean bands and known answers, from runs")
    calibrate.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="stored runs of one device and stack")
    calibrate.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: compat's own)")
    calibrate.add_argument("--answers", action="store_true", help="store the known answers too (any device gives them)")
    calibrate.set_defaults(run=commands.calibrate)

    again = add.add_parser("reproduce", help="print a script that shows one failure of a stored run, alone")
    again.add_argument("stored", type=Path, metavar="RUN", help="a run's folder, or its run.json")
    again.add_argument("cell", metavar="CELL", help="the cell's id")
    again.add_argument(
        "--check", type=arguments.check, metavar="NAME", help="one check (default: the first that has a script)"
    )
    again.set_defaults(run=commands.reproduce)

    _explain(add.add_parser("explain", help="the whole story of one cell of a stored run, and a script that shows it"))
    schema = add.add_parser("schema", help="print the JSON Schema of run.json")
    schema.set_defaults(run=explain_commands.schema)

    report = add.add_parser("report", help="render a stored run again")
    report.add_argument("stored", type=Path, metavar="RUN", help="a run's folder, or its run.json")
    report.add_argument(
        "--format",
        default="terminal",
        help="terminal, markdown, html, json, junit, github (a step's summary) or annotations",
    )
    report.add_argument("--out", type=Path, metavar="FILE", help="write to FILE instead of the screen")
    report.add_argument(
        "--rejudge", action="store_true", help="judge the stored measurements by today's criteria first"
    )
    _github(report)
    report.set_defaults(run=commands.report)


def _diff(add: Any) -> None:
    """Commands that compare stored runs."""
    diff = add.add_parser(
        "diff",
        help="what regressed, was fixed, appeared or went from one stored run to another",
        epilog="exit codes: 0 clean, 1 what --fail-on names was found, 3 harness failure, 4 usage, "
        "5 nothing comparable",
    )
    for name in ("base", "head"):
        diff.add_argument(
            name, metavar=name.upper(), help="a run's folder or file, or its name in compat-runs/ or reports/"
        )
    diff.add_argument("--format", choices=("terminal", "markdown", "json"), default="terminal")
    diff.add_argument("--out", type=Path, metavar="FILE", help="write to FILE instead of the screen")
    diff.add_argument(
        "--fail-on", type=arguments.gates, default=DEFAULT_GATES, metavar="LIST",
        help="exit 1 for any of: regressed,coverage,slower,new-failures,changed,flaky,spurious (default: regressed)",
    )  # fmt: skip
    diff.add_argument(
        "--least-effect", type=arguments.effect, default=0.05, metavar="PERCENT",
        help="smallest difference of a speed to state (default: 5)",
    )  # fmt: skip
    diff.add_argument("--rejudge", action="store_true", help="judge both runs by today's criteria first")
    diff.set_defaults(run=diff_commands.diff)

    merge = add.add_parser("merge", help="join the runs of shards to one")
    merge.add_argument("runs", nargs="+", metavar="RUN", help="folders, files or names, two or more")
    merge.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder of the joined run")
    merge.add_argument(
        "--any-machine", action="store_true", help="the same packages will do; speeds are then not compared"
    )
    merge.set_defaults(run=diff_commands.merge)

    expect = add.add_parser("expect", help="judge a stored run by expectations: which failures are known?")
    expect.add_argument("stored", metavar="RUN", help="a run's folder or file, or its name")
    _expecting(expect, "the file to judge by (default: that of the run's matrix)")
    expect.add_argument(
        "--fail-on", type=arguments.outcomes, default=(), metavar="LIST",
        help="outcomes that count (default: fail,crash,error,oom,timeout,degraded)",
    )  # fmt: skip
    _github(expect)
    expect.set_defaults(run=expect_commands.expect)

    baseline = add.add_parser("baseline", help="write down what fails now, so that only what is new counts")
    action = baseline.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=_Parser)
    update = action.add_parser("update", help="bring a file of expectations up to a run; comments stay")
    update.add_argument("stored", metavar="RUN", help="a run's folder or file, or its name")
    update.add_argument("--out", type=Path, metavar="FILE", help="default: compat-baseline-DEVICE.toml")
    update.set_defaults(run=expect_commands.update)


def _explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stored", type=Path, metavar="RUN", help="a run's folder, or its run.json")
    parser.add_argument("cell", metavar="CELL", help="the cell's id, or a pattern that fits one cell")
    parser.add_argument(
        "--check", type=arguments.check, metavar="NAME", help="this check alone, with every row of its criteria"
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
    parser.set_defaults(run=explain_commands.explain)


def _selection(parser: argparse.ArgumentParser, default: str = "", only_with: str = "") -> None:
    known = "a matrix file, `default`, `speed` or `families`"
    if default:
        known += f" (default{' with ' + only_with if only_with else ''}: {default})"
    count = {"nargs": "?", "default": None if only_with else default} if default else {}
    parser.add_argument("matrix", type=arguments.matrix, metavar="MATRIX", help=known, **count)  # type: ignore[arg-type]
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: what is detected")
    parser.add_argument(
        "--cells", nargs="+", default=[], metavar="PATTERN", help="ids with wildcards, e.g. 'llama/*/sdpa*/none'"
    )


def _checks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checks", type=arguments.checks, default=(), metavar="LIST", help="e.g. load,agreement")


if __name__ == "__main__":
    raise SystemExit(main())
