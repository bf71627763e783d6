"""What model classes of a stack declare of themselves, asked of a worker: the parent imports no torch.

In: rows of models.toml and an interpreter. Out: a `Declared` for each. One process answers for all; it imports the
classes, and neither builds a model nor reads a weight.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compat.execute.worker_process import environment_of

SECONDS = 300.0
"""Longest wait: every family's module is imported, on a cold disk too."""

SHOWN_LINES = 6
"""Last lines of what a failed process said."""


class DeclarationsError(Exception):
    """The worker gave no answer; the message says what it said."""


@dataclass(frozen=True)
class Declared:
    """Of one model: its class, and what that says of itself."""

    name: str = ""
    """Of the class; empty where `error` says why there is none."""
    flags: Mapping[str, bool | None] = field(default_factory=dict)
    """`sdpa`, `flash`, `flex`, `paged`, `compile`, `switch`; None where the version has no words for it."""
    error: str = ""


def ask(rows: Mapping[str, Mapping[str, Any]], python: str) -> dict[str, Declared]:
    """What the classes of `rows` (model name -> row) declare in the environment of `python`. Raises
    DeclarationsError."""
    try:
        done = subprocess.run(
            [python, "-m", "compat.worker.declarations"],
            input=json.dumps(rows),
            capture_output=True,
            text=True,
            errors="replace",
            env=environment_of(python),
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise DeclarationsError(f"{python}: importing the model classes took more than {SECONDS:g} s") from error
    except OSError as error:
        raise DeclarationsError(f"{python}: cannot be started: {error.strerror}") from error
    try:
        answer: dict[str, dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError) as error:
        said = "\n".join(f"  {line}" for line in done.stderr.strip().splitlines()[-SHOWN_LINES:])
        raise DeclarationsError(f"{python}: ended with {done.returncode}, asked for model classes\n{said}") from error
    return {
        name: Declared(str(x.get("class", "")), x.get("declares", {}), str(x.get("error", "")))
        for name, x in answer.items()
    }
