"""What a library answered, taken as it comes: fewer, more, None, or another type are differences, never our error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Differences:
    """Counts of one text-generation pipeline, with what was seen of each kind that is not zero."""

    inputs: int = 0
    settings: int = 0
    texts: int = 0
    tokens: int = 0
    compared: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    def note(self, what: str, count: int, *seen: Any) -> int:
        """`count`, after keeping what was seen where it is not zero."""
        if count:
            self.notes[what] = [str(s)[:300] for s in seen]
        return count


def plain(value: Any) -> Any:
    """`value` with tensors, arrays and tuples as lists, at any depth of lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def apart(own: Any, theirs: Any) -> int:
    """Entries of nested lists `theirs` that are not those of `own`. What is missing, or is there beside, counts with
    all its entries, at least 1."""
    return _apart(plain(own), plain(theirs))


def _apart(own: Any, theirs: Any) -> int:
    if isinstance(own, list) and isinstance(theirs, list):
        rest = own[len(theirs) :] + theirs[len(own) :]
        return sum(_apart(a, b) for a, b in zip(own, theirs, strict=False)) + sum(map(_entries, rest))
    if isinstance(own, list) or isinstance(theirs, list):
        return max(_entries(own), _entries(theirs))
    return int(own != theirs)


def _entries(value: Any) -> int:
    return max(1, sum(map(_entries, value))) if isinstance(value, list) else 1


def records(answer: Any) -> list[dict[str, Any]]:
    """The dicts of a pipeline's answer, in order, whether it is one, a list of them or a list of lists."""
    if isinstance(answer, dict):
        return [answer]
    return [r for part in answer for r in records(part)] if isinstance(answer, (list, tuple)) else []


def depth(answer: Any) -> int:
    """How many lists the first record of an answer stands in; -1 where there is none."""
    if isinstance(answer, dict):
        return 0
    inside = depth(answer[0]) if isinstance(answer, (list, tuple)) and len(answer) else -1
    return inside + 1 if inside >= 0 else -1


def token_ids(answer: Any) -> list[list[int]]:
    """The `generated_token_ids` of each record, [] where one has none."""
    found = [plain(r.get("generated_token_ids")) for r in records(answer)]
    return [ids if isinstance(ids, list) else [] for ids in found]


def words(text: Any) -> Any:
    """A text without its spaces; what is no text stays."""
    return "".join(text.split()) if isinstance(text, str) else text


def texts(answer: Any) -> list[Any]:
    """The `generated_text` of each record, without spaces."""
    return [words(r.get("generated_text")) for r in records(answer)]


def compare_ids(what: str, own: Sequence[Sequence[int]], theirs: Sequence[Any], found: Differences) -> None:
    """Count the tokens of all rows that differ, and those compared."""
    found.compared += sum(len(o) for o in own)
    found.tokens += found.note(f"ids: {what}", apart(own, theirs), own, theirs)
