"""`compat run` and `compat speed`: from arguments to an exit code. A front end without logic of its own."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from typing import TYPE_CHECKING, Any

from compat.commands import arguments as read
from compat.commands import shared
from compat.exit_codes import FINDINGS, INTERNAL, INTERRUPTED, OK

if TYPE_CHECKING:
    from pathlib import Path

    from compat.session import Options, Session

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


def add_run(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of `compat run`."""
    shared.selection(parser)
    shared.checks(parser)
    shared.conducting(parser)
    parser.add_argument(
        "--workers",
        type=read.positive,
        metavar="N",
        help="worker processes (default: by cores and memory; two on a CPU)",
    )
    parser.add_argument(
        "--depth", choices=("quick", "standard", "deep"), help="how much each check looks at (default: the matrix's)"
    )
    parser.add_argument("--shard", type=read.part, metavar="I/N", help="part I of N; compat merge joins them")
    parser.add_argument(
        "--expect", action="store_true", help="count only failures that the matrix's expectations do not name"
    )
    shared.expecting(parser, "like --expect, by this file")
    parser.add_argument(
        "--rerun-failures", action="store_true", help="ask unexpected failures once more (--expect does too)"
    )
    parser.set_defaults(run=run_matrix)


def add_speed(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of `compat speed`."""
    shared.selection(parser, "speed")
    parser.add_argument("--grid", type=read.grid, metavar="POINTS", help="e.g. 4x256,4x2048@0.3 or 256,2048")
    parser.add_argument("--batch", type=read.batches, metavar="LIST", help="rows, e.g. 1,4")
    parser.add_argument("--padding", type=read.padding, metavar="LIST", help="shares of pads, e.g. 0,0.3")
    parser.add_argument(
        "--budget", type=read.seconds, metavar="SECONDS", help="time for one comparison (default: by check)"
    )
    against = parser.add_mutually_exclusive_group()
    against.add_argument("--baseline", type=read.baseline, metavar="eager|CELL", help="what each cell is compared with")
    against.add_argument(
        "--against",
        type=read.environment,
        metavar="STACK|PYTHON",
        help="compare with the same cell in that stack or environment",
    )
    shared.conducting(parser)
    parser.set_defaults(run=run_speed)


def run_matrix(arguments: argparse.Namespace) -> int:
    """Run a matrix, print its table, store the run and its reports."""
    options = _options(
        arguments,
        checks=arguments.checks,
        workers=arguments.workers,
        depth=arguments.depth,
        shard=arguments.shard,
        expect=arguments.expect or arguments.strict,
        expectations=arguments.expectations,
        rerun=arguments.rerun_failures,
    )
    return _conduct(arguments, options)


def run_speed(arguments: argparse.Namespace) -> int:
    """Time a matrix over a grid, with one worker: nothing else may run meanwhile."""
    from compat.speed.settings import SpeedOptions

    asked = SpeedOptions(
        items=arguments.grid,
        batches=arguments.batch,
        padding=arguments.padding,
        budget_seconds=arguments.budget,
        baseline=arguments.baseline,
        against=arguments.against or "",
    )
    return _conduct(arguments, _options(arguments, checks=SPEED_CHECKS, workers=1, speed=asked))


SPEED_CHECKS = ("load", "speed", "memory")
"""What `compat speed` asks of a cell, where the cell has it."""


def _options(arguments: argparse.Namespace, **own: Any) -> Options:
    """What `run` and `speed` have in common, and what is a command's own."""
    from compat.session import Options

    return Options(
        matrix=arguments.matrix,
        device=arguments.device,
        patterns=tuple(arguments.cells),
        out=arguments.out,
        resume=arguments.resume,
        seed=arguments.seed,
        timeout_seconds=arguments.timeout,
        memory_limit_bytes=arguments.memory_limit,
        cache=arguments.cache,
        stack=arguments.stack or "",
        argv=tuple(sys.argv),
        **own,
    )


def _conduct(arguments: argparse.Namespace, options: Options) -> int:
    """Run what is asked for; the exit code."""
    from compat import github, progress
    from compat.records import Outcome
    from compat.session import prepare
    from compat.stored import write_reports

    told = github.summary_file(arguments.github)
    signal.signal(signal.SIGTERM, shared.as_interrupt)
    session = prepare(options)
    timed = options.speed is not None
    listener = progress.listener(session.remaining, sys.stderr, arguments.quiet, timed)
    if listener is not None:
        session.on_result = listener.result
    try:
        session.execute()
    finally:
        if listener is not None:
            listener.close()
    run, folder = session.finish()
    try:
        files = write_reports(run, folder)
    except OSError as error:
        shared.print_report(run)
        print(f"compat: stored in {folder}, but its reports cannot be written: {error}", file=sys.stderr)
        return INTERNAL
    shared.print_report(run)
    print(f"\nStored: {folder} ({', '.join(files)})")
    if session.book is None:
        shared.tell_step(run, told)
    if folder != session.folder:
        print(f"compat: {session.folder} takes no more ({session.refused}); rescued to {folder}", file=sys.stderr)
        return INTERNAL
    if session.interrupted:
        print(f"Interrupted. Continue: {_again(arguments, session, folder)}", file=sys.stderr)
        return INTERRUPTED
    if session.book is not None:
        from compat.commands.expect import gate

        return gate(run, folder, session.book.path, arguments.fail_on, arguments.strict, told)
    outcomes = {c.outcome for cell in run.cells for c in cell.checks}
    if Outcome.ERROR in outcomes:
        return INTERNAL
    return FINDINGS if any(o.value in arguments.fail_on for o in outcomes) else OK


def _again(arguments: argparse.Namespace, session: Session, folder: Path) -> str:
    """The command that continues an interrupted run: what it compares with the start is named again."""
    from compat.stacks import CURRENT

    options = session.options
    words = ["compat", arguments.command, str(arguments.matrix), "--device", session.device]
    words += ["--cells", *options.patterns] if options.patterns else []
    if options.speed is not None:
        words += session.speed.words()
    elif options.checks:
        words += ["--checks", ",".join(options.checks)]
    words += ["--seed", str(options.seed)] if options.seed is not None else []
    words += ["--depth", options.depth] if options.depth is not None else []
    words += ["--shard", "{}/{}".format(*options.shard)] if options.shard is not None else []
    words += ["--expect"] if options.expect else []
    words += ["--expectations", str(options.expectations)] if options.expectations is not None else []
    words += ["--rerun-failures"] if options.rerun else []
    words += ["--stack", options.stack] if options.stack not in ("", CURRENT) else []
    return shlex.join([*words, "--resume", str(folder)])
