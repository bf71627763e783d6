"""The heart of a script, before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Name = tuple[str, str]
"""A module under compat/worker, and a name that it defines."""


@dataclass(frozen=True)
class Body:
    """`main` is the source of main() -> bool and of what only it uses; `needs` is carved out of our files."""

    main: str
    constants: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[Name, ...] = ()
