"""`compat calibrate`, `reproduce` and `report`: commands that read stored runs and start nothing."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from compat.commands import arguments as read
from compat.commands import shared
from compat.exit_codes import NOTHING, OK, USAGE


def add(parsers: Any) -> None:
    """Describe `calibrate`, `reproduce` and `report`."""
    calibrate_ = parsers.add_parser("calibrate", help="store what is normal: clean bands and known answers, from runs")
    calibrate_.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="stored runs of one device and stack")
    calibrate_.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: compat's own)")
    calibrate_.add_argument(
        "--answers", action="store_true", help="store the known answers too (any device gives them)"
    )
    calibrate_.add_argument(
        "--add", action="store_true", help="keep what is stored of models that the runs do not have"
    )
    calibrate_.set_defaults(run=calibrate)

    again = parsers.add_parser("reproduce", help="print a script that shows one failure of a stored run, alone")
    again.add_argument("stored", type=Path, metavar="RUN", help="a run's folder, or its run.json")
    again.add_argument("cell", metavar="CELL", help="the cell's id")
    again.add_argument(
        "--check", type=read.check, metavar="NAME", help="one check (default: the first that has a script)"
    )
    again.set_defaults(run=reproduce)

    report_ = parsers.add_parser("report", help="render a stored run again")
    report_.add_argument("stored", type=Path, metavar="RUN", help="a run's folder, or its run.json")
    report_.add_argument(
        "--format",
        default="terminal",
        help="terminal, markdown, html, json, junit, github (a step's summary) or annotations",
    )
    report_.add_argument("--out", type=Path, metavar="FILE", help="write to FILE instead of the screen")
    report_.add_argument(
        "--rejudge", action="store_true", help="judge the stored measurements by today's criteria first"
    )
    shared.github(report_)
    report_.set_defaults(run=report)


def calibrate(arguments: argparse.Namespace) -> int:
    """Store what clean runs measured."""
    from compat import calibration
    from compat.rules import criteria
    from compat.store import read_run, write_whole

    wanted = {(r.check, r.measurement) for r in criteria().rules if r.band}
    try:
        bands, answers = calibration.collect([read_run(path) for path in arguments.runs], wanted)
    except ValueError as error:
        print(f"compat: {error}", file=sys.stderr)
        return USAGE
    folder = arguments.out or calibration.FOLDER
    files = {f"bands-{bands['device']}.json": bands} | ({"answers.json": answers} if arguments.answers else {})
    try:
        if arguments.add:
            files = {n: calibration.added(json.loads((folder / n).read_bytes()), f) for n, f in files.items()}
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f"compat: {folder}: {error}", file=sys.stderr)
        return USAGE
    for name, content in files.items():
        write_whole(folder / name, calibration.text(content).encode())
        print(f"{folder / name}: {len(content.get('cells', content['models']))} entries from {content['runs']} runs")
    return OK


def reproduce(arguments: argparse.Namespace) -> int:
    """Print the script of one failure of a stored run."""
    from compat.axes import nearest
    from compat.store import read_run
    from compat.stored import reproducer

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
    from compat.store import read_run
    from compat.stored import rejudged, write_report

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
    shared.tell_step(run, told)
    if arguments.out is None and arguments.format == "terminal":
        shared.print_report(run)
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
