"""Running a reproducer alone, as whoever gets it would: a fresh process, an empty folder, none of compat's path.

In: the script's text, an interpreter. Out: how it ended and what it printed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from compat.render.issue import Tried

SECONDS = 900.0
"""Limit of one script; the largest model of the default matrix takes a minute on a CPU."""

_VERSIONS = "import importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in ('torch', 'transformers')))"


class TryError(Exception):
    """A script that could not be run to its end."""


def tried(script: str, python: str = sys.executable) -> Tried:
    """Run `script` and wait. Raises TryError after SECONDS, or where the interpreter cannot be started."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "script.py"
        path.write_text(script, encoding="utf-8")
        try:
            said = subprocess.run([python, "-P", "-c", _VERSIONS], capture_output=True, text=True, timeout=60)
            ended = subprocess.run(
                [python, "-P", str(path)],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise TryError(f"the script did not end within {error.timeout:g} s") from error
        except OSError as error:
            raise TryError(f"{python} cannot be started: {error.strerror}") from error
    return Tried(ended.returncode, ended.stdout.replace(folder, "."), said.stdout.strip())
