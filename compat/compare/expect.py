"""Expectation files: which failures are known, and therefore do not count. Reading one, and judging results by it.

In: a TOML file (docs/gate.md), a run. Out: an `Expectations`, and an `Account` of what it says of a run. An outcome is
a fact and stays what it is: an expectation changes what a gate counts. Errors name the file, the entry and the nearest
valid value.
"""

from __future__ import annotations

import datetime
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from compat.axes import nearest
from compat.checks import CHECKS
from compat.device import DEVICE_TYPES
from compat.matrix import Matrix, MatrixError
from compat.plan import fits
from compat.records import BAD, Cell, Check, Outcome, Run

FAILING: frozenset[Outcome] = BAD | {Outcome.DEGRADED}
"""Outcomes that count where nothing else is asked, as in pytest."""

EXPECTABLE = tuple(o for o in Outcome if o in FAILING | {Outcome.INCONCLUSIVE} and o is not Outcome.ERROR)
"""What an entry may expect. `error` is the harness's fault and never expected."""

FOLDER = "expectations"
"""Beside a matrix: `expectations/NAME.toml` holds what is expected of NAME.toml, unless the matrix names a file."""

_KEYS = ("cells", "checks", "outcome", "when", "device", "reason", "issue", "expires", "strict")


class ExpectationError(MatrixError):
    """An expectation file that cannot be used: says which file, which key, what is wrong, what would be right."""


@dataclass(frozen=True)
class Entry:
    """One known failure."""

    key: str
    """`expect[3]`, as messages name it."""
    cells: tuple[str, ...]
    """Ids with shell wildcards; `*` also spans slashes."""
    outcomes: frozenset[Outcome]
    reason: str
    checks: tuple[str, ...] = ()
    """None: any check."""
    when: tuple[Requirement, ...] = ()
    device: str = ""
    issue: str = ""
    expires: datetime.date | None = None
    strict: bool = True
    """Whether a check that passes although it is expected to fail is to be said."""

    def applies(self, device: str, packages: Mapping[str, str]) -> bool:
        """Whether its conditions hold for a device type and package versions; what is not there meets none."""
        if self.device and self.device != device:
            return False
        known = {_normal(name): version for name, version in packages.items()}
        return all(_normal(r.name) in known and r.specifier.contains(known[_normal(r.name)], True) for r in self.when)

    def expired(self, today: datetime.date) -> bool:
        """Whether its last day is over."""
        return self.expires is not None and self.expires < today

    def fits(self, cell: str, check: str) -> bool:
        """Whether it speaks of that check of that cell."""
        return (not self.checks or check in self.checks) and any(fits(cell, p) for p in self.cells)

    @property
    def told(self) -> str:
        """Reason and issue."""
        return f"{self.reason} ({self.issue})" if self.issue else self.reason


@dataclass(frozen=True)
class Expectations:
    """The entries of one file that are judged by on one device with one set of packages on one day."""

    path: Path
    entries: tuple[Entry, ...]
    device: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    today: datetime.date = datetime.date.min

    def on(self, device: str, packages: Mapping[str, str], today: datetime.date | None = None) -> Expectations:
        """The same, for a device type, package versions and a day (None: today, in UTC)."""
        day = datetime.datetime.now(datetime.UTC).date() if today is None else today
        return Expectations(self.path, self.entries, device, packages, day)

    @cached_property
    def in_force(self) -> tuple[Entry, ...]:
        """Entries whose conditions hold and that are not expired."""
        return tuple(e for e in self.entries if e.applies(self.device, self.packages) and not e.expired(self.today))

    def covering(self, cell: str, check: Check) -> Entry | None:
        """The first entry that expects exactly this outcome of this check, or None."""
        return next((e for e in self.in_force if check.outcome in e.outcomes and e.fits(cell, check.name)), None)

    def broken_by(self, cell: str, check: Check) -> Entry | None:
        """The first strict entry that names this check and expects a failure of it, where it passes; or None."""
        if check.outcome is not Outcome.PASS:
            return None
        return next((e for e in self.in_force if e.strict and e.checks and e.fits(cell, check.name)), None)


@dataclass(frozen=True)
class Account:
    """What expectations say of a run. Texts are `cell: check`."""

    expected: tuple[tuple[Cell, Check, Entry], ...]
    unexpected: tuple[tuple[Cell, Check], ...]
    """Failing, and expected by no entry."""
    passing: tuple[tuple[Cell, Check, Entry], ...]
    """Passing, although a strict entry expects a failure."""
    expired: tuple[Entry, ...]
    """Entries that count no more, but still fit checks of the run that fail."""
    idle: tuple[Entry, ...]
    """Entries in force that fit no check of the run."""


def account(run: Run, expectations: Expectations | None, outcomes: Iterable[Outcome] = FAILING) -> Account:
    """`run` by `expectations` (made for its device and packages by `on`; None: nothing is expected). `outcomes` are
    those that count as failing."""
    failing = frozenset(outcomes)
    book = expectations or Expectations(Path(), ())
    expected, unexpected, passing = [], [], []
    for cell in run.cells:
        for check in cell.checks:
            entry = book.covering(cell.id, check) if check.outcome in failing else None
            if entry is not None:
                expected.append((cell, check, entry))
            elif check.outcome in failing:
                unexpected.append((cell, check))
            elif (broken := book.broken_by(cell.id, check)) is not None:
                passing.append((cell, check, broken))
        if (whole := _passing_cell(book, cell)) is not None:
            passing.append((cell, cell.checks[0], whole))
    asked = [(c.id, k) for c in run.cells for k in c.checks]
    gone = [e for e in book.entries if e.expired(book.today) and e.applies(book.device, book.packages)]
    return Account(
        expected=tuple(expected),
        unexpected=tuple(unexpected),
        passing=tuple(passing),
        expired=tuple(e for e in gone if any(k.outcome in e.outcomes and e.fits(c, k.name) for c, k in asked)),
        idle=tuple(e for e in book.in_force if not any(e.fits(c, k.name) for c, k in asked)),
    )


def _passing_cell(book: Expectations, cell: Cell) -> Entry | None:
    """The strict entry that expects some failure of `cell`, naming no check, where all of it passes; or None."""
    if cell.outcome is not Outcome.PASS or not cell.checks:
        return None
    return next((e for e in book.in_force if e.strict and not e.checks and e.fits(cell.id, "")), None)


# -- files -------------------------------------------------------------------------------------------------------


def of_matrix(matrix: Matrix) -> Path | None:
    """The file of a matrix: the one that it names, or expectations/NAME.toml beside it; None where there is none."""
    if matrix.expectations is not None:
        return matrix.expectations
    return beside(matrix.path)


def beside(matrix: Path) -> Path | None:
    """expectations/NAME.toml beside a matrix file, where there is one."""
    path = matrix.parent / FOLDER / matrix.name
    return path if path.is_file() else None


def read_expectations(path: Path) -> Expectations:
    """The file at `path`. Raises ExpectationError."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        near = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        raise ExpectationError(path, "(file)", error.strerror or str(error), nearest(path.name, near)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExpectationError(path, "(file)", f"not valid TOML: {error}") from error
    for name in data:
        if name not in ("title", "expect"):
            raise ExpectationError(path, name, "unknown key", nearest(name, ("title", "expect")))
    rows = data.get("expect", [])
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise ExpectationError(path, "expect", "is written as [[expect]] tables")
    return Expectations(path, tuple(_entry(path, f"expect[{i}]", row) for i, row in enumerate(rows)))


def _entry(path: Path, key: str, row: Mapping[str, Any]) -> Entry:
    for name in row:
        if name not in _KEYS:
            raise ExpectationError(path, f"{key}.{name}", "unknown key", nearest(name, _KEYS))
    reason = row.get("reason")
    if not isinstance(reason, str) or not reason.strip():
        raise ExpectationError(path, f"{key}.reason", "is missing or empty")
    expires = row.get("expires")
    if expires is not None and (not isinstance(expires, datetime.date) or isinstance(expires, datetime.datetime)):
        raise ExpectationError(path, f"{key}.expires", f"{expires!r} is no date such as 2026-12-31, without quotes")
    strict = row.get("strict", True)
    if not isinstance(strict, bool):
        raise ExpectationError(path, f"{key}.strict", f"{strict!r} is neither true nor false")
    issue = row.get("issue", "")
    if not isinstance(issue, str) or (issue and not issue.startswith(("https://", "http://"))):
        raise ExpectationError(path, f"{key}.issue", f"{issue!r} is no link")
    outcomes = _known(path, f"{key}.outcome", row.get("outcome"), tuple(o.value for o in EXPECTABLE))
    checks = _known(path, f"{key}.checks", row["checks"], CHECKS.names) if "checks" in row else ()
    device = _known(path, f"{key}.device", row["device"], DEVICE_TYPES) if "device" in row else ("",)
    if len(device) != 1:
        raise ExpectationError(path, f"{key}.device", "names one device type")
    return Entry(
        key=key,
        cells=_texts(path, f"{key}.cells", row.get("cells")),
        outcomes=frozenset(Outcome(o) for o in outcomes),
        reason=reason.strip(),
        checks=checks,
        when=tuple(_condition(path, f"{key}.when", t) for t in _texts(path, f"{key}.when", row.get("when", []), True)),
        device=device[0],
        issue=issue,
        expires=expires,
        strict=strict,
    )


def _texts(path: Path, key: str, value: Any, none: bool = False) -> tuple[str, ...]:
    """A text or a list of texts."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(i, str) and i.strip() for i in items):
        raise ExpectationError(path, key, "is missing" if value is None else f"{value!r} is no text or list of texts")
    if not items and not none:
        raise ExpectationError(path, key, "is empty")
    return tuple(items)


def _known(path: Path, key: str, value: Any, known: tuple[str, ...]) -> tuple[str, ...]:
    texts = _texts(path, key, value)
    for text in texts:
        if text not in known:
            raise ExpectationError(path, key, f"unknown value {text!r}", nearest(text, known))
    return texts


def _condition(path: Path, key: str, text: str) -> Requirement:
    """`torch<2.10`, `transformers>=5,<5.24`."""
    try:
        found = Requirement(text)
    except InvalidRequirement as error:
        raise ExpectationError(path, key, f"{text!r} is no condition such as 'torch<2.10'") from error
    if not found.specifier or found.extras or found.marker or found.url:
        raise ExpectationError(path, key, f"{text!r} is no condition such as 'torch<2.10'")
    return found


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
