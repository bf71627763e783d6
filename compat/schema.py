"""The JSON Schema of run.json, made from the records themselves, so that it cannot say anything else.

In: nothing. Out: a schema (draft 2020-12) as plain values, or as the text that `compat schema` prints and
docs/schema/ holds. It is open, as the form is: keys that it does not name are allowed anywhere.
"""

from __future__ import annotations

import json
from inspect import cleandoc
from typing import Any

import msgspec

from compat.records import SCHEMA, Run

DRAFT = "https://json-schema.org/draft/2020-12/schema"

FILE = f"{SCHEMA.replace('/', '-')}.schema.json"
"""Name of the schema's file."""


def schema() -> dict[str, Any]:
    """The schema of a stored run: every key of the records with its type, and what each struct is."""
    (top,), parts = msgspec.json.schema_components([Run], ref_template="#/$defs/{name}")
    run = parts["Run"]
    run["properties"]["schema"] = {"const": SCHEMA}
    run["required"] = sorted({*run.get("required", ()), "schema"})
    for part in parts.values():
        part["description"] = cleandoc(part.get("description", ""))
    return {"$schema": DRAFT, "$id": f"urn:compat:{FILE}", "title": f"A stored run of compat ({SCHEMA})", **top,
            "$defs": dict(sorted(parts.items()))}  # fmt: skip


def text() -> str:
    """The schema as indented JSON, ending in a newline."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
