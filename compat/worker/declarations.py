"""What model classes declare of themselves: `python -m compat.worker.declarations`, rows of models.toml on stdin.

In: JSON, model name -> row. Out: one line of JSON, model name -> `{"class", "declares"}`, or `{"error"}` where the
stack has no such class or configuration. Classes are imported and looked at; no model is made and no weight is read.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from typing import Any


def main() -> None:
    """See the module's docstring."""
    rows: dict[str, dict[str, Any]] = json.loads(sys.stdin.read())
    with contextlib.redirect_stdout(sys.stderr):  # libraries print while they are imported
        from compat.worker import stack_api

        stack_api.quiet_logs()
        found = {name: looked_at(row) for name, row in rows.items()}
    print(json.dumps(found))


def looked_at(row: dict[str, Any]) -> dict[str, Any]:
    """The class of one row and what it declares, or why that cannot be said."""
    from compat.worker import stack_api
    from compat.worker.calls import Unavailable

    try:
        cls = stack_api.model_class(config_of(row), row["task"])
    except Unavailable as error:
        return {"error": str(error)}
    except Exception as error:  # an unknown type, a refused argument: what the stack says of it is the result
        return {"error": f"{type(error).__name__}: {error}".strip()[:300]}
    return {"class": cls.__name__, "declares": stack_api.declared(cls)}


def config_of(row: dict[str, Any]) -> Any:
    """The configuration of `row`, without its weights. Raises Unavailable, and what the stack raises."""
    import transformers

    from compat.worker import checkpoints
    from compat.worker.calls import Unavailable

    if row["source"] in ("probe", "shape"):
        return transformers.AutoConfig.for_model(row["type"], **copy.deepcopy(row["config"]))
    if row["source"] == "hub":
        raise Unavailable("not asked: its configuration is on the hub")
    if row["source"] == "folder":
        return transformers.AutoConfig.from_pretrained(row["path"])
    place = checkpoints.file_in_package(row)
    more = {"gguf_file": place.name} if place.suffix == ".gguf" else {}
    return transformers.AutoConfig.from_pretrained(place.parent if more else place, **more)


if __name__ == "__main__":
    main()
