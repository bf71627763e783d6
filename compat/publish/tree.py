"""The folder of a site: written beside its place, moved there whole, never over anything that is not a site of ours.

In: names and bytes of files. Out: the folder, with `files.json` that lists every file and its SHA-256. Raises
PublishError for a place that is not ours to replace.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from . import SCHEMA, PublishError

MANIFEST = "files.json"
"""Every other file of a site with its SHA-256; by it a site is known as ours."""


class Tree:
    """Files of a site that is being written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, str] = {}

    def add(self, name: str, data: str | bytes) -> None:
        """Write one file. `name` has slashes; two files of one name are a mistake of ours."""
        if name in self.files or name == MANIFEST:
            raise PublishError(f"{name}: two parts of the site have this name")
        data = data.encode() if isinstance(data, str) else data
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.files[name] = hashlib.sha256(data).hexdigest()

    def manifest(self) -> bytes:
        """What MANIFEST holds."""
        return msgspec.json.format(
            msgspec.json.encode({"schema": SCHEMA, "files": dict(sorted(self.files.items()))}), indent=1
        )


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Tree]:
    """A tree that becomes `out` when the block ends, and vanishes when it raises.

    Raises PublishError when `out` is something else than a site of ours or an empty folder, OSError when it cannot be
    written.
    """
    target = out.resolve()
    _ours(out, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    beside.mkdir()
    try:
        tree = Tree(beside)
        yield tree
        (beside / MANIFEST).write_bytes(tree.manifest() + b"\n")
        _ours(out, target)
        _move(beside, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _ours(out: Path, target: Path) -> None:
    """Refuse a place that holds anything that this command did not write."""
    if not target.exists():
        return
    if not target.is_dir():
        raise PublishError(f"{out}: is a file; --out names the folder of the site")
    files = {p.relative_to(target).as_posix() for p in target.rglob("*") if not p.is_dir() or p.is_symlink()}
    if not files and not any(target.iterdir()):
        return
    known = _listed(target / MANIFEST)
    if known is None:
        raise PublishError(f"{out}: is not a site of compat publish (no {MANIFEST} of its own); nothing was changed")
    strange = sorted(files - known - {MANIFEST})
    if strange:
        more = f" and {len(strange) - 1:,} more" if len(strange) > 1 else ""
        raise PublishError(
            f"{out}: {strange[0]!r}{more} is no part of the site and would be lost; publish into a folder of its own"
        )


def _listed(path: Path) -> set[str] | None:
    try:
        content = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    if not isinstance(content, dict) or not str(content.get("schema")).startswith("compat-site/"):
        return None
    files = content.get("files")
    return set(files) if isinstance(files, dict) else None


def _move(beside: Path, target: Path) -> None:
    """Put the folder `beside` in the place of `target`; the old one comes back if that fails."""
    if not target.exists():
        beside.rename(target)
        return
    old = beside.with_name(f"{beside.name}.old")
    target.rename(old)
    try:
        beside.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)
