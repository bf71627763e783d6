"""What `compat expect` and `compat baseline` do, and the gate of `compat run`: from arguments to an exit code. A front
end without logic.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compat.commands import arguments as read
from compat.commands import shared
from compat.exit_codes import FINDINGS, INTERNAL, OK, USAGE

if TYPE_CHECKING:
    from compat.records import Run


def add(parsers: Any) -> None:
    """Describe `expect` and `baseline`."""
    expect_ = parsers.add_parser("expect", help="judge a stored run by expectations: which failures are known?")
    expect_.add_argument("stored", metavar="RUN", help="a run's folder or file, or its name")
    shared.expecting(expect_, "the file to judge by (default: that of the run's matrix)")
    expect_.add_argument(
        "--fail-on", type=read.outcomes, default=(), metavar="LIST",
        help="outcomes that count (default: fail,crash,error,oom,timeout,degraded)",
    )  # fmt: skip
    shared.github(expect_)
    expect_.set_defaults(run=expect)

    baseline = parsers.add_parser("baseline", help="write down what fails now, so that only what is new counts")
    action = baseline.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=shared.Parser)
    update_ = action.add_parser("update", help="bring a file of expectations up to a run; comments stay")
    update_.add_argument("stored", metavar="RUN", help="a run's folder or file, or its name")
    update_.add_argument("--out", type=Path, metavar="FILE", help="default: compat-baseline-DEVICE.toml")
    update_.set_defaults(run=update)


def expect(arguments: argparse.Namespace) -> int:
    """Judge a stored run by expectations."""
    from compat import github
    from compat.store import find_run, read_run

    where = find_run(arguments.stored)
    run = read_run(where)
    path = arguments.expectations or _of_stored(run)
    step = github.summary_file(arguments.github)
    return gate(run, where, path, arguments.fail_on, arguments.strict, step)


def gate(
    run: Run, where: Path, path: Path | None, fail_on: tuple[str, ...], strict: bool, step: Path | None = None
) -> int:
    """Print what the file at `path` says of `run` (None: nothing is expected); the exit code. `fail_on` names outcomes
    that count (none: those that fail a test); `step` is the summary of a step of GitHub Actions that is to be told."""
    from compat.compare.expect import FAILING, account, read_expectations
    from compat.records import Outcome
    from compat.render.expect import render_account

    book = read_expectations(path).on(run.run.device, run.environment.packages) if path else None
    found = account(run, book, [Outcome(o) for o in fail_on] or FAILING)
    width, color = shared.screen()
    whole = run.run.complete and not {"selected", "shard"} & set(run.run.settings)
    words = shlex.join(["compat", "baseline", "update", str(where), *(["--out", str(path)] if path else [])])
    print(render_account(run, found, book, update=words, width=width, color=color, whole=whole), end="")
    shared.tell_step(run, step, {(cell.id, check.name) for cell, check, _ in found.expected})
    if any(k.outcome is Outcome.ERROR for c in run.cells for k in c.checks):
        return INTERNAL
    return FINDINGS if found.unexpected or (strict and found.passing) else OK


def _of_stored(run: Run) -> Path | None:
    """The expectations of the matrix that a stored run was made from, where that matrix is here."""
    from compat.builtin import matrices_folder
    from compat.compare.expect import beside, of_matrix
    from compat.matrix import MatrixError, read_matrix

    own = Path(run.run.matrix.path)
    try:
        if own.is_file():
            return of_matrix(read_matrix(own, run.run.device))
    except MatrixError:
        pass  # the run was made from another state of the file; the one beside it may still be meant
    return beside(own) or beside(matrices_folder() / own.name)


def update(arguments: argparse.Namespace) -> int:
    """Write what failed in a run as expectations."""
    from compat.compare.baseline import updated
    from compat.compare.expect import read_expectations
    from compat.render.inert import visible
    from compat.store import find_run, read_run, write_whole

    run = read_run(find_run(arguments.stored))
    out = arguments.out or Path(f"compat-baseline-{run.run.device or 'any'}.toml")
    old, book = "", None
    if out.exists():
        book = read_expectations(out).on(run.run.device, run.environment.packages)
        old = out.read_text(encoding="utf-8")
    try:
        new = updated(run, old, book)
    except ValueError as error:
        print(f"compat: {out}: {error}", file=sys.stderr)
        return USAGE
    if new.text != old:
        try:
            write_whole(out, new.text.encode("utf-8"))
        except OSError as error:
            print(f"compat: {out}: {error.strerror}", file=sys.stderr)
            return USAGE
    for sign, texts in (("+", new.added), ("-", new.removed)):
        for text in texts:
            print(f"{sign} {visible(text)}")
    print(f"{out}: {new.kept} entries kept, {len(new.removed)} removed, {len(new.added)} failures added")
    return OK
