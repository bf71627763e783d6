"""Stacks as data: read and check the files of matrices/stacks. Pure but for reading the files named.

In: a stack's name, or a file of that form (format: docs/stacks.md). Out: a `Stack`: which versions of which
distributions make it, and whether it shares the rest with the environment that compat runs in. compat/environments.py
makes environments of them.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from compat.axes import nearest
from compat.builtin import matrices_folder, stack_names
from compat.matrix import MatrixError

CURRENT = "current"
"""The stack that compat itself runs in: whatever is installed there."""

BASES = (CURRENT, "none")
"""What a stack may share the rest with."""

NAME = re.compile(r"[a-z0-9]+([.-][a-z0-9]+)*")
"""A stack's name: part of folder names and of command lines."""

_KEYS: dict[str, type] = {
    "name": str, "title": str, "python": str, "base": str, "imports": list, "pins": dict, "notes": list,
}  # fmt: skip
_NOTE_KEYS = ("text", "source")
_DISTRIBUTION = re.compile(r"[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9]")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class StackFileError(MatrixError):
    """A stack that does not exist, or whose file cannot be used: file, key, problem, nearest valid value."""


@dataclass(frozen=True)
class Note:
    """Something to know of a stack, and who says so."""

    text: str
    source: str


@dataclass(frozen=True)
class Stack:
    """A set of package versions."""

    name: str
    title: str
    path: Path
    python: str = ""
    """A version specifier that the interpreter has to fit, e.g. `>=3.11,<3.13`; "" for any."""
    base: str = CURRENT
    """`current`: what is not pinned is shared with compat's own environment. `none`: nothing is shared."""
    pins: Mapping[str, str] = field(default_factory=dict)
    """Distribution -> exact version."""
    imports: tuple[str, ...] = ()
    """Modules that `check` imports beside the pinned packages."""
    notes: tuple[Note, ...] = ()

    @property
    def current(self) -> bool:
        """Whether it is the environment that compat runs in."""
        return not self.pins


@dataclass(frozen=True)
class Base:
    """The environment that a stack may share: its interpreter's version, and distribution -> version."""

    python: str
    prefix: str
    versions: Mapping[str, str]

    def version(self, distribution: str) -> str:
        """The installed version, or ""."""
        return self.versions.get(canonicalize_name(distribution), "")


def folder() -> Path:
    """Where compat's own stacks are."""
    return matrices_folder() / "stacks"


def names() -> tuple[str, ...]:
    """The names of compat's own stacks, `current` first."""
    return tuple(sorted(stack_names(), key=lambda name: name != CURRENT))


def find(named: str) -> Stack:
    """The stack called `named`, or that of the file `named` when it ends in .toml. Raises StackFileError."""
    if named.endswith(".toml"):
        return read_stack(Path(named))
    if named not in names():
        problem = f"unknown stack {named!r}; known: {', '.join(names())}, or a file that ends in .toml"
        raise StackFileError(folder(), "stack", problem, nearest(named, names()))
    return read_stack(folder() / f"{named}.toml")


def read_stack(path: Path) -> Stack:
    """The stack in the file at `path`. Raises StackFileError for anything that cannot be used."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        beside = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        raise StackFileError(path, "(file)", error.strerror or str(error), nearest(path.name, beside)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StackFileError(path, "(file)", f"not valid TOML: {error}") from error
    _known(path, "", data, _KEYS)
    for key, value in data.items():
        _typed(path, key, value, _KEYS[key])
    for key in ("name", "title"):
        if not data.get(key, "").strip():
            raise StackFileError(path, key, "is missing" if key not in data else "is empty")
    name, base = data["name"], data.get("base", CURRENT)
    if not NAME.fullmatch(name):
        raise StackFileError(path, "name", f"{name!r}: small letters, digits, dots and dashes only", _plain(name))
    if name != path.stem:
        raise StackFileError(path, "name", f"{name!r} is not the name of the file", path.stem)
    if base not in BASES:
        raise StackFileError(path, "base", f"{base!r} is no base; known: {', '.join(BASES)}", nearest(base, BASES))
    pins = _pins(path, data.get("pins", {}))
    if not pins and name != CURRENT:
        raise StackFileError(path, "pins", f"is empty; only {CURRENT!r} is what is installed")
    if pins and name == CURRENT:
        raise StackFileError(path, "pins", f"{CURRENT!r} is what is installed, and pins nothing")
    if base == "none" and not {"torch", "transformers"} <= pins.keys():
        raise StackFileError(path, "pins", "a stack without a base pins torch and transformers at least")
    return Stack(
        name=name,
        title=data["title"],
        path=path,
        python=_python(path, data.get("python", "")),
        base=base,
        pins=pins,
        imports=tuple(_module(path, f"imports[{i}]", m) for i, m in enumerate(data.get("imports", []))),
        notes=tuple(_note(path, f"notes[{i}]", n) for i, n in enumerate(data.get("notes", []))),
    )


def fits_python(stack: Stack, version: str) -> bool:
    """Whether an interpreter of `version` may run `stack`."""
    return SpecifierSet(stack.python).contains(version, prereleases=True)


def same_version(pinned: str, found: str) -> bool:
    """Whether `found` is the version `pinned`: a local part (`+cpu`) counts only where the pin names one."""
    try:
        return SpecifierSet(f"=={pinned}").contains(found, prereleases=True)
    except InvalidSpecifier:
        return pinned == found


def overlays(stack: Stack, base: Base) -> bool:
    """Whether `stack` can share what `base` holds: it says so, and has the same torch."""
    torch = stack.pins.get("torch", "")
    return stack.base == CURRENT and (not torch or same_version(torch, base.version("torch")))


def to_install(stack: Stack, base: Base) -> dict[str, str]:
    """The pins that an environment of `stack` holds itself: in an overlay, those that `base` has at another version."""
    if not overlays(stack, base):
        return dict(stack.pins)
    return {name: v for name, v in stack.pins.items() if not same_version(v, base.version(name))}


def digest(stack: Stack, base: Base) -> str:
    """Equal for environments that hold the same: the pins, and what they lie over."""
    content: dict[str, Any] = {"pins": dict(sorted(stack.pins.items())), "python": base.python, "overlay": False}
    if overlays(stack, base):
        shared = {name: base.version(name) for name in sorted({"torch", *stack.pins} - to_install(stack, base).keys())}
        content |= {"overlay": True, "prefix": base.prefix, "shared": shared}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


# -- reading -----------------------------------------------------------------------------------------------------


def _pins(path: Path, table: Mapping[str, Any]) -> dict[str, str]:
    pins: dict[str, str] = {}
    for name, version in table.items():
        key = f"pins.{name}"
        if not _DISTRIBUTION.fullmatch(name):
            raise StackFileError(path, key, "is no name of a distribution", _plain(name))
        known = canonicalize_name(name)
        if known in pins:
            raise StackFileError(path, key, f"{known!r} is pinned twice")
        _typed(path, key, version, str)
        try:
            Version(version)
        except InvalidVersion:
            problem = f"{version!r} is no exact version"
            raise StackFileError(path, key, problem, _version_in(version)) from None
        pins[known] = version
    return pins


def _version_in(text: str) -> str:
    """The version that `text` may have meant (`==4.45.2`, `4.45.*`), or ""."""
    found = re.search(r"\d+(\.\d+)*", text)
    return found.group() if found else ""


def _python(path: Path, text: str) -> str:
    try:
        SpecifierSet(text)
    except InvalidSpecifier:
        version = _version_in(text)
        problem = f"{text!r} is no version specifier"
        raise StackFileError(path, "python", problem, f"=={version}.*" if version else ">=3.11") from None
    return text


def _module(path: Path, key: str, value: Any) -> str:
    text: str = _typed(path, key, value, str)
    if not _MODULE.fullmatch(text):
        raise StackFileError(path, key, f"{text!r} is no name of a module", text.replace("-", "_").strip("."))
    return text


def _note(path: Path, key: str, value: Any) -> Note:
    _typed(path, key, value, dict)
    _known(path, key, value, _NOTE_KEYS)
    for part in _NOTE_KEYS:
        if not _typed(path, f"{key}.{part}", value.get(part), str).strip():
            raise StackFileError(path, f"{key}.{part}", "is empty")
    return Note(value["text"], value["source"])


def _known(path: Path, key: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    for name in table:
        if name not in known:
            full = f"{key}.{name}" if key else name
            raise StackFileError(path, full, "unknown key", nearest(name, known))


def _typed(path: Path, key: str, value: Any, kind: type) -> Any:
    if value is None:
        raise StackFileError(path, key, "is missing")
    if not isinstance(value, kind):
        raise StackFileError(path, key, f"{value!r} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def _plain(name: str) -> str:
    """`name` as a name may be written, or ""."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
