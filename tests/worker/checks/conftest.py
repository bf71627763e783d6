"""What the tests of every check share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from compat.faults.patches import Patches


@pytest.fixture
def patches() -> Iterator[Patches]:
    """Replaces parts of the libraries for one test."""
    patches = Patches()
    yield patches
    patches.undo()
