"""Each format, compared with a stored page.

`COMPAT_UPDATE_GOLDEN=1 pytest tests/render` writes the stored pages anew; read their diff before committing it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from compat.records import decode_run
from compat.render import FORMATS, pictures, render
from compat.render.markdown import matrix_tables

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
