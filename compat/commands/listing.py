"""`compat list`: what would run and why the rest would not, or families. A front end without logic of its own."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compat.commands import arguments as read
from compat.commands import shared
from compat.commands.list_models import list_models
from compat.exit_codes import OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    shared.selection(parser, "families", only_with="--models")
    shared.checks(parser)
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--ids", action="store_true", help="one cell id a line, nothing else")
    shown.add_argument("--models", action="store_true", help="families: what their classes declare, and was measured")
    own = parser.add_argument_group("with --models")
    own.add_argument("--run", type=Path, metavar="RUN", dest="run_stored", help="a stored run: what was measured")
    own.add_argument("--format", default="terminal", help="terminal, markdown or json")
    own.add_argument("--stack", type=read.stack, default="current", metavar="NAME", help="look at its classes")
    own.add_argument("--cache", type=Path, metavar="DIR", help="folder for checkpoints and stacks")

    def conduct(parsed: argparse.Namespace) -> int:
        if parsed.models:
            parsed.matrix = parsed.matrix or read.matrix("families")
            return list_models(parsed)
        if parsed.matrix is None:
            parser.error("the following arguments are required: MATRIX")
        return list_matrix(parsed)

    parser.set_defaults(run=conduct)


def list_matrix(arguments: argparse.Namespace) -> int:
    """What would run, and why the rest would not."""
    from compat import availability, device
    from compat.matrix import read_matrix
    from compat.plan import fits_nothing, select
    from compat.session import SessionError

    detected = device.detect()
    kind = detected.type if arguments.device == "auto" else arguments.device
    matrix = read_matrix(arguments.matrix, kind)
    cells = select(matrix.cells, arguments.cells, arguments.checks)
    if said := fits_nothing(arguments.matrix, matrix.cells, arguments.cells, cells):
        raise SessionError(said)
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
