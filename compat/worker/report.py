"""What a check sends home: measurements, facts and kernels, as plain JSON values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

_METHODS: dict[str, Callable[[list[float]], float]] = {
    "max": max,
    "min": min,
    "median": statistics.median,
    "mean": statistics.fmean,
    "sum": sum,
}


@dataclass
class Report:
    """Collects what one check saw."""

    seed: int | None = None
    measurements: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    kernels: dict[str, int] = field(default_factory=dict)

    def measure(
        self,
        name: str,
        values: float | Sequence[float | None] | None,
        unit: str = "ratio",
        better: str = "lower",
        method: str = "max",
    ) -> None:
        """Record a measurement: raw `values` and the one that `method` derives. Values that are not finite become None,
        and then no value is derived: what was not measured is not reported."""
        raw = [values] if values is None or isinstance(values, (int, float)) else list(values)
        clean = [float(v) if v is not None and math.isfinite(v) else None for v in raw]
        numbers = [v for v in clean if v is not None]
        complete = bool(numbers) and len(numbers) == len(clean)
        value = float(_METHODS[method](numbers)) if complete else None
        self.measurements.append(
            {
                "name": name,
                "unit": unit,
                "better": better,
                "values": [_short(v) for v in clean],
                "value": _short(value),
                "method": method if len(clean) > 1 else "single",
            }
        )


def _short(value: float | None) -> float | None:
    """Six significant digits: more than any of these figures has, in half the bytes."""
    return None if value is None else float(f"{value:.6g}")
