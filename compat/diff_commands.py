"""What `compat diff` does: from parsed arguments to an exit code. A front end without logic.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from compat.exit_codes import FINDINGS, NOTHING, OK, USAGE


def diff(arguments: argparse.Namespace) -> int:
    """Compare two stored runs."""
    from compat.diff import diff_runs
    from compat.gate import findings
    from compat.render.diff import render_diff
    from compat.store import find_run, read_run

    base, head = (read_run(find_run(named)) for named in (arguments.base, arguments.head))
    if arguments.rejudge:
        from compat.session import rejudged

        base, head = rejudged(base), rejudged(head)
    found = diff_runs(base, head, arguments.least_effect)
    counts = findings(found, arguments.fail_on)
    width, color = screen() if arguments.out is None else (80, False)
    text = render_diff(found, arguments.format, found=counts, width=width, color=color)
    if not put(text, arguments.out):
        return USAGE
    if not found.compared:
        print("compat: nothing comparable: no check was asked in both runs", file=sys.stderr)
        return NOTHING
    return FINDINGS if counts else OK


def merge(arguments: argparse.Namespace) -> int:
    """Join the runs of shards to one."""
    import shutil

    from compat import merge as merging
    from compat.reproduce import FOLDER
    from compat.session import write_reports
    from compat.store import find_run, read_run, write_run

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


def screen() -> tuple[int, bool]:
    """Columns of the terminal (80 where there is none), and whether it shows colour."""
    import shutil

    if not sys.stdout.isatty():
        return 80, False
    width = shutil.get_terminal_size((80, 24)).columns
    return max(80, min(width, 120)), "NO_COLOR" not in os.environ
