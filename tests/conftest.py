"""Settings shared by all tests: hypothesis without time limits, libraries without the network, one thread."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from compat.records import Run

from .execute.running import environment, run
from .matrix_files import TINY, write

settings.register_profile("compat", deadline=None, max_examples=60, derandomize=True, database=None)
settings.load_profile("compat")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def probe_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that compat makes, built once a session."""
    return tmp_path_factory.mktemp("probes")


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory, probe_cache: Path) -> Run:
    """The tiny matrix on a stack without faults, uninterrupted."""
    folder = tmp_path_factory.mktemp("clean")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        return run(write(folder, TINY), folder / "run", probe_cache)


@pytest.fixture(autouse=True)
def _no_step_of_github(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests in a step of GitHub Actions do not tell it of their own runs."""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
