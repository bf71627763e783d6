"""What every generator of a marked part shares: options, errors, and the words for rules.

In: the options of a mark. Out: values checked against what is known; MarkError names what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from compat.axes import nearest
from compat.rules import Rule


class MarkError(ValueError):
    """A mark that cannot be used; the message names file, line and what is wrong."""


Options = Mapping[str, str]
Generator = Callable[[Options, Path], str]


def hint(name: str, known: Collection[str]) -> str:
    """The nearest known name, as the end of an error; empty where none is near."""
    hint = nearest(name, known)
    return f"; nearest: {hint!r}" if hint else ""


def listed(options: Options, key: str, known: Collection[str]) -> list[str] | None:
    """The comma-separated values of an option, each one of `known`; None when it is not given."""
    if key not in options:
        return None
    values = options[key].split(",")
    for value in values:
        if value not in known:
            raise MarkError(f"{key}: unknown value {value!r}{hint(value, known)}")
    return values


def where(rule: Rule) -> str:
    """Which cells a rule speaks of."""
    only = [f"{axis} {', '.join(values)}" for axis, values in rule.only.items()]
    but = [f"not {axis} {', '.join(values)}" for axis, values in rule.excepted.items()]
    return own_text("; ".join([*only, *but])) or "every cell"


def bound(rule: Rule, value: float) -> str:
    """A bound of a rule."""
    return f"{value:g} x stored" if rule.band else f"{value:g}"


def own_text(text: str) -> str:
    """Text of compat's own tables, for a cell of a Markdown table."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
