"""`compat selftest`: from its arguments to an exit code. A front end without logic of its own."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compat.commands import arguments as read
from compat.commands import shared
from compat.exit_codes import FINDINGS, INTERNAL, INTERRUPTED, OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the read."""
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="names with wildcards (default: all)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: what is detected")
    parser.add_argument("--depth", choices=("quick", "standard", "deep"), default="standard")
    parser.add_argument(
        "--at-least",
        type=read.percent,
        metavar="PERCENT",
        help="exit 1 below this kill rate (default: 95; quick: 80)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="store selftest.json and selftest.md in DIR")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print a stored self-test, run nothing")
    parser.add_argument("--list", action="store_true", dest="catalogue", help="print the catalogue, run nothing")
    parser.add_argument(
        "--workers",
        type=read.positive,
        metavar="N",
        help="worker processes (default: by cores and memory; at most four on a CPU)",
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder for checkpoints that compat makes")
    parser.add_argument("--seed", type=int, default=0, help="seed of inputs (default: 0)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=run_selftest)


def run_selftest(arguments: argparse.Namespace) -> int:
    """Inject known bugs, or show what a stored self-test found."""
    from compat import device
    from compat.selftest_result import Status
    from compat.selftest_result import read as stored

    if arguments.show is not None:
        return _print_selftest(stored(arguments.show))
    kind = device.detect().type if arguments.device == "auto" else arguments.device
    from compat.selftest import AT_LEAST, chosen, conduct

    if arguments.catalogue:
        _print_catalogue(arguments.faults)
        return OK
    faults = chosen(kind, arguments.faults)
    signal.signal(signal.SIGTERM, shared.as_interrupt)
    result, interrupted = conduct(
        faults,
        kind,
        arguments.depth,
        cache=arguments.cache,
        lanes=arguments.workers,
        seed=arguments.seed,
        stream=None if arguments.quiet else sys.stderr,
    )
    _print_selftest(result)
    if arguments.out is not None:
        from compat.render.selftest import render_markdown
        from compat.selftest_result import write

        try:
            files = write(result, arguments.out, render_markdown(result))
        except OSError as error:
            print(f"compat: {arguments.out}: {error.strerror}", file=sys.stderr)
            return INTERNAL
        print(f"\nStored: {arguments.out} ({', '.join(files)})")
    if interrupted:
        return INTERRUPTED
    wanted = AT_LEAST[arguments.depth] if arguments.at_least is None else arguments.at_least
    flagged = any(t.status == Status.FLAGGED for t in result.trials)
    return FINDINGS if flagged or (result.rate is not None and result.rate < wanted) else OK


def _print_selftest(result: Any) -> int:
    from compat.render.selftest import render_terminal

    width, color = shared.screen(piped=100)
    print(render_terminal(result, width=width, color=color), end="")
    return OK


def _print_catalogue(patterns: Sequence[str]) -> None:
    from tabulate import tabulate

    from compat.selftest import fitting

    rows = [[f.name, f.group, f.device or "any", ", ".join(f.seen_by) or "-", f.origin] for f in fitting(patterns)]
    print(tabulate(rows, headers=["fault", "class", "device", "seen by", "origin"]))
    benign = sum(row[3] == "-" for row in rows)
    print(f"\n{len(rows) - benign} faults, {benign} benign changes")
