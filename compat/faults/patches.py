"""Replacing parts of loaded libraries, and putting every one back.

Functions are imported by name all over transformers (`from X import f`), and kept in registries: a replacement must
reach every one of these places, and so must its undoing.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

LIBRARIES = ("torch", "transformers", "bitsandbytes", "accelerate", "peft", "flash_attn")
"""Packages in whose modules names are replaced."""

REGISTRIES = (dict, OrderedDict)
"""Types of registries in modules. A subclass may be lazy, and load every model when looked through."""

Place = tuple[int, Any]
"""Where something was replaced: the id of the module, class, object or mapping that holds it, and its name or key."""

Make = Callable[[Any], Any]
"""From the original to its replacement."""


class Patches:
    """What one fault has replaced. `undo` puts all of it back, last first."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._functions: list[tuple[Any, Any]] = []
        """(replacement, original) of functions that were replaced everywhere."""
        self.places: set[Place] = set()
        """All that was replaced."""
        self.times_reached = 0
        """How often the fault really changed something."""

    def reached(self) -> None:
        """To be called by a fault wherever it really changes something: a fault that was never reached proves
        nothing."""
        self.times_reached += 1

    def attribute(self, owner: Any, name: str, value: Any) -> None:
        """Set `owner.name` (a module, class or object)."""
        missing = object()
        own = vars(owner).get(name, missing)
        self.places.add((id(owner), name))
        setattr(owner, name, value)

        def restore() -> None:
            if own is missing:
                delattr(owner, name)
            else:
                setattr(owner, name, own)

        self._undo.append(restore)

    def item(self, mapping: Any, key: Any, value: Any) -> None:
        """Set `mapping[key]`, which exists."""
        own = mapping[key]
        self.places.add((id(mapping), key))
        mapping[key] = value
        self._undo.append(lambda: mapping.__setitem__(key, own))

    def method(self, path: str, make: Make) -> None:
        """Replace a method: `path` is `package.module:Class.method` (class and static methods stay what they are)."""
        module, _, inside = path.partition(":")
        class_name, _, name = inside.rpartition(".")
        owner: Any = importlib.import_module(module)
        for part in class_name.split("."):
            owner = getattr(owner, part)
        raw = next(vars(base)[name] for base in owner.__mro__ if name in vars(base))
        if isinstance(raw, (staticmethod, classmethod)):
            new: Any = type(raw)(_named(make(raw.__func__), raw.__func__))
        else:
            new = _named(make(raw), raw)
        self.attribute(owner, name, new)

    def function(self, path: str, make: Make) -> None:
        """Replace the function at `package.module:name` there, in every loaded module of LIBRARIES that imported it by
        name, and in every registry (a dict at module level, or behind an `AttentionInterface`) that holds it."""
        module_name, _, name = path.partition(":")
        own = getattr(importlib.import_module(module_name), name)
        new = _named(make(own), own)
        self.places |= _replace_everywhere({id(own): new})
        self._functions.append((new, own))

    def classes(self, suffix: str, name: str, make: Callable[[type, Any], Any]) -> None:
        """Replace the method `name` of every loaded class of transformers' models whose own name ends in `suffix`.

        `make(class, original)`; classes that only inherit the method are reached through their base.
        """
        for module in _modules(("transformers.models",)):
            for value in list(vars(module).values()):
                if isinstance(value, type) and value.__module__ == module.__name__ and value.__name__.endswith(suffix):
                    own = vars(value).get(name)
                    if callable(own):
                        self.attribute(value, name, _named(make(value, own), own))

    def undo(self) -> None:
        """Put back everything, last first."""
        _undo_all((self,))


def _undo_all(patches: Sequence[Patches]) -> None:
    """Put back what each has replaced, and look once for the functions of all."""
    back: dict[int, Any] = {}
    for one in reversed(patches):
        while one._undo:
            one._undo.pop()()
    for one in patches:
        for new, own in one._functions:
            back[id(new)] = back.get(id(own), own)  # what was replaced twice was a replacement itself
    if back:  # modules loaded meanwhile have imported replacements: look everywhere again
        _replace_everywhere(back)
    for one in patches:
        one._functions.clear()


def _named(new: Any, own: Any) -> Any:
    """`new` with the name, signature and documentation of `own`: libraries inspect signatures."""
    try:
        return functools.update_wrapper(new, own)
    except (AttributeError, TypeError):
        return new


def _modules(packages: tuple[str, ...]) -> Iterator[Any]:
    inside = tuple(f"{package}." for package in packages)
    for name, module in list(sys.modules.items()):
        if module is not None and (name in packages or name.startswith(inside)):
            yield module


def _replace_everywhere(new: Mapping[int, Any]) -> set[Place]:
    """Put `new`, id of an object -> what takes its place, wherever such an object stands in a loaded module of
    LIBRARIES or a registry there; says where that was.

    All of it is looked through each time, some 2,000 modules and 100,000 values: a name can be bound at any time.
    """
    found: set[Place] = set()
    registries: dict[int, dict[Any, Any]] = {}
    kinds: set[type] = set()
    for module in _modules(LIBRARIES):
        space = getattr(module, "__dict__", None)
        if not isinstance(space, dict):
            continue
        for name, value in _replaced(space, new).items():
            setattr(module, name, value)
            found.add((id(module), name))
        registries |= {id(value): value for value in space.values() if type(value) in REGISTRIES}
        kinds.update(map(type, space.values()))
    registries.pop(id(vars(builtins)), None)  # which every module holds
    behind = (getattr(kind, "_global_mapping", None) for kind in kinds)  # of an `AttentionInterface`
    for mapping in (*registries.values(), *(m for m in behind if isinstance(m, dict))):
        values = _replaced(mapping, new)
        mapping.update(values)
        found |= {(id(mapping), key) for key in values}
    return found


def _replaced(mapping: Mapping[Any, Any], new: Mapping[int, Any]) -> dict[Any, Any]:
    """The keys of `mapping` whose value has an id of `new`, and what takes its place."""
    if new.keys().isdisjoint(map(id, mapping.values())):  # nearly always; without a loop in Python
        return {}
    return {key: new[id(value)] for key, value in mapping.items() if id(value) in new}


class Company:
    """The faults that are in the stack: one, or several that replace nothing in the same place."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        """As they were asked for."""
        self.inside: tuple[str, ...] = ()
        """Those of them that are in."""
        self.set_aside: tuple[str, ...] = ()
        """Those that would replace what another one has replaced."""
        self._patches: list[Patches] = []

    @property
    def reached(self) -> dict[str, int]:
        """How often each that is in really changed something."""
        return {name: p.times_reached for name, p in zip(self.inside, self._patches, strict=True)}

    def enter(self, faults: Mapping[str, Callable[[Patches], None]]) -> None:
        """Put in `faults`, name -> how. Raises what putting in a single one raises: this stack has no such place. Of
        several, one that cannot be put in stays out."""
        self.names = tuple(faults)
        for name, apply in faults.items():
            patches = Patches()
            try:
                apply(patches)
            except Exception:
                patches.undo()
                if len(faults) == 1:
                    raise
                continue
            if any(patches.places & other.places for other in self._patches):
                patches.undo()
                self.set_aside += (name,)
                continue
            self._patches.append(patches)
            self.inside += (name,)

    def leave(self) -> None:
        """Take all of them back, last first."""
        _undo_all(self._patches)
        self._patches = []
        self.names = self.inside = self.set_aside = ()
