"""`compat list --models`: from parsed arguments to a table of families. A front end without logic."""

from __future__ import annotations

import argparse
import sys

from compat.exit_codes import INTERNAL, OK, USAGE


def list_models(arguments: argparse.Namespace) -> int:
    """Families of a matrix: what their classes declare in a stack, beside what a stored run measured of them."""
    from compat import declarations, device, environments
    from compat.axes import nearest
    from compat.families import Family, plain
    from compat.matrix import read_matrix
    from compat.plan import fits_nothing, select
    from compat.render.families import FORMATS, render_families
    from compat.session import SessionError
    from compat.store import read_run

    if arguments.format not in FORMATS:
        hint = nearest(arguments.format, FORMATS)
        said = f"compat: --format: unknown value {arguments.format!r}" + (f"; nearest: {hint!r}" if hint else "")
        print(said, file=sys.stderr)
        return USAGE
    run = None if arguments.run_stored is None else read_run(arguments.run_stored)
    kind = device.detect().type if arguments.device == "auto" else arguments.device
    matrix = read_matrix(arguments.matrix, kind)
    chosen = select(matrix.cells, arguments.cells)
    if said := fits_nothing(arguments.matrix, matrix.cells, arguments.cells, chosen):
        raise SessionError(said)
    names = list(dict.fromkeys(c.model for c in chosen))
    rows = {name: matrix.models[name].row for name in names}
    try:
        found = declarations.ask(rows, environments.interpreter(arguments.stack, arguments.cache))
    except declarations.DeclarationsError as error:
        print(f"compat: {error}", file=sys.stderr)
        return INTERNAL
    families = []
    for name in names:
        told = found[name]
        cells = plain([c for c in run.cells if c.axes["model"] == name]) if run is not None else ()
        flags = None if told.error else told.flags
        families.append(Family(name, rows[name], told.name, flags, told.error, cells))
    print(render_families(families, run, arguments.format, arguments.stack), end="")
    return OK
