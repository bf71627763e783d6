"""Where a behaviour changed, along a line of versions of which some cannot be tested. Pure but for the test given.

In: items in order, the last known to behave otherwise than what stands before the first, and a test. Out: the first
item that does, and which beside it were not told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Boundary(Generic[T]):
    """`first` behaves otherwise, `last` (None: what stands before the first item) does not; `untested` lie between."""

    first: T
    last: T | None
    untested: tuple[T, ...] = ()


def first_other(items: Sequence[T], is_other: Callable[[T], bool | None]) -> Boundary[T]:
    """Halve the line until the two sides stand together. `is_other` answers None for what cannot be tested: its nearest
    neighbours are tried then. Raises ValueError for no items."""
    if not items:
        raise ValueError("nothing to search")
    low, high = -1, len(items) - 1
    skipped: set[int] = set()
    while True:
        open_ = [i for i in range(low + 1, high) if i not in skipped]
        if not open_:
            break
        middle = (low + high) / 2
        at = min(open_, key=lambda i: (abs(i - middle), i))
        answer = is_other(items[at])
        if answer is None:
            skipped.add(at)
        elif answer:
            high = at
        else:
            low = at
    between = tuple(items[i] for i in range(low + 1, high))
    return Boundary(items[high], items[low] if low >= 0 else None, between)
