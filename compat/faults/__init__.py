"""Injectable faults: historical bugs of the stack, one function each, and benign changes that no check may mind.

The parent reads the catalogue (names, origins, cells) and imports no torch; a worker applies one fault at a time to the
libraries that it has imported, and takes it back afterwards. `compat selftest` asks which checks see each.

To add a fault: a function in the file of its class, decorated with `@fault(...)`; see `Fault` for what it must say.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from compat.faults.patches import Patches

CLASSES = (
    "masks",
    "windows",
    "scores",
    "heads",
    "kernels",
    "positions",
    "caches",
    "precision",
    "loading",
    "dispatch",
    "quantization",
    "pipelines",
    "generation",
    "gradients",
    "determinism",
    "work",
    "modes",
    "experts",
    "settings",
    "rows",
    "searches",
    "benign",
)
"""A module of this package each."""


@dataclass(frozen=True)
class Fault:
    """One bug that can be put into the stack, or (without `seen_by`) one change that is none."""

    name: str
    title: str
    """What a user would notice or not, in one line."""
    origin: str
    """Where it was seen: `owner/repository#number`, or `class: ...` for a mechanism without one case."""
    mechanism: str
    """What the wrong code does."""
    apply: Callable[[Patches], None]
    """Puts it in. Runs in a worker; calls `patches.reached()` wherever the fault really changes something."""
    seen_by: tuple[str, ...] = ()
    """Checks of which at least one must turn from pass to fail or degraded in a cell that the fault touches."""
    cells: tuple[str, ...] = ()
    """Ids of cells that it touches and that the self-test runs."""
    spared: tuple[str, ...] = ()
    """Ids of cells that it does not touch: no outcome in them may change."""
    device: str = ""
    """`cpu` or `cuda` where it exists on that device only."""
    group: str = ""
    """The class: the module that it stands in."""

    @property
    def benign(self) -> bool:
        """Whether no check may mind it."""
        return not self.seen_by


_FOUND: dict[str, Fault] = {}


def fault(
    name: str,
    *,
    title: str,
    origin: str,
    mechanism: str,
    cells: tuple[str, ...],
    seen_by: tuple[str, ...] = (),
    spared: tuple[str, ...] = (),
    device: str = "",
) -> Callable[[Callable[[Patches], None]], Callable[[Patches], None]]:
    """Register the decorated function as a fault. Raises ValueError for a name that is taken."""

    def register(apply: Callable[[Patches], None]) -> Callable[[Patches], None]:
        if name in _FOUND:
            raise ValueError(f"two faults are named {name!r}")
        group = apply.__module__.rsplit(".", 1)[-1]
        _FOUND[name] = Fault(
            name, title, origin, mechanism, apply, tuple(seen_by), tuple(cells), tuple(spared), device, group
        )
        return apply

    return register


@cache
def catalogue() -> dict[str, Fault]:
    """Name -> fault, in the order of CLASSES. Imports no torch."""
    for name in CLASSES:
        importlib.import_module(f"compat.faults.{name}")
    order = {name: i for i, name in enumerate(CLASSES)}
    return dict(sorted(_FOUND.items(), key=lambda item: order[item[1].group]))
