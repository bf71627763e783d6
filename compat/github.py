"""Telling GitHub Actions of a run: its annotations on stdout, its summary in the file that the step names.

In: a run and the environment of the step. Out: lines to print, and a file that has grown. The renderers are in
compat.render.github.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from pathlib import Path

from compat.records import Run

SUMMARY = "GITHUB_STEP_SUMMARY"


class GithubError(Exception):
    """Asked to tell GitHub, and there is no step to tell."""


def summary_file(asked: bool | None, environment: Mapping[str, str] | None = None) -> Path | None:
    """The file of the step's summary; None where GitHub is not to be told.

    `asked` is True for --github, False for --no-github, None to look: in a step of GitHub Actions it is told. Raises
    GithubError where it is asked for and no step names a file.
    """
    known = os.environ if environment is None else environment
    if asked is False or (asked is None and known.get("GITHUB_ACTIONS") != "true"):
        return None
    path = known.get(SUMMARY, "")
    if path:
        return Path(path)
    if asked:
        raise GithubError(
            f"--github: {SUMMARY} names no file; a step of GitHub Actions sets it. Elsewhere: --format github"
        )
    return None


def tell(run: Run, path: Path, expected: Set[tuple[str, str]] = frozenset()) -> str:
    """Append the summary to `path`, as far as the step has room left; the annotations to print, without what is
    `expected`, (cell id, check) pairs. Raises OSError."""
    from compat.render.github import SUMMARY_BYTES, render_annotations, render_summary

    used = path.stat().st_size if path.exists() else 0
    text = render_summary(run, SUMMARY_BYTES - used, expected)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
    return render_annotations(run, expected)
