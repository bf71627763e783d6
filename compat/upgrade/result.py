"""What an upgrade found, as frozen structs, and its JSON form (`compat-upgrade/1`).

In: nothing but values. Out: what compat/upgrade/conduct.py fills in and compat/render/upgrade.py shows. `before` is
the stack that is left, `after` the one that is gone to.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from compat.records import FileIdentity, Measurement, Record, StackIdentity, encode_record
from compat.store import read_record, write_whole

SCHEMA = "compat-upgrade/1"
FILE = "upgrade.json"
PAGE = "upgrade.md"


class Kind(enum.StrEnum):
    """What a finding means for the upgrade. The first four can fail it."""

    REGRESSED = "regressed"
    """Worse by a measure that has a direction."""
    CHANGED = "changed"
    """An unchanged call behaves otherwise, and neither side is known to be the wrong one."""
    COVERAGE = "coverage"
    """Worked or could be judged before, and is refused or cannot be judged now."""
    SLOWER = "slower"
    FIXED = "fixed"
    FASTER = "faster"
    GAINED = "gained"
    """Refused before, works now."""
    NOTED = "noted"
    """Other, without counting: another cause of a failure that both have."""


FAIL_ON = (Kind.REGRESSED.value, Kind.CHANGED.value, Kind.COVERAGE.value, Kind.SLOWER.value)
"""What `--fail-on` of an upgrade may name."""

DEFAULT_FAIL_ON = (Kind.REGRESSED.value, Kind.CHANGED.value, Kind.COVERAGE.value)


class Finding(Record, frozen=True, omit_defaults=True):
    """One thing that is not as it was, in one cell."""

    kind: Kind
    name: str
    """What `--across NAME` of `compat bisect` takes; `check:NAME` for a check of the runs themselves."""
    cell: str
    words: str
    """What was looked at."""
    before: str = ""
    after: str = ""
    value: float | None = None
    """How far they are apart, in `unit`; beyond `bound`."""
    unit: str = ""
    bound: float | None = None
    source: str = ""
    because: str = ""
    """Name of the finding of the same cell that this one follows from."""
    detail: str = ""


class Compared(Record, frozen=True, omit_defaults=True):
    """One cell, asked of both stacks."""

    cell: str
    axes: dict[str, str]
    status: str
    """`compared`, `not_comparable` (one or both could not be asked; `reason`) or `error` (the harness's fault)."""
    reason: str = ""
    measurements: tuple[Measurement, ...] = ()
    findings: tuple[Finding, ...] = ()
    facts: dict[str, Any] = {}
    """What both sides answered: `before`, `after` (parts by name), `figures`."""
    seconds: float = 0.0


class Timed(Record, frozen=True, omit_defaults=True):
    """One cell timed in turns by a worker of each stack."""

    cell: str
    attempts: tuple[tuple[Measurement, ...], ...] = ()
    """Speedups of `after` over `before`, of each pair of fresh processes."""
    findings: tuple[Finding, ...] = ()
    not_stated: str = ""
    """Why nothing is said of it."""


class Side(Record, frozen=True):
    """One of the two stacks."""

    stack: StackIdentity
    packages: dict[str, str]
    fingerprint: str
    run: str = ""
    """The folder of its own run, beside this file."""
    cells: int = 0
    complete: bool = False


class Upgrade(Record, frozen=True):
    """The content of upgrade.json."""

    id: str
    started: str
    ended: str
    argv: tuple[str, ...]
    matrix: FileIdentity
    device: str
    before: Side
    after: Side
    checks: tuple[Finding, ...]
    """What the two runs' own checks say (compat/compare/diff.py)."""
    across: tuple[Compared, ...]
    timed: tuple[Timed, ...]
    seconds: dict[str, float]
    """Stage -> wall seconds."""
    settings: dict[str, Any] = {}
    interrupted: bool = False
    schema: str = SCHEMA

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Everything found: across, by the runs' own checks, in time."""
        across = (f for c in self.across for f in c.findings)
        return (*across, *self.checks, *(f for t in self.timed for f in t.findings))

    @property
    def compared(self) -> int:
        """Cells of which anything could be compared."""
        return sum(c.status == "compared" for c in self.across)

    @property
    def errors(self) -> tuple[Compared, ...]:
        """Cells in which the harness failed: they say nothing of the upgrade."""
        return tuple(c for c in self.across if c.status == "error")


class Group(Record, frozen=True):
    """Findings that say the same of several cells."""

    kind: Kind
    name: str
    words: str
    cells: tuple[str, ...]
    examples: tuple[Finding, ...]
    """One of each pair of values, most frequent first."""
    follow: tuple[str, ...]
    """Names of findings that follow from it in these cells."""


def grouped(findings: Sequence[Finding]) -> tuple[Group, ...]:
    """Findings by kind, name and cause, in the order of kinds; those of most cells first."""
    found: dict[tuple[Kind, str, str], list[Finding]] = {}
    for finding in findings:
        if not finding.because:
            cause = finding.detail if finding.name.startswith("check:") else ""
            found.setdefault((finding.kind, finding.name, cause), []).append(finding)
    order, made = list(Kind), []
    for (kind, name, _), members in found.items():
        cells = tuple(dict.fromkeys(f.cell for f in members))
        own = set(cells)
        follow = dict.fromkeys(f.name for f in findings if f.because == name and f.cell in own)
        values = {(f.before, f.after): f for f in reversed(members)}
        made.append(
            Group(
                kind=kind, name=name, words=members[0].words, cells=cells, follow=tuple(follow),
                examples=tuple(sorted(values.values(), key=lambda f: (-_size(f), f.cell)))
            )
        )  # fmt: skip
    return tuple(sorted(made, key=lambda g: (order.index(g.kind), -len(g.cells), g.name)))


def _size(finding: Finding) -> float:
    return finding.value if finding.value is not None else 0.0


def failing(upgrade: Upgrade, fail_on: Iterable[str]) -> tuple[Finding, ...]:
    """The findings that `fail_on` names."""
    named = frozenset(fail_on)
    return tuple(f for f in upgrade.findings if f.kind.value in named)


def encode(upgrade: Upgrade) -> bytes:
    """`upgrade` as the bytes of upgrade.json: UTF-8, one cell a line."""
    return encode_record(upgrade, "across")


def read(where: Path) -> Upgrade:
    """The upgrade stored in a folder (as upgrade.json, or upgrade.json.xz) or file. Raises StoreError naming it."""
    path = where
    if where.is_dir():
        path = next((p for name in (FILE, f"{FILE}.xz") if (p := where / name).exists()), where / FILE)
    return read_record(path, Upgrade, SCHEMA, "upgrade")


def write(upgrade: Upgrade, folder: Path, page: str) -> list[str]:
    """Write upgrade.json and upgrade.md (`page`) into `folder`; their names. Raises OSError."""
    write_whole(folder / FILE, encode(upgrade))
    write_whole(folder / PAGE, page.encode("utf-8"))
    return [FILE, PAGE]
