"""What `compat diff` does: from parsed arguments to an exit code. A front end without logic.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from compat.commands import arguments as read
from compat.commands import shared
from compat.exit_codes import FINDINGS, NOTHING, OK, USAGE

DEFAULT_GATES = ("regressed",)
"""What fails `compat diff` where nothing is named."""


def add(parsers: Any) -> None:
    """Describe `diff` and `merge`."""
    diff_ = parsers.add_parser(
        "diff",
        help="what regressed, was fixed, appeared or went from one stored run to another",
        epilog="exit codes: 0 clean, 1 what --fail-on names was found, 3 harness failure, 4 usage, "
        "5 nothing comparable",
    )
    for name in ("base", "head"):
        diff_.add_argument(
            name, metavar=name.upper(), help="a run's folder or file, or its name in compat-runs/ or reports/"
        )
    diff_.add_argument("--format", choices=("terminal", "markdown", "json"), default="terminal")
    diff_.add_argument("--out", type=Path, metavar="FILE", help="write to FILE instead of the screen")
    diff_.add_argument(
        "--fail-on", type=read.gates, default=DEFAULT_GATES, metavar="LIST",
        help="exit 1 for any of: regressed,coverage,slower,new-failures,changed,flaky,spurious (default: regressed)",
    )  # fmt: skip
    diff_.add_argument(
        "--least-effect", type=read.effect, default=0.05, metavar="PERCENT",
        help="smallest difference of a speed to state (default: 5)",
    )  # fmt: skip
    diff_.add_argument("--rejudge", action="store_true", help="judge both runs by today's criteria first")
    diff_.set_defaults(run=diff)

    merge_ = parsers.add_parser("merge", help="join the runs of shards to one")
    merge_.add_argument("runs", nargs="+", metavar="RUN", help="folders, files or names, two or more")
    merge_.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder of the joined run")
    merge_.add_argument(
        "--any-machine", action="store_true", help="the same packages will do; speeds are then not compared"
    )
    merge_.set_defaults(run=merge)


def diff(arguments: argparse.Namespace) -> int:
    """Compare two stored runs."""
    from compat.compare.diff import diff_runs
    from compat.compare.gate import findings
    from compat.render.diff import render_diff
    from compat.store import find_run, read_run

    base, head = (read_run(find_run(named)) for named in (arguments.base, arguments.head))
    if arguments.rejudge:
        from compat.stored import rejudged

        base, head = rejudged(base), rejudged(head)
    found = diff_runs(base, head, arguments.least_effect)
    counts = findings(found, arguments.fail_on)
    width, color = shared.screen() if arguments.out is None else (80, False)
    text = render_diff(found, arguments.format, found=counts, width=width, color=color)
    if not shared.put(text, arguments.out):
        return USAGE
    if not found.compared:
        print("compat: nothing comparable: no check was asked in both runs", file=sys.stderr)
        return NOTHING
    return FINDINGS if counts else OK


def merge(arguments: argparse.Namespace) -> int:
    """Join the runs of shards to one."""
    import shutil

    from compat.compare import merge as merging
    from compat.reproduce import FOLDER
    from compat.store import find_run, read_run, write_run
    from compat.stored import write_reports

    places = [find_run(named) for named in arguments.runs]
    runs = [read_run(place) for place in places]
    out = arguments.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        print(f"compat: {out}: already there; name a folder that is empty or new", file=sys.stderr)
        return USAGE
    try:
        run = merging.merge(runs, arguments.any_machine)
    except merging.MergeError as error:
        print(f"compat: {error}", file=sys.stderr)
        return USAGE
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_run(run, out)
        for place in places:
            scripts = (place if place.is_dir() else place.parent) / FOLDER
            if scripts.is_dir():
                shutil.copytree(scripts, out / FOLDER, dirs_exist_ok=True)
        files = write_reports(run, out)
    except OSError as error:
        print(f"compat: {out}: {error.strerror}", file=sys.stderr)
        return USAGE
    whole = "" if run.run.complete else "; PARTIAL: parts are missing or did not finish"
    print(f"Stored: {out} ({', '.join(files)}): {len(run.cells)} cells of {len(runs)} runs{whole}")
    return OK
