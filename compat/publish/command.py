"""What `compat publish` does: from parsed arguments to an exit code. A front end without logic."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from compat.exit_codes import OK, USAGE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments of `compat publish`."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="stored runs, in any order")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the site; a site of ours there is replaced"
    )
    parser.add_argument("--title", default="", metavar="TEXT", help="heading of the site (default: compat)")
    parser.set_defaults(run=publish)


def publish(arguments: argparse.Namespace) -> int:
    """Make a site from stored runs."""
    from . import PublishError
    from .site import write_site

    try:
        made = write_site(arguments.runs, arguments.out, title=arguments.title)
    except PublishError as error:
        print(f"compat: {error}", file=sys.stderr)
        return USAGE
    except OSError as error:
        print(f"compat: {error.filename or arguments.out}: {error.strerror or error}", file=sys.stderr)
        return USAGE
    told = f"{made.files:,} files, {made.megabytes:.1f} MB; {made.runs:,} runs in {made.histories:,} histories"
    print(f"{arguments.out}: {told}")
    print(f"open {arguments.out / 'index.html'}")
    return OK
