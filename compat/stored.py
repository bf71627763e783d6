"""What can be made of a stored run without a worker: its reports, its scripts, the same run judged again.

In: a `Run`. Out: files, text, or another `Run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from compat import reproduce, store
from compat.axes import ATTENTION, DTYPES, PLAIN, mode_of
from compat.axes.attention import kernel_kind
from compat.records import Cell, Check, Run, summarize
from compat.sharper import linked


def reproducer(run: Run, cell: Cell, check: Check) -> str:
    """The script that shows a failing check of a stored run, made from what is stored; "" where there is none."""
    row = run.run.settings.get("models", {}).get(cell.axes["model"], {}).get("row")
    if not row:
        return ""
    how = str(cell.effective.get("how", "loaded"))
    packages, machine = run.environment.packages, reproduce.machine(run.environment)
    return reproduce.script(check, reproduce.Subject(cell.id, cell.axes, row, run.run.device, packages, how, machine))


def effective(axes: Mapping[str, str], load: Check) -> dict[str, Any]:
    """What held after loading, from the load check, in the words of the axes where it is what was asked for."""
    facts = load.evidence.facts
    if "attention" not in facts:
        return {}
    asked = ATTENTION[axes["attention"]]
    shares: dict[str, float] = facts.get("dtype_shares", {})
    largest = max(shares, key=lambda k: shares[k], default="")
    quantization = facts.get("quantization")
    modules = quantization["modules"] if quantization else 0
    return {
        "attention": asked.name if facts["attention"] == asked.effective else facts["attention"],
        "kernels": sorted({kind for name in load.evidence.kernels if (kind := kernel_kind(name))}),
        "how": facts.get("how", ""),
        "dtype": next((d.name for d in DTYPES if d.torch_name == largest), largest),
        "quantization": axes["quantization"] if modules else "none",
        **({"quantized_modules": modules} if quantization else {}),
        **_effective_mode(axes, facts),
    }


def _effective_mode(axes: Mapping[str, str], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The mode that held, `plain` where the one asked for did not; nothing in a cell that asks for none."""
    if mode_of(axes) == PLAIN:
        return {}
    return {"mode": mode_of(axes) if facts.get("mode", {}).get("held") == "yes" else PLAIN}


def write_reports(run: Run, folder: Path) -> list[str]:
    """Write report.md (with its pictures) and report.html beside run.json; the names of all files a reader may want."""
    written = [store.RUN]
    for name, form in (("report.md", "markdown"), ("report.html", "html")):
        write_report(run, folder / name, form)
        written.append(name)
    return written


def write_report(run: Run, path: Path, form: str) -> None:
    """Write one rendering of `run` to `path`; for Markdown its pictures too, into the folder `plots` beside it.

    Raises OSError, and ValueError for an unknown format.
    """
    from compat.render import PLOTS, pictures, render

    found = pictures(run) if form == "markdown" else {}
    if found:
        (path.parent / PLOTS).mkdir(exist_ok=True)
    for name, content in found.items():
        store.write_whole(path.parent / PLOTS / name, content.encode("utf-8"))
    store.write_whole(path, render(run, form, plots=PLOTS if found else "").encode("utf-8"))


def rejudged(run: Run) -> Run:
    """The same run with every stored measurement judged by today's criteria."""
    from compat.judge import rejudge
    from compat.rules import stored_context

    cells = []
    for cell in run.cells:
        context = stored_context(run, cell)
        checks = tuple(rejudge(check, context) for check in cell.checks)
        planned = store.Planned(id=cell.id, axes=cell.axes, checks=tuple(c.name for c in checks))
        load = next((c for c in checks if c.name == "load"), None)
        seen = cell.effective if load is None else effective(cell.axes, load)
        cells.append(store.make_cell(planned, checks, seen) if checks else cell)
    return msgspec.structs.replace(run, cells=linked(cells), summary=summarize(cells, run.summary.seconds))
