"""What a run says of where and when it was made: environment, stack, time; and where checkpoints are kept.

In: what a worker said of its packages and this machine. Out: records.
"""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from compat import device, stacks
from compat.records import Environment, Gpu, StackIdentity


def describe(described: dict[str, Any]) -> Environment:
    """The environment record from what a worker said; `fingerprint` covers all but what may change between runs."""
    gpus = tuple(Gpu(**g) for g in described.pop("gpus", []))
    described = {k: v for k, v in described.items() if k != "torch_sees_cuda"}
    environment = Environment(**described, gpus=gpus, driver=device.driver_version(), volatile=device.volatile())
    stable = msgspec.structs.replace(environment, env_vars={}, volatile={})
    digest = hashlib.sha256(msgspec.json.encode(stable, order="deterministic")).hexdigest()[:16]
    return msgspec.structs.replace(environment, fingerprint=digest)


def stack_identity(environment: Environment, name: str = stacks.CURRENT) -> StackIdentity:
    """The packages under test as one hash, and the name of their stack."""
    text = msgspec.json.encode(environment.packages, order="deterministic")
    return StackIdentity(name=name, sha256=hashlib.sha256(text).hexdigest())


def default_cache() -> Path:
    """Where checkpoints that compat makes are kept: $COMPAT_CACHE, or the user's cache folder."""
    if named := os.environ.get("COMPAT_CACHE"):
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_cache_dir("compat")) / "checkpoints"


def now() -> str:
    """The time, ISO 8601 in UTC."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
