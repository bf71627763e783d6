"""Read rendered pages back, so that tests can say what is on them.

In: a page. Out: the marks in its grids, its elements, the data for its script.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

from compat.render.symbols import ABSENT, SYMBOLS

MARKS = {s.mark for s in SYMBOLS.values()} | {ABSENT.mark}
DENSE = {s.dense() for s in SYMBOLS.values()} | {ABSENT.dense()}


class Page(HTMLParser):
    """Elements of an HTML page with their attributes, and the text of the data element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.slots: list[str] = []
        self._data = ""
        self._inside = ""
        self.feed(text)
        self.data: dict[str, Any] = json.loads(self._data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        is_slot = tag in ("button", "span") and (found.get("class") or "").startswith("cell ")
        self._inside = "slot" if is_slot else "data" if found.get("id") == "data" else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "slot":
            self.slots.append(data)
        if self._inside == "data":
            self._data += data

    def numbers(self) -> list[int]:
        """Numbers of the cells in the grids."""
        return [int(a["data-i"] or -1) for _, a in self.elements if "data-i" in a]


def markdown_slots(text: str) -> list[str]:
    """The cells of all grid tables, without the models."""
    slots: list[str] = []
    grid = False
    for line in text.splitlines():
        if not line.startswith("|"):
            grid = False
        elif line.startswith("| model |"):
            grid = True
        elif grid and "--" not in line:
            slots += [part.strip().strip("*").replace("&#126;", "~") for part in line.strip("|").split("|")[1:]]
    return slots


def terminal_slots(text: str) -> list[str]:
    """The marks of all grids, one for each dtype of each table cell."""
    slots: list[str] = []
    start: int | None = None
    for line in text.splitlines():
        head = re.match(r"model +", line)
        if head:
            start = head.end()
        elif start is not None and (not line or line.startswith(("not in the matrix", " " * 10))):
            start = None
        elif start is not None:
            slots += [char for char in line[start:] if char != " "]
    return slots
