"""Make text that comes from a run inert before it reaches a page: names, messages and tracebacks are not ours.

In: any text. Out: text without control, invisible or direction-changing characters; each is spelled out (`\\x1b`,
`\\u202e`) where it stood, so that a reader sees it. Escaping for HTML or Markdown comes on top, in those renderers.
"""

from __future__ import annotations

import re
import unicodedata

EMPTY = "(empty)"
"""Stands for text with nothing to see in it."""

MORE = "..."
"""Stands for what was cut off."""

_INVISIBLE_CATEGORIES = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
# Letters and marks that Unicode lists as Default_Ignorable_Code_Point, and the blank braille cell: they draw nothing.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)

_COLONS = re.compile(":(?=:)")
_FIRST_COLONS = re.compile("^( *):(?=:)", re.MULTILINE)


def visible(text: str, *, lines: bool = False) -> str:
    """`text` with every invisible, control or direction-changing character spelled out, and what starts a workflow
    command in a log of GitHub Actions.

    With `lines`, newlines stay and a tab becomes four spaces; otherwise each is spelled out too.
    """
    if not (text.isascii() and text.isprintable()):
        text = "".join(map(_visible_line, text)) if lines else "".join(map(_visible_char, text))
    return commandless(text) if "::" in text or "##[" in text else text


def commandless(text: str, anywhere: bool = False) -> str:
    """`text` with `::` spelled out where it stands first on a line (with `anywhere`: everywhere, for text that will be
    broken into lines), and `##[`, which counts in the middle of one too."""
    text = _COLONS.sub(r"\\x3a", text) if anywhere else _FIRST_COLONS.sub(r"\1\\x3a", text)
    return text.replace("##[", "\\x23#[")


def one_line(text: str, limit: int = 400) -> str:
    """`text` on one line: white space becomes single spaces, the rest `visible`, cut after `limit` characters."""
    return clip(visible(" ".join(text[: 8 * limit].split())), limit)


def label(text: str, limit: int = 120) -> str:
    """`text` as the name of a thing: `one_line`, and never blank."""
    return one_line(text, limit) or EMPTY


def clip(text: str, limit: int) -> str:
    """The first `limit` characters of `text`, the last of them dots when something was cut off."""
    return text if len(text) <= limit else text[: max(limit - len(MORE), 0)] + MORE[:limit]


def _visible_line(char: str) -> str:
    return {"\n": "\n", "\t": "    "}.get(char) or _visible_char(char)


def _visible_char(char: str) -> str:
    if " " <= char <= "~":
        return char
    category = unicodedata.category(char)
    if category == "Zs":
        return " "
    if category not in _INVISIBLE_CATEGORIES and not _INVISIBLE.match(char):
        return char
    code = ord(char)
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char)
    return named or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
