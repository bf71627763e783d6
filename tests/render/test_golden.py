"""Each format, compared with a stored page.

`COMPAT_UPDATE_GOLDEN=1 pytest tests/render` writes the stored pages anew; read their diff before committing it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from compat.compare.history import past
from compat.records import Outcome, decode_run
from compat.render import FORMATS, pictures, render
from compat.render.issue import Tried, render_issue
from compat.render.markdown import matrix_tables
from compat.render.story import story_markdown, story_terminal
from compat.story import Story, story

from .sample_grid import grid_run
from .sample_runs import small_run

GOLDEN = Path(__file__).parent.parent / "golden"
DRAWN = (
    "llama-7b-bf16-none-prefill-speedup",
    "llama-7b-bf16-none-prefill-peak-bytes",
    "llama-7b-bf16-none-attained",
    "llama-7b-bf16-decode-by-quantization",
    "llama-7b-bf16-weights-bytes",
)
"""One picture of each kind."""


def _picture(name: str) -> str:
    return pictures(grid_run())[f"{name}.svg"]


def _story() -> Story:
    """A failing cell, of a run with one before it."""
    run = small_run()
    cell = next(c for c in run.cells if c.id == "falcon/bf16/sdpa/none")
    info = msgspec.structs.replace(run.run, id="20260101-000000-cd34", started="2026-01-01T00:00:00Z")
    good = msgspec.structs.replace(cell, outcome=Outcome.PASS, checks=(cell.checks[0],))
    before = msgspec.structs.replace(run, run=info, cells=(good,))
    return story(run, cell, past(cell.id, [("today", run), ("before", before)]), 1)


def _issue() -> str:
    told = _story()
    printed = "falcon/bf16/sdpa/none\n  ratio_rms 6188, pass <= 1.5 <- the defect\nthe defect shows\n"
    tried = Tried(1, printed, "torch 2.13.0, transformers 5.23.0")
    return render_issue(told, told.cell.checks[1], "import torch\n\nprint(torch.__version__)\n", tried)


PAGES: dict[str, Callable[[], str]] = {
    "report.txt": lambda: render(small_run(), "terminal"),
    "report-ascii-60.txt": lambda: render(small_run(), "terminal", width=60, ascii=True),
    "report-color.txt": lambda: render(small_run(), "terminal", color=True),
    "report.md": lambda: render(small_run(), "markdown"),
    "matrix.md": lambda: matrix_tables(small_run(), dtypes=["bf16"], quantizations=["none"]),
    "report.html": lambda: render(small_run(), "html"),
    "grid.txt": lambda: render(grid_run(), "terminal"),
    "grid.md": lambda: render(grid_run(), "markdown", plots="plots"),
    **{f"plots/{name}.svg": functools.partial(_picture, name) for name in DRAWN},
    "junit.xml": lambda: render(small_run(), "junit"),
    "github.md": lambda: render(small_run(), "github"),
    "annotations.txt": lambda: render(small_run(), "annotations"),
    "story.txt": lambda: story_terminal(_story()),
    "story.md": lambda: story_markdown(_story(), scripts=[("agreement", "today/reproducers/x.py")]),
    "issue.md": _issue,
    "run.json": lambda: render(small_run(), "json"),
}


@pytest.mark.parametrize("name", PAGES)
def test_page_is_as_stored(name: str) -> None:
    text = PAGES[name]()
    path = GOLDEN / name
    if os.environ.get("COMPAT_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"{name} changed; COMPAT_UPDATE_GOLDEN=1 stores it anew"


def test_rendering_twice_gives_the_same_text() -> None:
    assert [render(small_run(), f) for f in FORMATS] == [render(small_run(), f) for f in FORMATS]


def test_json_is_the_stored_form() -> None:
    assert decode_run(render(small_run(), "json").encode()) == small_run()


def test_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="terminal, markdown, html, json"):
        render(small_run(), "pdf")
