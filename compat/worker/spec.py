"""What identifies a load group, and the settings that hold for all its checks: plain data, as the parent sends it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from compat.axes.mode import PLAIN

DEPTHS = ("quick", "standard", "deep")


@dataclass(frozen=True)
class GroupSpec:
    """What identifies a group, and the settings that hold for all its checks."""

    row: dict[str, Any]
    dtype: str
    quantization: dict[str, Any]
    device: str
    cache: str
    seed: int = 0
    depth: str = "standard"
    key: str = ""
    mode: str = PLAIN
    """What is done with a loaded model before it is used (compat.axes.mode)."""
    speed: dict[str, Any] = field(default_factory=dict)
    """What the speed check is asked beyond its own: `points` ([rows, tokens, padding share] each), `budget_seconds`,
    `baseline` (`group`, `attention`, `cell`; absent: eager), `extras`. The only part that may differ between requests
    for one group."""

    def at_least(self, depth: str) -> bool:
        """Whether the checks are to look as far as `depth` (quick, standard or deep)."""
        return DEPTHS.index(self.depth) >= DEPTHS.index(depth)
