"""What an interpreter has of a stack: `python -m compat.worker.imported DISTRIBUTION... [--modules MODULE...]`.

Imports each distribution and each module, and prints one line of JSON: `{"python": version, "distributions": {name:
{"version", "module", "error"}}, "modules": {name: error}}`. An empty `error` says that it could be imported; a
distribution without a package of its own name has every package that it brings imported.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import platform
import sys
from typing import Any


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("distributions", nargs="*")
    parser.add_argument("--modules", nargs="*", default=[])
    asked = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):  # libraries print while they are imported
        found = {
            "python": platform.python_version(),
            "distributions": {name: _distribution(name) for name in asked.distributions},
            "modules": {name: _error(name) for name in asked.modules},
        }
    print(json.dumps(found))


def _distribution(name: str) -> dict[str, Any]:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return {"version": "", "module": "", "error": "is not installed"}
    modules = _modules(distribution, name)
    errors = [f"{module}: {error}" for module in modules if (error := _error(module))]
    return {"version": distribution.version, "module": ", ".join(modules), "error": "; ".join(errors)}


def _modules(distribution: importlib.metadata.Distribution, name: str) -> list[str]:
    """The packages and modules at the top of `distribution`; the one called like it alone where there is one."""
    tops: dict[str, None] = {}
    for file in distribution.files or ():
        top = file.parts[0]
        if len(file.parts) > 1 and file.suffix == ".py" and top.isidentifier():
            tops[top] = None
        elif len(file.parts) == 1 and file.suffix == ".py" and file.stem.isidentifier():
            tops[file.stem] = None
    own = name.replace("-", "_").lower()
    return [m for m in tops if m.lower() == own] or [m for m in tops if not m.startswith("_")]


def _error(module: str) -> str:
    """Why `module` cannot be imported, or ""."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a library may raise anything while it is imported; what it said is the result
        return f"{type(error).__name__}: {error}".strip()[:500]
    return ""


if __name__ == "__main__":
    main()
