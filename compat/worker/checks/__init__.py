"""The checks: one file each, one `run(group, attention)` each, returning a `Report` of facts and measurements.

None decides an outcome. To add a check: a file here, a row in CHECKS, its rules in compat/criteria and its entry
in compat/checks.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compat.worker.checks import (
    agreement,
    cache,
    determinism,
    dispatch,
    distillation,
    generation,
    gradient,
    load,
    memory,
    mode,
    padding,
    paged,
    positions,
    quality,
    speed,
    work,
)
from compat.worker.group import Group
from compat.worker.report import Report

CHECKS: dict[str, Callable[[Group, dict[str, Any]], Report]] = {
    "load": load.run,
    "mode": mode.run,
    "agreement": agreement.run,
    "padding": padding.run,
    "cache": cache.run,
    "generation": generation.run,
    "paged": paged.run,
    "positions": positions.run,
    "distillation": distillation.run,
    "quality": quality.run,
    "gradient": gradient.run,
    "determinism": determinism.run,
    "dispatch": dispatch.run,
    "work": work.run,
    "speed": speed.run,
    "memory": memory.run,
}
