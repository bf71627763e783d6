"""Ids and masks that a text-generation pipeline has to hand to generate, by our own padding of a text's ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compat.worker.answers import apart, plain
from compat.worker.group import Group


def tokenized(group: Group, text: str) -> list[int]:
    """The ids of a text: by the names of a probe's words, else by the tokenizer."""
    if group.row["source"] == "probe":
        return [int(word[1:]) for word in text.split()]
    return [int(i) for i in group.tokenizer(text)["input_ids"]]


def padded_ids(group: Group, rows: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """(ids, mask), padded on the left."""
    width, pad = max(len(r) for r in rows), int(group.tokenizer.pad_token_id)
    ids = [[pad] * (width - len(r)) + list(r) for r in rows]
    return ids, [[0] * (width - len(r)) + [1] * len(r) for r in rows]


def unlike(seen: Mapping[str, Any], ids: list[list[int]], mask: list[list[int]]) -> int:
    """Entries of what was handed over that are not `ids` and `mask`. No mask stands for ones."""
    theirs, given = plain(seen.get("input_ids")), plain(seen.get("attention_mask"))
    if given is None:
        given = [[1] * len(r) if isinstance(r, list) else None for r in theirs or []]
    return apart(ids, theirs) + apart(mask, given)
