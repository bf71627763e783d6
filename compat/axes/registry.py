"""A registry of named values: duplicates raise, unknown names fail with the nearest suggestion."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str:
        """Unique within its registry."""
        ...


T = TypeVar("T", bound=Named)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name closest to `name`, or "" when none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return matches[0] if matches else ""


class Registry(Generic[T]):
    """Values by name, in the order of registration."""

    def __init__(self, axis: str, values: Iterable[T]) -> None:
        self.axis = axis
        self._values: dict[str, T] = {}
        for value in values:
            if value.name in self._values:
                raise ValueError(f"{axis} {value.name!r} is registered twice")
            self._values[value.name] = value

    def __getitem__(self, name: str) -> T:
        """The value called `name`. Raises KeyError with the nearest known name."""
        try:
            return self._values[name]
        except KeyError:
            hint = nearest(name, self._values)
            raise KeyError(f"unknown {self.axis} {name!r}" + (f"; nearest: {hint!r}" if hint else "")) from None

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[T]:
        return iter(self._values.values())

    def __len__(self) -> int:
        return len(self._values)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in order."""
        return tuple(self._values)
