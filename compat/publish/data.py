"""Data of a site: JSON for machines, and the same as a script for pages that are opened from a folder.

A page from `file://` may not fetch its neighbours, so each `NAME.json` has a `NAME.js` beside it that hands the same
text to the page. In: plain values whose texts are inert. Out: bytes in which nothing can end a script element or a
string.
"""

from __future__ import annotations

from typing import Any

import msgspec


def json_text(content: Any) -> str:
    """`content` as JSON on one line, in which no character can open or close markup."""
    text = msgspec.json.encode(content).decode()
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def script_text(key: str, text: str) -> str:
    """A script that hands the JSON `text` to the page under `key`. Names of a run stay inside the string, so that none
    of them (`__proto__`) is ever read as code."""
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"compatData('{key}', '{quoted}');\n"
