"""The `compat` command: run, list, selftest, report. A front end; it has no logic of its own.

Exit codes: 0 done (whatever was found; `--fail-on` makes findings count), 1 a result that --fail-on names, 2
interrupted, 3 the harness failed (an `error` outcome, or an exception of ours), 4 usage (arguments, matrix, stored
run), 5 nothing to run.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from compat import __version__

OK, FINDINGS, INTERRUPTED, INTERNAL, USAGE, NOTHING = 0, 1, 2, 3, 4, 5

FAIL_ON = ("fail", "crash", "error", "oom", "timeout", "degraded", "inconclusive")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(USAGE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.command is None:
        _parser().print_help()
        return USAGE
    from compat.matrix import MatrixError
    from compat.session import SessionError
    from compat.store import StoreError

    try:
        code = int(arguments.run(arguments))
        sys.stdout.flush()  # here, where a reader that has left is no error
        return code
    except (MatrixError, StoreError) as error:
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
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser("run", help="run a matrix, print the table, store the run and its reports")
    _selection(run)
    run.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: compat-runs/ID)")
    run.add_argument("--resume", type=Path, metavar="DIR", help="continue the run in DIR")
    run.add_argument(
        "--workers", type=_positive, metavar="N", help="worker processes (default: one a GPU, two on a CPU)"
    )
    run.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="limit of every check (default: by check)")
    run.add_argument("--memory-limit", type=_bytes, metavar="SIZE", help="host memory of a worker, e.g. 8G")
    run.add_argument("--cache", type=Path, metavar="DIR", help="folder for checkpoints that compat makes")
    run.add_argument("--seed", type=int, help="seed of inputs (default: the matrix's)")
    run.add_argument(
        "--depth", choices=("quick", "standard", "deep"), help="how much each check looks at (default: the matrix's)"
    )
    run.add_argument(
        "--fail-on", type=_outcomes, default=(), metavar="LIST", help=f"exit 1 for any of: {','.join(FAIL_ON)}"
    )
    run.add_argument("-q", "--quiet", action="store_true", help="no progress")
    run.set_defaults(run=_run)

    listing = commands.add_parser("list", help="what would run, why the rest would not, and an estimate of time")
    _selection(listing)
    listing.add_argument("--ids", action="store_true", help="one cell id a line, nothing else")
    listing.set_defaults(run=_list)

    selftest = commands.add_parser(
        "selftest",
        help="inject known bugs one at a time: which checks see each?",
        epilog="exit codes: 0 done, 1 the kill rate is below --at-least or a benign change was flagged, 2 interrupted, "
        "3 harness failure, 4 usage (an unknown fault)",
    )
    selftest.add_argument("faults", nargs="*", metavar="FAULT", help="names with wildcards (default: all)")
    selftest.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: what is detected")
    selftest.add_argument("--depth", choices=("quick", "standard", "deep"), default="standard")
    selftest.add_argument(
        "--at-least", type=_percent, metavar="PERCENT", help="exit 1 below this kill rate (default: 95; quick: 80)"
    )
    selftest.add_argument("--out", type=Path, metavar="DIR", help="store selftest.json and selftest.md in DIR")
    selftest.add_argument("--show", type=Path, metavar="FILE", help="print a stored self-test, run nothing")
    selftest.add_argument("--list", action="store_true", dest="catalogue", help="print the catalogue, run nothing")
    selftest.add_argument(
        "--workers", type=_positive, metavar="N", help="worker processes (default: one a processor, at most four)"
    )
    selftest.add_argument("--cache", type=Path, metavar="DIR", help="folder for checkpoints that compat makes")
    selftest.add_argument("--seed", type=int, default=0, help="seed of inputs (default: 0)")
    selftest.add_argument("-q", "--quiet", action="store_true", help="no progress")
    selftest.set_defaults(run=_selftest)

    calibrate = commands.add_parser("calibrate", help="store what is normal: clean bands and known answers, from runs")
    calibrate.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="stored runs of one device and stack")
    calibrate.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: compat's own)")
    calibrate.add_argument("--answers", action="store_true", help="store the known answers too (any device gives them)")
    calibrate.set_defaults(run=_calibrate)

    again = commands.add_parser("reproduce", help="print a script that shows one failure of a stored run, alone")
    again.add_argument("stored", type=Path, metavar="RUN", help="a run's folder, or its run.json")
    again.add_argument("cell", metavar="CELL", help="the cell's id")
    again.add_argument("--check", type=_check, metavar="NAME", help="one check (default: the first that has a script)")
    again.set_defaults(run=_reproduce)

    report = commands.add_parser("report", help="render a stored run again")
    report.add_argument("stored", type=Path, metavar="RUN", help="a run's folder, or its run.json")
    report.add_argument("--format", default="terminal", help="terminal, markdown, html or json")
    report.add_argument("--out", type=Path, metavar="FILE", help="write to FILE instead of the screen")
    report.add_argument(
        "--rejudge", action="store_true", help="judge the stored measurements by today's criteria first"
    )
    report.set_defaults(run=_report)
    return parser


def _selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("matrix", type=_matrix, metavar="MATRIX", help="a matrix file, or `default`")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: what is detected")
    parser.add_argument(
        "--cells", nargs="+", default=[], metavar="PATTERN", help="ids with wildcards, e.g. 'llama/*/sdpa*/none'"
    )
    parser.add_argument("--checks", type=_checks, default=(), metavar="LIST", help="e.g. load,agreement")


def _matrix(text: str) -> Path:
    from compat.builtin import matrix_path

    return matrix_path(text)


def _checks(text: str) -> tuple[str, ...]:
    from compat.checks import CHECKS

    return _listed(text, CHECKS.names, "check")


def _check(text: str) -> str:
    names = _checks(text)
    if len(names) != 1:
        raise argparse.ArgumentTypeError("one check is meant")
    return names[0]


def _outcomes(text: str) -> tuple[str, ...]:
    return _listed(text, FAIL_ON, "outcome")


def _listed(text: str, known: tuple[str, ...], kind: str) -> tuple[str, ...]:
    from compat.axes import nearest

    names = tuple(t.strip() for t in text.split(",") if t.strip())
    for name in names:
        if name not in known:
            hint = nearest(name, known)
            raise argparse.ArgumentTypeError(f"unknown {kind} {name!r}" + (f"; nearest: {hint!r}" if hint else ""))
    return names


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _percent(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage between 0 and 100")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _bytes(text: str) -> int:
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    number, unit = (text[:-1], units[text[-1].upper()]) if text and text[-1].upper() in units else (text, 1)
    try:
        size = int(float(number) * unit)
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 8G or 500M")
    return size


# -- commands ----------------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    from compat import progress
    from compat.records import Outcome
    from compat.session import Options, prepare, write_reports

    signal.signal(signal.SIGTERM, _as_interrupt)
    session = prepare(
        Options(
            matrix=arguments.matrix,
            device=arguments.device,
            patterns=tuple(arguments.cells),
            checks=arguments.checks,
            out=arguments.out,
            resume=arguments.resume,
            workers=arguments.workers,
            seed=arguments.seed,
            depth=arguments.depth,
            timeout_seconds=arguments.timeout,
            memory_limit_bytes=arguments.memory_limit,
            cache=arguments.cache,
            argv=tuple(sys.argv),
        )
    )
    listener = progress.listener(session.remaining, sys.stderr, arguments.quiet)
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
    if folder != session.folder:
        print(f"compat: {session.folder} takes no more ({session.refused}); rescued to {folder}", file=sys.stderr)
        return INTERNAL
    if session.interrupted:
        print(f"Interrupted. Continue: compat run {arguments.matrix} --resume {folder}", file=sys.stderr)
        return INTERRUPTED
    outcomes = {c.outcome for cell in run.cells for c in cell.checks}
    if Outcome.ERROR in outcomes:
        return INTERNAL
    return FINDINGS if any(o.value in arguments.fail_on for o in outcomes) else OK


def _as_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _print_report(run: Any) -> None:
    import shutil

    from compat.render import render

    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    width = shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 80
    print(render(run, "terminal", width=max(80, min(width, 120)), color=color))


def _selftest(arguments: argparse.Namespace) -> int:
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


def _list(arguments: argparse.Namespace) -> int:
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
    expected = Counter(r for c in runs if (r := availability.missing(c, matrix.models[c.model], kind)))
    _list_reasons("Would run, but is expected to be unavailable or unsupported here:", expected)
    _list_reasons("Left out by the matrix:", Counter(c.excluded for c in cells if c.excluded))
    able = tuple(c for c in runs if not availability.missing(c, matrix.models[c.model], kind))
    seconds = availability.estimate_seconds(matrix, able)
    checks = sum(len(c.checks) for c in runs)
    print(f"\n{len(runs)} cells, {checks} checks; about {seconds / 60:.0f} min with one worker ({seconds:.0f} s)")
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


def _list_reasons(title: str, reasons: Counter[str]) -> None:
    if reasons:
        print(f"\n{title}")
        for reason, count in reasons.most_common():
            print(f"  {count:>5} cells  {reason}")


def _calibrate(arguments: argparse.Namespace) -> int:
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


def _reproduce(arguments: argparse.Namespace) -> int:
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


def _report(arguments: argparse.Namespace) -> int:
    from compat.render import FORMATS, render
    from compat.session import rejudged
    from compat.store import read_run, write_whole

    if arguments.format not in FORMATS:
        from compat.axes import nearest

        hint = nearest(arguments.format, FORMATS)
        print(
            f"compat: unknown format {arguments.format!r}" + (f"; nearest: {hint!r}" if hint else ""), file=sys.stderr
        )
        return USAGE
    run = read_run(arguments.stored)
    if arguments.rejudge:
        run = rejudged(run)
    if arguments.out is None and arguments.format == "terminal":
        _print_report(run)
        return OK
    text = render(run, arguments.format)
    if arguments.out is None:
        print(text)
        return OK
    try:
        write_whole(arguments.out, text.encode("utf-8"))
    except OSError as error:
        print(f"compat: {arguments.out}: {error.strerror}", file=sys.stderr)
        return USAGE
    return OK


if __name__ == "__main__":
    raise SystemExit(main())
