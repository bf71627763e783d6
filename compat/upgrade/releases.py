"""What the package index knows, asked through the pip that the user has configured: versions, and what one requires.

In: the name of a distribution. Out: versions, requirements. Raises ReleaseError with pip's last words; nothing is
installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from functools import cache

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from compat.environments import IN_OUR_WAY

INDEX_SECONDS = 300.0
"""Longest wait for one question to the index."""

SHOWN_LINES = 6


class ReleaseError(Exception):
    """The index did not answer; the message says what pip said last."""


@cache
def versions(package: str) -> tuple[Version, ...]:
    """Every released version that fits this Python, oldest first; no pre-releases. Raises ReleaseError."""
    said = _pip("index", "versions", package)
    listed = next((line for line in said.splitlines() if line.startswith("Available versions:")), "")
    found = []
    for text in listed.partition(":")[2].split(","):
        try:
            found.append(Version(text.strip()))
        except InvalidVersion:
            continue
    if not found:
        raise ReleaseError(f"pip names no released version of {package}")
    return tuple(sorted(v for v in found if not v.is_prerelease))


@cache
def requirements(package: str, version: str) -> tuple[Requirement, ...]:
    """What that release requires here, without extras. Raises ReleaseError."""
    said = _pip(
        "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-", f"{package}=={version}"
    )
    try:
        report = json.loads(said[said.index("{") :])
        listed: list[str] = report["install"][0]["metadata"].get("requires_dist", [])
    except (ValueError, KeyError, IndexError) as error:
        raise ReleaseError(f"pip's report of {package} {version} cannot be read: {error}") from error
    return tuple(here(listed))


def here(listed: Iterable[str]) -> Iterable[Requirement]:
    """Those of the Requires-Dist lines that hold in this Python without an extra. Pure."""
    environment = {**default_environment(), "extra": ""}
    for text in listed:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate(environment):  # type: ignore[arg-type]
            yield requirement


def conflicts(required: Iterable[Requirement], installed: dict[str, str]) -> dict[str, Requirement]:
    """Distribution -> the requirement that its version in `installed` (canonical names) does not meet, or that is not
    there at all. Pure."""
    found = {}
    for requirement in required:
        name = str(canonicalize_name(requirement.name))
        version = installed.get(name)
        if not version or not requirement.specifier.contains(version, prereleases=True):
            found[name] = requirement
    return found


def between(known: Iterable[Version], first: str, last: str) -> list[Version]:
    """Versions after `first` up to `last`, in that direction, `last` included. Pure."""
    start, end = Version(first), Version(last)
    if start < end:
        inside = sorted(v for v in known if start < v < end)
    else:
        inside = sorted((v for v in known if end < v < start), reverse=True)
    return [*inside, end]


def last_of_minors(found: list[Version]) -> list[Version]:
    """Of versions in one direction, the last of each minor series. Pure."""
    return [
        v
        for v, after in zip(found, [*found[1:], None], strict=True)
        if after is None or v.release[:2] != after.release[:2]
    ]


def _pip(*words: str) -> str:
    command = [sys.executable, "-m", "pip", words[0], "--disable-pip-version-check", "--no-input", *words[1:]]
    variables = {k: v for k, v in os.environ.items() if k not in IN_OUR_WAY}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, env=variables,
            timeout=INDEX_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ReleaseError(f"pip {' '.join(words)}: no answer within {INDEX_SECONDS:g} s") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()][-SHOWN_LINES:]
        raise ReleaseError(
            "\n".join([f"pip {' '.join(words)} ended with {done.returncode}", *(f"  {x}" for x in said)])
        )
    return done.stdout
