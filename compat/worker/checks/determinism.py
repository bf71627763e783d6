"""determinism: being written."""

from __future__ import annotations

from typing import Any

from compat.worker.group import Group
from compat.worker.report import Report


def run(group: Group, attention: dict[str, Any]) -> Report:
    """See the module's docstring. Raises StackError, Unavailable, NoYardstick."""
    return Report(seed=group.spec.seed)
