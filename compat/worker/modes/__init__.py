"""What is done with a loaded model before it is used (compat.axes.mode): one module a family of modes.

In: a load group in a mode. Out: for another way to the same function, a `Loaded` of its own beside the plain one
(`way`); for another function, a changed model and what the reference has to know of it (`change`). `seen` says after a
forward whether the mode really held, which the `load` check reports; `measure` is the check `mode`.

A family's module has `way` or `change`, and `seen` and `measure`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.profiler import ProfilerActivity, profile

from compat.worker.dispatch import COMPILED_REGION, is_kernel, kernels_seen

if TYPE_CHECKING:
    from compat.worker.group import Group, Loaded
    from compat.worker.report import Report

MODULES = {
    "compile": "compiled",
    "export": "exported",
    "placement": "placed",
    "adapter": "adapted",
    "pruning": "pruned",
}
"""Family -> its module here."""


def _of(group: Group) -> Any:
    return importlib.import_module(f"{__name__}.{MODULES[group.mode.family]}")


def way(group: Group, attention: dict[str, Any]) -> Loaded:
    """The model with `attention`, loaded anew and called in another way; its `way` has `close()` and `missed`, how many
    calls did not go that way. Raises StackError, Unavailable."""
    loaded: Loaded = _of(group).way(group, attention)
    return loaded


def change(group: Group, model: Any, note: Callable[[Any], None]) -> dict[str, Any]:
    """Make another function of `model` in place, and remember in `group.changes` what the reference has to follow;
    facts. `note` looks at quantized weights: before or after, as the mode needs. Raises StackError, Unavailable."""
    facts: dict[str, Any] = _of(group).change(group, model, note)
    return facts


def seen(group: Group, loaded: Loaded) -> dict[str, Any]:
    """After a forward: `held` (`yes`, `no`, or `nothing to do` where the library left the model as it was), `words`,
    and what else is to be seen of the mode."""
    facts: dict[str, Any] = _of(group).seen(group, loaded)
    return facts


def measure(group: Group, attention: dict[str, Any], report: Report) -> None:
    """The check `mode`. Raises StackError, Unavailable, NoYardstick."""
    _of(group).measure(group, attention, report)


def profiled(group: Group) -> bool:
    """Whether `kernels_of` looks with the profiler, which would also see what compiling runs."""
    return group.mode.family == "compile"


@contextmanager
def kernels_of(loaded: Loaded) -> Iterator[dict[str, int]]:
    """Operator counts of what runs inside, complete at its end. A dispatch mode would stop a compiled graph, so there
    the profiler looks; the graphs themselves are counted by the mode."""
    if not profiled(loaded.group):
        with kernels_seen(loaded.attention["implementation"]) as counted:
            yield counted
        return
    found: dict[str, int] = {}
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        yield found
    flex = loaded.attention["implementation"] == "flex_attention"
    for event in profiler.events():
        name = event.name
        if (flex and name.startswith(COMPILED_REGION)) or (name.count("::") and is_kernel(name, 3)):
            found[name] = found.get(name, 0) + 1
