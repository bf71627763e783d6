"""What stands between a scheme and its library."""

from __future__ import annotations

import os
import time
from pathlib import Path

from compat.worker.quantizers import BUILD_SECONDS, free_dead_builds


def _build(folder: Path, age: float) -> Path:
    build = folder / "library" / "cpp" / "build"
    build.mkdir(parents=True)
    for name in ("build.ninja", "lock"):
        (build / name).touch()
        os.utime(build / name, (time.time() - age,) * 2)
    os.utime(build, (time.time() - age,) * 2)
    return build / "lock"


def test_the_lock_of_a_build_that_was_killed_is_removed_and_that_of_one_at_work_is_not(tmp_path: Path) -> None:
    dead = _build(tmp_path / "dead", BUILD_SECONDS + 60)
    alive = _build(tmp_path / "alive", BUILD_SECONDS + 60)
    (alive.parent / "unpack.o").touch()
    assert free_dead_builds(tmp_path) == [dead]
    assert not dead.exists()
    assert alive.exists(), "an object file was written just now"
    assert free_dead_builds(tmp_path, time.time() + 2 * BUILD_SECONDS) == [alive]
