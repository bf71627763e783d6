"""Which package, and which version of it, changed a behaviour between two stacks.

In: `BisectOptions`. Out: a `Bisection`. Both ends are tested again first; then the versions of one package at a time
are swapped into the stack before; then the versions of the package that does it are halved, the last of each minor
series first. Every set of versions is a stack file of its own, in an environment of its own, which is kept.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from packaging.version import Version

from compat import device, environments, identity, session, stacks
from compat.axes import AXES, nearest
from compat.execute.across import Both, TwoStacks
from compat.execute.worker_process import default_memory_limit
from compat.matrix import CellSpec, Matrix, read_matrix
from compat.upgrade import releases
from compat.upgrade.bisection import Bisection, Step
from compat.upgrade.result import Compared, Finding
from compat.upgrade.search import first_other

FOLDER = Path("compat-bisects")
SECONDS = 300.0
"""Longest wait for one answer of one stack."""

Say = Callable[[str], None]
Pins = dict[str, str]


@dataclass(frozen=True)
class BisectOptions:
    """What a user may ask of a bisection: a cell, and `check` or `across` (neither: what across finds first)."""

    before: str
    after: str
    matrix: Path
    cell: str
    check: str = ""
    across: str = ""
    device: str = "auto"
    out: Path | None = None
    seed: int | None = None
    cache: Path | None = None
    argv: tuple[str, ...] = ()


@dataclass
class _Question:
    """What is asked of every set of versions, and of the stack before once."""

    options: BisectOptions
    matrix: Matrix
    cell: CellSpec
    both: Both
    two: TwoStacks
    checkpoint: str
    name: str
    expected: str = ""
    """The outcome of the stack before, for a check."""

    def ask(self, stack: str, python: str) -> tuple[bool | None, str]:
        """Whether `stack` (a name or file) behaves otherwise than the one before, and what was seen."""
        if not self.options.check:
            return _by_findings(self.compare(python), self.name)
        outcome, reason = self.outcome(stack)
        if outcome in ("error", "not_run", ""):
            return None, f"{outcome or 'no answer'}: {reason}"
        return outcome != self.expected, f"{outcome}: {reason}" if reason else outcome

    def compare(self, python: str) -> Compared:
        """The cell, asked of the stack before and of another."""
        self.two.turn_to(python)
        return self.two.compare(self.cell, self.checkpoint, defaults=True)

    def outcome(self, stack: str) -> tuple[str, str]:
        """Outcome and reason of the check on `stack`."""
        folder = self.both.folder / f"run-{datetime.now(UTC):%H%M%S%f}"
        tasks = {(self.cell.id, "load"), (self.cell.id, self.options.check)}
        prepared = session.prepare(
            session.Options(
                matrix=self.options.matrix, device=self.matrix.device, tasks=frozenset(tasks), out=folder, workers=1,
                seed=self.options.seed, cache=self.options.cache, stack=stack,
                checkpoints={self.cell.model: self.checkpoint}, argv=self.options.argv,
            )
        )  # fmt: skip
        prepared.execute()
        run, _ = prepared.finish()
        if prepared.interrupted:
            raise KeyboardInterrupt
        shutil.rmtree(folder, ignore_errors=True)
        check = next((c for cell in run.cells for c in cell.checks if c.name == self.options.check), None)
        return (check.outcome.value, check.reason) if check is not None else ("", "the check was not asked")


def _by_findings(compared: Compared, name: str) -> tuple[bool | None, str]:
    if compared.status == "error":
        return None, compared.reason
    found = next((f for f in compared.findings if f.name == name), None)
    if found is not None:
        return True, _seen(found)
    if compared.status != "compared" and name != "answers":
        return None, compared.reason
    return False, ""


def _seen(finding: Finding) -> str:
    far = "" if finding.value is None else f" ({finding.value:.3g} {finding.unit})"
    return f"{finding.before} -> {finding.after}{far}".strip()


def conduct(options: BisectOptions, say: Say = lambda text: None) -> tuple[Bisection, Path]:
    """The whole bisection; its result and folder. Raises MatrixError, SessionError, CreateError, ReleaseError."""
    work = _Work(options, say)
    try:
        return work.bisection(), work.folder
    finally:
        work.question.two.close()


class _Work:
    """One bisection while it goes on."""

    def __init__(self, options: BisectOptions, say: Say) -> None:
        self.options, self.say = options, say
        self.stacks = (stacks.find(options.before), stacks.find(options.after))
        self.below = environments.base()
        detected = device.detect()
        kind = detected.type if options.device == "auto" else options.device
        matrix = read_matrix(options.matrix, kind)
        cell = _cell(options, matrix)
        started = datetime.now(UTC)
        self.folder = (options.out or FOLDER / f"{started:%Y%m%dT%H%M%SZ}-{os.getpid()}").absolute()
        try:
            (self.folder / "stacks").mkdir(parents=True, exist_ok=options.out is not None)
        except OSError as error:
            raise session.SessionError(f"{self.folder}: cannot be written: {error.strerror}") from error
        pythons = (self._python(self.stacks[0]), self._python(self.stacks[1]))
        both = Both(
            pythons=pythons,
            folder=self.folder,
            models=matrix.models,
            device=kind if kind == "cpu" else f"{kind}:0",
            cache=options.cache or identity.default_cache(),
            seed=matrix.settings.seed if options.seed is None else options.seed,
            depth=matrix.settings.depth,
            timeout_seconds=SECONDS,
            memory_limit_bytes=default_memory_limit(2),
        )
        two = TwoStacks(both)
        checkpoint = two.locate(cell.model)
        self.question = _Question(options, matrix, cell, both, two, checkpoint, options.across)
        self.steps: list[Step] = []
        self.tested: dict[tuple[tuple[str, str], ...], bool | None] = {}

    # -- the whole -------------------------------------------------------------------------------------------------

    def bisection(self) -> Bisection:
        """Ends, packages, versions."""
        why_not = self._ends()
        if why_not:
            return self._named(nothing=why_not)
        swaps = self._swaps()
        if not swaps:
            return self._named(nothing="both stacks pin the same versions, and no package can be swapped")
        guilty, together, why = self._packages(swaps)
        if not guilty:
            return self._named(
                nothing="no package changes it by itself, nor with those that it needs; it takes several together: "
                + ", ".join(sorted(swaps))
            )
        package = guilty[0]
        return self._versions(package, guilty, together, why)

    def _named(self, **more: object) -> Bisection:
        own = self.options
        asked = f"check {own.check}" if own.check else f"across {self.question.name}"
        return Bisection(
            before=self.stacks[0].name, after=self.stacks[1].name, cell=own.cell, question=asked,
            steps=tuple(self.steps), **more,  # type: ignore[arg-type]
        )  # fmt: skip

    # -- both ends -------------------------------------------------------------------------------------------------

    def _ends(self) -> str:
        """Test both again; why there is nothing to bisect, or ""."""
        question, pythons = self.question, self.question.both.pythons
        if self.options.check:
            question.expected, reason = question.outcome(self.options.before)
            self.say(f"{self.stacks[0].name}: {question.expected}")
            if question.expected in ("error", "not_run", ""):
                return f"the stack before gives no outcome: {question.expected} {reason}"
        else:
            own = question.compare(pythons[0])
            if own.status != "compared":
                return f"the stack before cannot be compared with itself: {own.reason}"
            if not question.name:
                found = [f for f in question.compare(pythons[1]).findings if not f.because]
                if not found:
                    return "both stacks answer the same: across finds nothing in this cell"
                question.name = found[0].name
                self.say(f"bisecting {question.name}: {_seen(found[0])}")
            if any(f.name == question.name for f in own.findings):
                return f"the stack before differs from itself in {question.name}: it is not steady"
        other = self._step("after", self._swaps(), lambda: question.ask(self.options.after, pythons[1]))
        if other is None:
            return f"the stack after cannot be asked: {self.steps[-1].shown}"
        return "" if other else "both stacks behave the same in it"

    # -- packages --------------------------------------------------------------------------------------------------

    def _version(self, side: int, package: str) -> str:
        return self.stacks[side].pins.get(package) or self.below.version(package)

    def _swaps(self) -> Pins:
        """Distribution -> version after, where the versions differ. What the stack after does not have stays."""
        named = self.stacks[0].pins.keys() | self.stacks[1].pins.keys()
        found = {}
        for package in sorted(named):
            before, after = self._version(0, package), self._version(1, package)
            if after and (not before or not stacks.same_version(after, before)):
                found[package] = after
        return found

    def _packages(self, swaps: Pins) -> tuple[list[str], list[str], str]:
        """The packages that change it alone, what had to move with the first, and why."""
        guilty: list[str] = []
        together: dict[str, tuple[list[str], str]] = {}
        for package in swaps:
            moved, why = {package: swaps[package]}, ""
            other = self._try(f"swap-{package}", moved)
            if other is None and len(swaps) > 1:
                why = self.steps[-1].shown
                moved = self._with_dependents(package, swaps)
                other = self._try(f"swap-{package}-with", moved) if len(moved) > 1 else None
                if other is None and moved.keys() != swaps.keys():
                    moved = dict(swaps)
                    other = self._try(f"swap-{package}-all", moved)
            if other:
                guilty.append(package)
                together[package] = ([p for p in moved if p != package], why)
        alone = [p for p in guilty if not together[p][0]]
        if alone:
            return alone, [], ""
        if not guilty:
            return [], [], ""
        first = max(guilty, key=lambda p: (self._needs(p, together[p][0], swaps), p))
        return [first], *together[first]

    def _needs(self, package: str, others: Iterable[str], swaps: Pins) -> int:
        """How many of `others` the new version of `package` names among what it requires."""
        named = {str(r.name).lower().replace("_", "-") for r in releases.requirements(package, swaps[package])}
        return len(named & set(others))

    def _with_dependents(self, package: str, swaps: Pins) -> Pins:
        """`package` and what cannot stay when it moves: by what the new version requires, and by what the others do
        that are there."""
        moved = {package: swaps[package]}
        while True:
            installed = {p: moved.get(p) or self._version(0, p) for p in {*swaps, *self.stacks[0].pins}}
            more = {
                name for own in moved for name in releases.conflicts(releases.requirements(own, moved[own]), installed)
            }
            for other in swaps.keys() - moved.keys():
                version = self._version(0, other)
                required = releases.requirements(other, version) if version else ()
                more |= {other} if releases.conflicts(required, installed).keys() & moved.keys() else set()
            new = {name: swaps[name] for name in more if name in swaps and name not in moved}
            if not new:
                return moved
            moved |= new

    # -- versions --------------------------------------------------------------------------------------------------

    def _versions(self, package: str, guilty: list[str], together: list[str], why: str) -> Bisection:
        before, after = self._version(0, package), self._version(1, package)
        named = {"packages": tuple(guilty), "together": tuple(together), "why_together": why}
        if not before:
            return self._named(**named, first_other=after, last_same="none (the stack before does not have it)")
        line = releases.between(releases.versions(package), before, after)
        pins: dict[str, Pins] = {str(Version(after)): self._swaps() if together else {package: after}}

        def other(version: Version) -> bool | None:
            try:
                pins[str(version)] = self._pins_for(package, str(version))
            except releases.ReleaseError as error:
                self._note(f"{package}-{version}", {package: str(version)}, str(error))
                return None
            return self._try(f"{package}-{version}", pins[str(version)])

        minors = releases.last_of_minors(line)
        coarse = first_other(minors, other)
        start = line.index(coarse.last) + 1 if coarse.last is not None else 0
        fine = first_other(line[start : line.index(coarse.first) + 1], other)
        last = fine.last or coarse.last
        own = pins.get(str(fine.first), {})
        rest = pins.get(str(last), {}) if last is not None else {}
        moved = [p for p in sorted({*own, *rest} - {package}) if self._at(own, p) != self._at(rest, p)]
        return self._named(
            **named,
            first_other=str(fine.first),
            last_same=str(last) if last is not None else before,
            untested=tuple(map(str, fine.untested)),
            moved_at_boundary=tuple(moved),
        )

    def _at(self, pins: Pins, package: str) -> str:
        return pins.get(package) or self._version(0, package)

    def _pins_for(self, package: str, version: str) -> Pins:
        """`package` at `version`, and versions of what it requires where those of the stack before do not do: those of
        the stack after, those of the base, or the newest that does. Raises ReleaseError."""
        pins = {package: version}
        todo = [(package, version)]
        while todo:
            own, at = todo.pop()
            installed = {**self.below.versions, **self.stacks[0].pins, **pins}
            for name, requirement in releases.conflicts(releases.requirements(own, at), installed).items():
                if name in pins:
                    raise releases.ReleaseError(
                        f"{own} {at} needs {requirement}, and {name} {pins[name]} is needed too"
                    )
                candidates = [self.stacks[1].pins.get(name, ""), self.below.version(name)]
                chosen = next((c for c in candidates if c and requirement.specifier.contains(c, prereleases=True)), "")
                if not chosen:
                    fitting = [v for v in releases.versions(name) if requirement.specifier.contains(v)]
                    if not fitting:
                        raise releases.ReleaseError(f"{own} {at} needs {requirement}, and no release is that")
                    chosen = str(fitting[-1])
                pins[name] = chosen
                todo.append((name, chosen))
        return pins

    # -- one set of versions ---------------------------------------------------------------------------------------

    def _try(self, name: str, moved: Pins) -> bool | None:
        """Whether the stack before with `moved` swapped in behaves otherwise; None where it cannot be tested."""
        key = tuple(sorted(moved.items()))
        if key in self.tested:
            return self.tested[key]
        if moved == self._swaps():
            return True  # the stack after, tested at the start
        stack = self._written(name, {**self.stacks[0].pins, **moved})

        def ask() -> tuple[bool | None, str]:
            try:
                python = self._python(stack)
            except environments.CreateError as error:
                return None, " ".join(str(error).split())
            return self.question.ask(str(stack.path), python)

        self.tested[key] = self._step(name, moved, ask)
        return self.tested[key]

    def _step(self, name: str, moved: Pins, ask: Callable[[], tuple[bool | None, str]]) -> bool | None:
        started = time.monotonic()
        other, shown = ask()
        self.steps.append(Step(name=name, swapped=moved, other=other, shown=shown,
                               seconds=round(time.monotonic() - started, 1)))  # fmt: skip
        said = {True: "other", False: "same", None: "cannot be tested"}[other]
        self.say(f"{said}: {', '.join(f'{p} {v}' for p, v in moved.items())}" + (f": {shown}" if shown else ""))
        return other

    def _note(self, name: str, moved: Pins, shown: str) -> None:
        self._step(name, moved, lambda: (None, shown))

    def _written(self, name: str, pins: Pins) -> stacks.Stack:
        """A stack file of these versions, read back."""
        plain = "bisect-" + "".join(c if c.isalnum() or c in ".-" else "-" for c in name.lower())
        path = self.folder / "stacks" / f"{plain}.toml"
        own = self.stacks[0] if not self.stacks[0].current else self.stacks[1]
        lines = [f'name = "{plain}"', 'title = "made by compat bisect"', f'base = "{own.base}"', "", "[pins]"]
        path.write_text("\n".join([*lines, *(f'"{p}" = "{v}"' for p, v in sorted(pins.items())), ""]), encoding="utf-8")
        return stacks.read_stack(path)

    def _python(self, stack: stacks.Stack) -> str:
        if stack.current:
            return sys.executable
        return environments.python_of(environments.create(stack, self.options.cache))


def _cell(options: BisectOptions, matrix: Matrix) -> CellSpec:
    """The cell of that id. Raises SessionError with the nearest."""
    known = {c.id: c for c in matrix.cells if not c.excluded}
    if options.cell not in known:
        form = "/".join(AXES)
        hint = nearest(options.cell, list(known))
        problem = f"{matrix.path} has no cell {options.cell!r} ({form})" + (f"; nearest: {hint!r}" if hint else "")
        raise session.SessionError(problem)
    cell = known[options.cell]
    if options.check and options.check not in cell.checks:
        hint = nearest(options.check, cell.checks)
        problem = f"{matrix.path} does not ask {options.check!r} of {cell.id}: {', '.join(cell.checks)}"
        raise session.SessionError(problem + (f"; nearest: {hint!r}" if hint else ""))
    return cell
