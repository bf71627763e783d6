"""What a self-test has found, as it is stored: one frozen struct with a schema, its JSON form, its figures.

In: trials. Out: selftest.json, and the figure that reports carry: the last complete self-test of a stack on a device at
a depth is kept under compat's cache folder, and found again by the environment's fingerprint and by a hash of the
sources that decide what is seen.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compat.records import Environment, Outcome, Record, StackIdentity, encode_record
from compat.store import StoreError, read_record, write_whole

SCHEMA = "compat-selftest/1"
FILE = "selftest.json"
PAGE = "selftest.md"

SOURCES = ("worker/**/*.py", "faults/*.py", "criteria/*.toml", "calibration/*", "checks.py", "judge.py", "selftest.py")
"""Files of the package, as patterns, of which a change makes an earlier self-test say nothing."""


class Status(enum.StrEnum):
    """What came of one trial."""

    KILLED = "killed"
    """A check that is to see the fault turned to fail or degraded, and no outcome changed in the cells it spares."""
    OTHER_CHECK = "other-check"
    """Seen, by checks that are not named to see it."""
    UNSEEN = "unseen"
    """It changed something, and no check turned."""
    DISTURBED = "disturbed"
    """An outcome changed in a cell that it does not touch."""
    NOT_REACHED = "not-reached"
    """The code that it changes never ran: it proves nothing."""
    NOT_APPLIED = "not-applied"
    """It could not be put in: this stack has no such place."""
    CRASHED = "crashed"
    """The worker died or hung under it, and nothing else saw it."""
    QUIET = "quiet"
    """A benign change that no check minded."""
    FLAGGED = "flagged"
    """A benign change that a check minded: a false alarm."""


class Change(Record, frozen=True):
    """A check of a cell that ended otherwise than without the fault."""

    cell: str
    check: str
    before: Outcome
    after: Outcome
    reason: str = ""


class Trial(Record, frozen=True):
    """What came of one fault, or of one benign change."""

    fault: str
    group: str
    """Its class; `benign` for every benign change, wherever it is written."""
    title: str
    origin: str
    status: Status
    expected: tuple[str, ...] = ()
    """Checks named to see it; none for a benign change."""
    cells: tuple[str, ...] = ()
    spared: tuple[str, ...] = ()
    asked: tuple[tuple[str, str], ...] = ()
    """(cell, check) pairs that were asked under it."""
    together: tuple[str, ...] = ()
    """Of the spared cells (of a benign change: of its cells) those that were asked with others in too, and in which
    nothing changed."""
    seen: tuple[Change, ...] = ()
    """Turned to fail or degraded where it touches."""
    disturbed: tuple[Change, ...] = ()
    """Changed where it does not."""
    other: tuple[Change, ...] = ()
    """Every other change where it touches: crashes, errors, answers that became inconclusive."""
    times_reached: int = 0
    seconds: float = 0.0
    note: str = ""

    @property
    def benign(self) -> bool:
        """Whether no check may mind it."""
        return not self.expected

    @property
    def seen_by(self) -> tuple[str, ...]:
        """Checks that turned, those that are named to see it first."""
        checks = dict.fromkeys(c.check for c in self.seen)
        return tuple(sorted(checks, key=lambda c: (c not in self.expected, c)))

    @property
    def seen_in(self) -> tuple[str, ...]:
        """Cells in which a check turned."""
        return tuple(dict.fromkeys(c.cell for c in self.seen))


class SelfTestResult(Record, frozen=True):
    """One self-test: the content of selftest.json. Times are ISO 8601 in UTC."""

    device: str
    depth: str
    started: str
    seconds: float
    compat: str
    sources: str
    """Hash of compat's checks, criteria and faults."""
    trials: tuple[Trial, ...] = ()
    planned: int = 0
    """Faults and benign changes that were to be tried."""
    whole_catalogue: bool = False
    """Whether that was every one that exists on the device."""
    complete: bool = False
    seed: int = 0
    lanes: int = 1
    checks: tuple[str, ...] = ()
    """Checks that took part."""
    left_out: tuple[str, ...] = ()
    rule: str = ""
    """Which checks were asked of which cells, in words."""
    before: tuple[Change, ...] = ()
    """Checks that were fail, degraded or inconclusive without any fault (before and after are alike)."""
    environment: Environment = Environment()
    stack: StackIdentity = StackIdentity(name="current", sha256="")
    schema: str = SCHEMA

    @property
    def faults(self) -> tuple[Trial, ...]:
        """The trials of faults."""
        return tuple(t for t in self.trials if not t.benign)

    @property
    def benign(self) -> tuple[Trial, ...]:
        """The trials of benign changes."""
        return tuple(t for t in self.trials if t.benign)

    @property
    def killed(self) -> int:
        """Faults killed."""
        return sum(t.status == Status.KILLED for t in self.trials)

    @property
    def flagged(self) -> int:
        """Benign changes flagged: false alarms."""
        return sum(t.status == Status.FLAGGED for t in self.trials)

    @property
    def rate(self) -> float | None:
        """Killed faults, in percent of those tried; None when none was."""
        return 100.0 * self.killed / len(self.faults) if self.faults else None

    def figure(self) -> dict[str, Any]:
        """What a run's settings say of it."""
        return {
            "killed": self.killed,
            "faults": len(self.faults),
            "benign_flagged": self.flagged,
            "benign": len(self.benign),
            "depth": self.depth,
            "when": self.started,
        }


def by_class(trials: Iterable[Trial]) -> dict[str, list[Trial]]:
    """Class -> its trials, in the order in which classes first occur."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        found.setdefault(trial.group, []).append(trial)
    return found


# -- JSON --------------------------------------------------------------------------------------------------------


def encode(result: SelfTestResult) -> bytes:
    """`result` as the bytes of selftest.json: UTF-8, one trial a line."""
    return encode_record(result, "trials")


def read(where: Path) -> SelfTestResult:
    """The self-test stored in a folder or file. Raises StoreError naming it."""
    return read_record(where / FILE if where.is_dir() else where, SelfTestResult, SCHEMA, "self-test")


def write(result: SelfTestResult, folder: Path, page: str) -> list[str]:
    """Write selftest.json and selftest.md (`page`) into `folder`; their names. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FILE, encode(result))
    write_whole(folder / PAGE, page.encode("utf-8"))
    return [FILE, PAGE]


# -- the last one ------------------------------------------------------------------------------------------------


def sources_hash() -> str:
    """Hash of the files of SOURCES, names and contents."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    files = sorted({p for pattern in SOURCES for p in here.glob(pattern) if p.is_file() and p.suffix != ".pyc"})
    for path in files:
        digest.update(f"{path.relative_to(here)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _kept(cache_folder: Path, device: str, depth: str, fingerprint: str) -> Path:
    return cache_folder / "selftests" / f"{device}-{depth}-{fingerprint}-{sources_hash()}.json"


def keep(result: SelfTestResult, cache_folder: Path) -> None:
    """Remember `result` for the reports of runs to come: only a complete one of the whole catalogue, and only when
    compat's sources did not change meanwhile. A folder that takes no file is no error."""
    fingerprint = result.environment.fingerprint
    if not (result.complete and result.whole_catalogue and fingerprint and result.sources == sources_hash()):
        return
    path = _kept(cache_folder, result.device, result.depth, fingerprint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, encode(result))
    except OSError:
        return


def last_figure(cache_folder: Path, device: str, depth: str, fingerprint: str) -> dict[str, Any] | None:
    """The figure of the last self-test of this very stack, device and depth with these sources of compat, or None."""
    if not fingerprint:
        return None
    try:
        return read(_kept(cache_folder, device, depth, fingerprint)).figure()
    except StoreError:
        return None
