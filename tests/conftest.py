"""Settings shared by all tests: hypothesis without time limits, libraries without the network, one thread."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("compat", deadline=None, max_examples=60, derandomize=True, database=None)
settings.load_profile("compat")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def probe_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that compat makes, built once a session."""
    return tmp_path_factory.mktemp("probes")
