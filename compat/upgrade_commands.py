"""What `compat upgrade` and `compat bisect` do: from parsed arguments to an exit code. Front ends without logic.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Any

from compat.exit_codes import FINDINGS, INTERNAL, INTERRUPTED, NOTHING, OK


def upgrade(arguments: argparse.Namespace) -> int:
    """Run both stacks, compare them, print and store what was found."""
    from compat.render.upgrade import render_markdown
    from compat.upgrade import Stopped, UpgradeOptions, again, conduct
    from compat.upgrade_result import FILE, failing, read, write

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
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        found, folder = conduct(options, _quiet if arguments.quiet else _say)
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
    from compat.bisect_result import FILE, encode, lines
    from compat.bisecting import BisectOptions, conduct
    from compat.store import write_whole

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
    signal.signal(signal.SIGTERM, _as_interrupt)
    found, folder = conduct(options, _quiet if arguments.quiet else _say)
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
    from compat.upgrade_result import failing

    _print(found, fail_on)
    return _code(found, failing(found, fail_on))


def _code(found: Any, failed: Any) -> int:
    if found.errors or any(f.after.startswith("error") for f in found.checks):
        return INTERNAL
    if not found.compared:
        return NOTHING
    return FINDINGS if failed else OK


def _print(found: Any, fail_on: tuple[str, ...]) -> None:
    import shutil

    from compat.render.upgrade import render_terminal

    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 100
    print(render_terminal(found, width=max(80, min(width, 120)), color=color, fail_on=fail_on), end="")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _quiet(text: str) -> None:
    """Nothing: what is found is printed all the same."""


def _as_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
