"""Replacing parts of loaded libraries, and putting every one back.

Functions are imported by name all over transformers (`from X import f`), and kept in registries: a replacement must
reach every one of these places, and so must its undoing.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

LIBRARIES = ("torch", "transformers", "bitsandbytes", "accelerate", "peft", "flash_attn")
"""Packages in whose modules names are replaced."""

Make = Callable[[Any], Any]
"""From the original to its replacement."""


class Patches:
    """What one fault has replaced. `undo` puts all of it back, last first."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
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
        _replace_everywhere(own, new)
        # modules loaded meanwhile have imported the replacement: undoing looks everywhere again
        self._undo.append(lambda: _replace_everywhere(new, own))

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
        while self._undo:
            self._undo.pop()()


def _named(new: Any, own: Any) -> Any:
    """`new` with the name, signature and documentation of `own`: libraries inspect signatures."""
    try:
        return functools.update_wrapper(new, own)
    except (AttributeError, TypeError):
        return new


def _modules(packages: tuple[str, ...]) -> Iterator[Any]:
    for name, module in list(sys.modules.items()):
        if module is not None and any(name == p or name.startswith(f"{p}.") for p in packages):
            yield module


def _replace_everywhere(own: Any, new: Any) -> None:
    for module in _modules(LIBRARIES):
        space = getattr(module, "__dict__", None)
        if not isinstance(space, dict):
            continue
        for name, value in list(space.items()):
            if value is own:
                setattr(module, name, new)
            elif type(value) in (dict, OrderedDict):  # a subclass may be lazy, and load every model when looked through
                _replace_values(value, own, new)
            elif isinstance(getattr(type(value), "_global_mapping", None), dict):
                _replace_values(type(value)._global_mapping, own, new)


def _replace_values(mapping: dict[Any, Any], own: Any, new: Any) -> None:
    for key, value in list(mapping.items()):
        if value is own:
            mapping[key] = new
