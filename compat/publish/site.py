"""A site from stored runs: reads them, writes data, badges and pages.

In: paths of runs and of the folder. Out: the folder, or an error and nothing. One run is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from compat import __version__
from compat.records import Run

from . import SCHEMA, PublishError, pages
from .badges import badges
from .columns import Key, axes_of, keys_of
from .data import json_text, script_text
from .details import CHUNK, chunks
from .entries import Entry, Place, compact, facts, letters, read
from .names import shown, slug
from .places import Gathered, History, histories
from .tree import Tree, replacing


@dataclass(frozen=True)
class Made:
    """What was written."""

    files: int
    megabytes: float
    runs: int
    histories: int


def write_site(runs: Sequence[Path], out: Path, *, title: str = "") -> Made:
    """Write the site of `runs` to `out`; a site that is there is replaced whole.

    Raises PublishError or StoreError naming the file, OSError when the folder cannot be written.
    """
    with replacing(out) as tree:
        gathered: dict[Place, Gathered] = {}
        for path in runs:
            _take(tree, path, gathered)
        found = histories(list(gathered.values()))
        heading = shown(title) if title else "compat"
        for history in found:
            _history(tree, heading, history)
        entries = sorted((e for h in found for e in h.entries), key=lambda e: e.order, reverse=True)
        _index(tree, found, entries)
        for name, text in pages.assets().items():
            tree.add(f"assets/{name}", text)
        speeds = {h.place.slug for h in found if f"speed/{h.place.slug}.html" in tree.files}
        tree.add("index.html", pages.landing(heading, found, speeds))
        tree.add("runs.html", pages.runs(heading, found, entries))
        tree.add("compare.html", pages.compare(heading, found))
        size = sum(p.stat().st_size for p in tree.folder.rglob("*") if p.is_file())
        return Made(len(tree.files) + 1, size / 1e6, len(entries), len(found))


def _take(tree: Tree, path: Path, gathered: dict[Place, Gathered]) -> None:
    entry, run = read(path)
    place = gathered.setdefault(entry.place, Gathered(entry.place))
    if entry.digest in place.found:
        return
    axes: dict[Key, Any] = {key: axes_of(c) for key, c in zip(keys_of(run.cells), run.cells, strict=True)}
    place.add(entry, axes, letters(run.cells))
    _both(tree, f"runs/{entry.name}", {"schema": SCHEMA, "kind": "run", **compact(entry, run.cells)})


def _history(tree: Tree, heading: str, history: History) -> None:
    """Everything of a place: its history, the evidence of its shown run, its pages and badges."""
    name = history.place.slug
    run = _again(history.shown)
    content = {"schema": SCHEMA, "kind": "history", **history.content, "chunk": CHUNK}
    _both(tree, f"histories/{name}", content)
    for number, chunk in enumerate(chunks(run)):
        key = f"evidence/{history.shown.name}/{number}"
        tree.add(f"data/{key}.js", script_text(key, json_text(chunk)))
    speed = pages.speed(heading, history, run)
    tree.add(f"matrix/{name}.html", pages.matrix(heading, history, run, speed=bool(speed)))
    if speed:
        tree.add(f"speed/{name}.html", speed)
    for model, badge in badges(history).items():
        tree.add(badge_path(history, model), json_text(badge) + "\n")


def _again(entry: Entry) -> Run:
    again, run = read(entry.path)
    if again.digest != entry.digest:
        raise PublishError(f"{entry.path}: changed while the site was made; publish again")
    return run


def _both(tree: Tree, key: str, content: dict[str, Any]) -> None:
    text = json_text(content)
    tree.add(f"data/{key}.json", text + "\n")
    tree.add(f"data/{key}.js", script_text(key, text))


def badge_path(history: History, model: str) -> str:
    """Where the badge of a model lies; of the whole place for ""."""
    name = history.place.slug
    return f"badges/{name}/{slug(model)}.json" if model else f"badges/{name}.json"


def _index(tree: Tree, found: Sequence[History], entries: Sequence[Entry]) -> None:
    content = {
        "schema": SCHEMA,
        "kind": "index",
        "compat": __version__,
        "histories": [
            {
                "name": h.place.slug,
                "stack": h.place.stack,
                "device": h.place.device,
                "matrix": h.place.matrix,
                "shown": h.shown.digest,
                "runs": [e.digest for e in h.entries],
                "counts": [[o.value, n] for o, n in h.shown.counts],
                "data": f"data/histories/{h.place.slug}.json",
                "page": f"matrix/{h.place.slug}.html",
                "badge": badge_path(h, ""),
                "models": [
                    {"model": m, "badge": badge_path(h, m), "counts": [[o.value, n] for o, n in t.counts]}
                    for m, t in h.models().items()
                ],
            }
            for h in found
        ],
        "runs": [{**facts(e), "data": f"data/runs/{e.name}.json"} for e in entries],
    }
    text = json_text(content)
    tree.add("index.json", text + "\n")
    schema = resources.files(__package__).joinpath("schema.json").read_text(encoding="utf-8")
    tree.add("schema.json", schema)
