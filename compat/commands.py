"""What each command of `compat` does: from parsed arguments to an exit code. A front end; it has no logic of its own.

Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any

from compat.exit_codes import FINDINGS, INTERNAL, INTERRUPTED, NOTHING, OK, USAGE

if TYPE_CHECKING:
    from pathlib import Path

    from compat.records import Run
    from compat.session import Options, Session


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
    from compat.speed_settings import SpeedOptions

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
    from compat.session import prepare, write_reports

    told = github.summary_file(arguments.github)
    signal.signal(signal.SIGTERM, _as_interrupt)
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
        _print_report(run)
        print(f"compat: stored in {folder}, but its reports cannot be written: {error}", file=sys.stderr)
        return INTERNAL
    _print_report(run)
    print(f"\nStored: {folder} ({', '.join(files)})")
    if session.book is None:
        tell_step(run, told)
    if folder != session.folder:
        print(f"compat: {session.folder} takes no more ({session.refused}); rescued to {folder}", file=sys.stderr)
        return INTERNAL
    if session.interrupted:
        print(f"Interrupted. Continue: {_again(arguments, session, folder)}", file=sys.stderr)
        return INTERRUPTED
    if session.book is not None:
        from compat.expect_commands import gate

        return gate(run, folder, session.book.path, arguments.fail_on, arguments.strict, told)
    outcomes = {c.outcome for cell in run.cells for c in cell.checks}
    if Outcome.ERROR in outcomes:
        return INTERNAL
    return FINDINGS if any(o.value in arguments.fail_on for o in outcomes) else OK


def tell_step(run: Run, path: Path | None, expected: Set[tuple[str, str]] = frozenset()) -> None:
    """Annotations and summary of a step of GitHub Actions. A file that cannot be written is said, and no failure."""
    from compat import github

    if path is None:
        return
    try:
        print(github.tell(run, path, expected), end="")
    except OSError as error:
        print(f"compat: {path}: the step's summary cannot be written: {error.strerror}", file=sys.stderr)


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


def _as_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _print_report(run: Any) -> None:
    import shutil

    from compat.render import render

    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 80
    print(render(run, "terminal", width=max(80, min(width, 120)), color=color))


def run_selftest(arguments: argparse.Namespace) -> int:
    """Inject known bugs, or show what a stored self-test found."""
    from compat import device
    from compat.selftest_result import Status, read

    if arguments.show is not None:
        return _print_selftest(read(arguments.show))
    kind = device.detect().type if arguments.device == "auto" else arguments.device
    from compat.selftest import AT_LEAST, chosen, conduct

    if arguments.catalogue:
        _print_catalogue(arguments.faults)
        return OK
    faults = chosen(kind, arguments.faults)
    signal.signal(signal.SIGTERM, _as_interrupt)
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
    import shutil

    from compat.render.selftest import render_terminal

    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 100
    print(render_terminal(result, width=max(80, min(width, 120)), color=color), end="")
    return OK


def _print_catalogue(patterns: Sequence[str]) -> None:
    from tabulate import tabulate

    from compat.selftest import fitting

    rows = [[f.name, f.group, f.device or "any", ", ".join(f.seen_by) or "-", f.origin] for f in fitting(patterns)]
    print(tabulate(rows, headers=["fault", "class", "device", "seen by", "origin"]))
    benign = sum(row[3] == "-" for row in rows)
    print(f"\n{len(rows) - benign} faults, {benign} benign changes")


def list_matrix(arguments: argparse.Namespace) -> int:
    """What would run, and why the rest would not."""
    from compat import availability, device
    from compat.matrix import read_matrix
    from compat.plan import select
    from compat.session import SessionError

    detected = device.detect()
    kind = detected.type if arguments.device == "auto" else arguments.device
    matrix = read_matrix(arguments.matrix, kind)
    cells = select(matrix.cells, arguments.cells, arguments.checks)
    if not cells:
        raise SessionError(f"nothing selected: no cell of {arguments.matrix} fits {' '.join(arguments.cells)}")
    runs = [c for c in cells if not c.excluded]
    if arguments.ids:
        print("\n".join(c.id for c in runs))
        return OK
    because = detected.because if arguments.device == "auto" else "as asked"
    print(f"{matrix.title} ({matrix.path}), device {kind}: {because}")
    _list_models(matrix, runs)
    _list_weights(matrix, runs)
    expected = Counter(r for c in runs if (r := availability.missing(c, matrix.models[c.model], kind)))
    _list_reasons("Would run, but is expected to be unavailable or unsupported here:", expected)
    _list_reasons("Left out by the matrix:", Counter(c.excluded for c in cells if c.excluded))
    able = tuple(c for c in runs if not availability.missing(c, matrix.models[c.model], kind))
    seconds = availability.estimate_seconds(matrix, able)
    checks = sum(len(c.checks) for c in runs)
    print(f"\n{len(runs)} cells, {checks} checks; about {seconds / 60:.0f} min with one worker ({seconds:.0f} s)")
    if unknown := availability.not_estimated(matrix, able):
        print(f"without {unknown} cells of a kind whose time was never measured on this type of device")
    return OK


def _list_models(matrix: Any, cells: Sequence[Any]) -> None:
    from tabulate import tabulate

    rows = []
    for name, model in matrix.models.items():
        own = [c for c in cells if c.model == name]
        if own:
            rows.append(
                [
                    name,
                    model.row["source"],
                    " ".join(dict.fromkeys(c.dtype for c in own)),
                    " ".join(dict.fromkeys(c.attention for c in own)),
                    len(dict.fromkeys(c.quantization for c in own)),
                    len(own),
                    sum(len(c.checks) for c in own),
                ]
            )
    print(tabulate(rows, headers=["model", "source", "dtypes", "attention", "schemes", "cells", "checks"],
                   maxcolwidths=[None, None, None, 30, None, None, None]))  # fmt: skip


def _list_weights(matrix: Any, cells: Sequence[Any]) -> None:
    """What the weights of shapes take, by dtype and quantization."""
    from tabulate import tabulate

    from compat.availability import weights_bytes

    taken: dict[tuple[str, str, str], int] = {}
    for cell in cells:
        size = weights_bytes(cell, matrix.models[cell.model])
        if size:
            taken[cell.model, cell.dtype, cell.quantization] = size
    if taken:
        rows = [[*key, f"{size / 2**30:.2f}"] for key, size in taken.items()]
        print("\nRandom weights of full size, made on the device:\n")
        print(tabulate(rows, headers=["model", "dtype", "quantization", "GiB"], disable_numparse=True,
                       colalign=("left", "left", "left", "right")))  # fmt: skip


def _list_reasons(title: str, reasons: Counter[str]) -> None:
    if reasons:
        print(f"\n{title}")
        for reason, count in reasons.most_common():
            print(f"  {count:>5} cells  {reason}")


def calibrate(arguments: argparse.Namespace) -> int:
    """Store what clean runs measured."""
    from compat import calibration
    from compat.judge import criteria
    from compat.store import read_run, write_whole

    wanted = {(r.check, r.measurement) for r in criteria().rules if r.band}
    try:
        bands, answers = calibration.collect([read_run(path) for path in arguments.runs], wanted)
    except ValueError as error:
        print(f"compat: {error}", file=sys.stderr)
        return USAGE
    folder = arguments.out or calibration.FOLDER
    files = {f"bands-{bands['device']}.json": bands} | ({"answers.json": answers} if arguments.answers else {})
    for name, content in files.items():
        write_whole(folder / name, calibration.text(content).encode())
        print(f"{folder / name}: {len(content.get('cells', content['models']))} entries from {content['runs']} runs")
    return OK


def reproduce(arguments: argparse.Namespace) -> int:
    """Print the script of one failure of a stored run."""
    from compat.axes import nearest
    from compat.session import reproducer
    from compat.store import read_run

    run = read_run(arguments.stored)
    cell = next((c for c in run.cells if c.id == arguments.cell), None)
    if cell is None:
        hint = nearest(arguments.cell, [c.id for c in run.cells])
        print(f"compat: no cell {arguments.cell!r}" + (f"; nearest: {hint!r}" if hint else ""), file=sys.stderr)
        return USAGE
    for check in cell.checks:
        if arguments.check in (None, check.name) and (text := reproducer(run, cell, check)):
            print(text, end="")
            return OK
    asked = arguments.check or "any check"
    print(f"compat: {cell.id}: no script shows {asked} ({cell.reason or cell.outcome.value})", file=sys.stderr)
    return NOTHING


def report(arguments: argparse.Namespace) -> int:
    """Render a stored run again."""
    from compat import github
    from compat.render import FORMATS, render
    from compat.session import rejudged, write_report
    from compat.store import read_run

    if arguments.format not in FORMATS:
        from compat.axes import nearest

        hint = nearest(arguments.format, FORMATS)
        print(
            f"compat: unknown format {arguments.format!r}" + (f"; nearest: {hint!r}" if hint else ""), file=sys.stderr
        )
        return USAGE
    told = github.summary_file(arguments.github if arguments.format == "terminal" else bool(arguments.github))
    run = read_run(arguments.stored)
    if arguments.rejudge:
        run = rejudged(run)
    tell_step(run, told)
    if arguments.out is None and arguments.format == "terminal":
        _print_report(run)
        return OK
    if arguments.out is None:
        print(render(run, arguments.format), end="" if arguments.format in ("annotations", "junit") else "\n")
        return OK
    try:
        write_report(run, arguments.out, arguments.format)
    except OSError as error:
        print(f"compat: {arguments.out}: {error.strerror}", file=sys.stderr)
        return USAGE
    return OK
