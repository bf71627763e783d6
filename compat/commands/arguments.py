"""From the words of a command line to values, or an error that says what would be right.

Each function takes one argument as text and raises ArgumentTypeError, which argparse turns into a usage error.
"""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from compat.speed.settings import Item

FAIL_ON = ("fail", "crash", "error", "oom", "timeout", "degraded", "inconclusive")
"""Outcomes that `--fail-on` may name."""

T = TypeVar("T")


def matrix(text: str) -> Path:
    """A matrix file, or the name of one of compat's own."""
    from compat.axes import nearest
    from compat.builtin import OWN, matrix_path

    path = matrix_path(text)
    if not path.exists() and path.name == text and not path.suffix:
        hint = nearest(text, OWN)
        raise ArgumentTypeError(f"there is no file {text!r}, nor a matrix of compat's own of that name"
                                + (f"; nearest: {hint!r}" if hint else ""))  # fmt: skip
    return path


def checks(text: str) -> tuple[str, ...]:
    """Names of checks, with commas."""
    from compat.checks import CHECKS

    return _listed(text, CHECKS.names, "check")


def check(text: str) -> str:
    """The name of one check."""
    names = checks(text)
    if len(names) != 1:
        raise ArgumentTypeError("one check is meant")
    return names[0]


def outcomes(text: str) -> tuple[str, ...]:
    """Outcomes that may be named, with commas."""
    return _listed(text, FAIL_ON, "outcome")


def gates(text: str) -> tuple[str, ...]:
    """What of a diff may count, with commas."""
    from compat.compare.gate import GATES

    return _listed(text, tuple(GATES), "gate")


def part(text: str) -> tuple[int, int]:
    """`2/5`: the second of five parts."""
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise ArgumentTypeError(f"{text!r} is no part such as 1/3, 2/3 or 3/3")
    return int(first), int(second)


def effect(text: str) -> float:
    """A relative difference in percent: `5`, `2.5%`."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 < value < 100:
        raise ArgumentTypeError(f"{text!r} is not a percentage above 0 and below 100")
    return value / 100


def upgrade_kinds(text: str) -> tuple[str, ...]:
    """Kinds of findings that fail an upgrade, with commas."""
    from compat.upgrade.result import FAIL_ON as KINDS

    return _listed(text, KINDS, "kind of finding")


def across(text: str) -> str:
    """The name of a finding of `compat upgrade`."""
    from compat.axes import nearest
    from compat.upgrade.across import known, names

    if not known(text):
        hint = nearest(text, names())
        raise ArgumentTypeError(f"unknown finding {text!r}" + (f"; nearest: {hint!r}" if hint else ""))
    return text


def _listed(text: str, known: tuple[str, ...], kind: str) -> tuple[str, ...]:
    from compat.axes import nearest

    names = tuple(t.strip() for t in text.split(",") if t.strip())
    for name in names:
        if name not in known:
            hint = nearest(name, known)
            raise ArgumentTypeError(f"unknown {kind} {name!r}" + (f"; nearest: {hint!r}" if hint else ""))
    return names


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def percent(text: str) -> float:
    """Between 0 and 100."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise ArgumentTypeError(f"{text!r} is not a percentage between 0 and 100")
    return value


def seconds(text: str) -> float:
    """Above 0 and finite."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def size(text: str) -> int:
    """Bytes: `8G`, `500M`, `1000`."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    number, unit = (text[:-1], units[text[-1].upper()]) if text and text[-1].upper() in units else (text, 1)
    try:
        value = int(float(number) * unit)
    except (ValueError, OverflowError):
        value = 0
    if value < 1:
        raise ArgumentTypeError(f"{text!r} is not a size such as 8G or 500M")
    return value


def grid(text: str) -> tuple[Item, ...]:
    """Points like `4x2048@0.3`, with commas."""
    from compat.speed.settings import read_item

    return _each(text, read_item, "point like 4x2048@0.3")


def batches(text: str) -> tuple[int, ...]:
    """Numbers of rows, with commas."""
    from compat.speed.settings import read_count

    return _each(text, read_count, "number of rows")


def padding(text: str) -> tuple[float, ...]:
    """Shares of pads, with commas."""
    from compat.speed.settings import read_share

    return _each(text, read_share, "padding share")


def baseline(text: str) -> str:
    """`eager`, an attention backend, or a cell's id with `*`."""
    from compat.speed.settings import SettingError, read_baseline

    try:
        return read_baseline("--baseline", text)
    except SettingError as error:
        raise _nearest(error) from error


def stack(text: str) -> str:
    """The name of a stack, or a stack file."""
    from compat import stacks

    named = str(Path(text).expanduser().absolute()) if text.endswith(".toml") else text
    try:
        stacks.find(named)
    except stacks.StackFileError as error:
        raise ArgumentTypeError(str(error)) from error
    return named


def environment(text: str) -> str:
    """A stack, or another environment's Python: a name without a slash is a stack's unless such a program is here."""
    if text.endswith(".toml") or not ("/" in text or Path(text).exists()):
        return stack(text)
    return str(interpreter(text))


def interpreter(text: str) -> Path:
    """Another environment's Python."""
    path = Path(text).expanduser()
    if path.is_dir():
        inside = next((p for p in (path / "bin" / "python", path / "python") if p.exists()), None)
        hint = f"; nearest: {str(inside)!r}" if inside else ""
        raise ArgumentTypeError(f"{text!r} is a folder, not a Python interpreter{hint}")
    if not os.access(path, os.X_OK):
        raise ArgumentTypeError(f"{text!r} is no program that can be started")
    return path.absolute()


def _each(text: str, read: Callable[[str, str], T], what: str) -> tuple[T, ...]:
    from compat.speed.settings import SettingError

    parts = [t for t in text.split(",") if t.strip()]
    if not parts:
        raise ArgumentTypeError(f"{text!r} holds no {what}")
    try:
        return tuple(dict.fromkeys(read("", part.strip()) for part in parts))
    except SettingError as error:
        raise _nearest(error) from error


def _nearest(error: Exception) -> ArgumentTypeError:
    problem, hint = getattr(error, "problem", str(error)), getattr(error, "hint", "")
    return ArgumentTypeError(problem + (f"; nearest: {hint!r}" if hint else ""))
