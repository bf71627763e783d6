"""mode: did what was to be done with the model take effect, and what does it change?

What is asked depends on the mode (compat.worker.modes): of a compiled model its graphs, breaks and recompilations; of
an exported one its programs; of one that lies elsewhere the distance from the model on one device; of an adapter its
effect, its training step, merging, saving and loading; of pruned weights which are zero, and which kernels run.
"""

from __future__ import annotations

from typing import Any

from compat.worker import modes
from compat.worker.group import Group
from compat.worker.report import Report


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    report = Report(seed=group.spec.seed)
    report.facts["does"] = group.mode.does
    modes.measure(group, attention, report)
    return report
