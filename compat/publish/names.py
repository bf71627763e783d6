"""Names of a run made fit for a site: for its pages (`shown`) and for the names of its files (`slug`).

In: any text. Out: inert text of bounded length, or a file name that every system takes. Both keep different texts
apart: what was cut or replaced is told by the beginning of the text's SHA-256.
"""

from __future__ import annotations

import hashlib
import re

from compat.render.inert import EMPTY, visible

SHOWN_LENGTH = 200
"""Characters of a name on a page; a longer one is cut and ends with its digest."""

_SAFE = re.compile(r"[a-z0-9]+(?:[._-]?[a-z0-9]+)*\Z")
_DIGESTED = re.compile(r".*-[0-9a-f]{10}\Z")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?\Z")
_SLUG_LENGTH = 60


def digest(text: str, length: int = 10) -> str:
    """The beginning of the SHA-256 of `text`, in hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def slug(text: str) -> str:
    """A file name of lower-case letters, digits, dots, underscores and hyphens, at most 60 characters.

    A text that is such a name already stays as it is; another keeps what it can and gets its digest. Two hyphens never
    follow each other, so that `--` can join slugs.
    """
    fits = len(text) <= _SLUG_LENGTH and _SAFE.match(text)
    if fits and not _DIGESTED.match(text) and not _RESERVED.match(text):
        return text
    kept = re.sub(r"[^a-z0-9]+", "-", text[:400].lower())[: _SLUG_LENGTH - 11].strip("-")
    return f"{kept or 'x'}-{digest(text)}"


def shown(text: str) -> str:
    """`text` for a page and its data: on one line, with nothing invisible in it, never empty, at most 200
    characters."""
    spelled = visible(text[: 4 * SHOWN_LENGTH])
    if len(text) <= 4 * SHOWN_LENGTH and len(spelled) <= SHOWN_LENGTH:
        return spelled if spelled.strip() else f"{EMPTY} {digest(text)}" if text else EMPTY
    return f"{spelled[: SHOWN_LENGTH - 14]}... {digest(text)}"
