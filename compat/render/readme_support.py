"""Parts of pages about what is supported: by family and backend in one run, and by system in every stored run.

In: the options of a mark and the folder that its paths start from. Out: Markdown.
"""

from __future__ import annotations

from pathlib import Path

from compat import store
from compat.render.readme_marks import MarkError, Options, listed
from compat.render.readme_runs import stored_run
from compat.render.support import support_tables
from compat.render.systems import systems_brief, systems_table

DEFAULT_REPORTS = "reports"


def support_part(options: Options, root: Path) -> str:
    """Families by attention backend, as declared and as measured."""
    run = stored_run(options, root)
    models = listed(options, "models", list(dict.fromkeys(c.axes["model"] for c in run.cells)))
    return support_tables(run, models)


def systems_part(options: Options, root: Path) -> str:
    """Every system with the stored runs that show it; `reports` names the folder that holds their
    folders, `form=brief` gives each system one row."""
    named = options.get("reports", DEFAULT_REPORTS)
    folder = root / named
    if not folder.is_dir():
        raise MarkError(f"there is no folder {named}")
    places = [p for p in sorted(folder.iterdir()) if p.is_dir() and any(p.glob(f"{store.RUN}*"))]
    if not places:
        raise MarkError(f"no folder in {named} holds a stored run")
    write = systems_brief if options.get("form") == "brief" else systems_table
    return write({f"{named}/{p.name}": store.read_run(p) for p in places})
