"""Turn a stored run into text that people and tools read.

In: a `Run`. Out: text. Rendering is pure: no clock, no environment, no file but a renderer's own template. Each
renderer is imported when it is first asked for, because `compat list` must not pay for HTML.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compat.records import Run

FORMATS: tuple[str, ...] = ("terminal", "markdown", "html", "json", "junit", "github", "annotations")
"""Every name that `render` takes."""

PLOTS = "plots"
"""Folder of a page's pictures, beside the page."""


def render(run: Run, format: str, *, width: int = 80, color: bool = False, ascii: bool = False, plots: str = "") -> str:
    """`run` as text in one of `FORMATS`, ending in a newline (but for annotations where there is none to make).

    `width` (columns, at least 40), `color` (escape codes) and `ascii` (no glyph beyond ASCII in marks) concern
    `terminal` only; `plots` is the folder of the pictures (see `pictures`) as seen from a `markdown`
    page. Raises `ValueError` for an unknown format.
    """
    match format:
        case "terminal":
            from compat.render.terminal import render_terminal

            return render_terminal(run, width=width, color=color, ascii=ascii)
        case "markdown":
            from compat.render.markdown import render_markdown

            return render_markdown(run, plots=plots)
        case "html":
            from compat.render.html import render_html

            return render_html(run)
        case "json":
            from compat.records import encode_run

            # the same text to every reader of JSON; a log of GitHub Actions takes the bare form for a command
            return encode_run(run).decode().replace("##[", "\\u0023#[")
        case "junit":
            from compat.render.junit import render_junit

            return render_junit(run)
        case "github":
            from compat.render.github import render_summary

            return render_summary(run)
        case "annotations":
            from compat.render.github import render_annotations

            return render_annotations(run)
    raise ValueError(f"unknown format {format!r}; one of: {', '.join(FORMATS)}")


def pictures(run: Run) -> dict[str, str]:
    """Every plot of `run` as an SVG file that stands alone: file name -> content."""
    from importlib import resources

    from compat.render.exhibits import plots, sections
    from compat.render.plots import picture

    css = resources.files(__package__).joinpath("plots.css").read_text(encoding="utf-8")
    return {f"{plot.name}.svg": picture(plot, css) for plot in plots(sections(run))}
