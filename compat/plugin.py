"""The pytest plugin: a front end on the same flow as the `compat` command.

It makes the suites' parameters from a matrix, orders them as the plan does, starts the executor for what is left after
`-k`, `--lf` and the like, and lets each test wait for its own result. It does nothing in sessions without compat's
suites.

    pytest                                                    # in a checkout
    pytest --pyargs compat.suites --compat-matrix M.toml      # anywhere
    pytest -k "llama and bf16 and sdpa" -x
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.compat import NOTSET

from compat.records import BAD, Check, Outcome, Run

if TYPE_CHECKING:
    from compat.compare.expect import Expectations
    from compat.matrix import CellSpec
    from compat.session import Session

FAILING = BAD | {Outcome.DEGRADED}
"""Outcomes that fail a test. The others, but for pass, skip it."""

SUITES = "compat.suites"
_PREFIX = "test_"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options share the prefix --compat."""
    group = parser.getgroup("compat", "compat: model x dtype x attention x quantization")
    group.addoption("--compat-matrix", default="default", metavar="FILE", help="matrix (default: compat's own)")
    group.addoption("--compat-device", default="auto", choices=("auto", "cpu", "cuda"))
    group.addoption("--compat-cells", action="append", default=[], metavar="PATTERN", help="ids with wildcards")
    group.addoption("--compat-out", type=Path, metavar="DIR", help="folder of the run (default: compat-runs/ID)")
    group.addoption(
        "--compat-workers", type=int, metavar="N", help="worker processes (default: by cores and memory; two on a CPU)"
    )
    group.addoption("--compat-timeout", type=float, metavar="SECONDS", help="limit of every check")
    group.addoption("--compat-cache", type=Path, metavar="DIR", help="folder for checkpoints that compat makes")
    group.addoption("--compat-depth", choices=("quick", "standard", "deep"), help="how much each check looks at")
    group.addoption(
        "--compat-benchmark", action="store_true", help="hand the speed checks' samples to pytest-benchmark"
    )
    group.addoption(
        "--compat-stack", default="", metavar="NAME", help="stack that the workers run (default: the matrix's)"
    )
    group.addoption("--compat-shard", metavar="I/N", help="part I of N of the load groups; compat merge joins them")
    group.addoption(
        "--compat-expect", action="store_true", help="known failures are xfail, by the matrix's expectations"
    )
    group.addoption("--compat-expectations", type=Path, metavar="FILE", help="like --compat-expect, by this file")
    group.addoption("--compat-strict", action="store_true", help="a pass that is expected to fail fails the test")
    group.addoption(
        "--compat-rerun-failures", action="store_true", help="ask unexpected failures once more, in a fresh worker"
    )
    group.addoption("--compat-seed", type=int, metavar="N", help="seed of inputs (default: the matrix's)")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse xdist for the suites: its processes would each load every model and disturb each other's timing."""
    config.addinivalue_line("markers", "compat(cell, check): a check of a cell of the matrix")
    if getattr(config.option, "numprocesses", None) and _names_suites(config):
        raise pytest.UsageError(_NO_XDIST)
    config.pluginmanager.register(_State(config), "compat-state")
    if config.getoption("--compat-benchmark"):
        from compat.speed.benchmark_export import NEEDS, Benchmarks

        if not config.pluginmanager.has_plugin("benchmark"):
            raise pytest.UsageError(NEEDS)
        config.pluginmanager.register(Benchmarks(config), "compat-benchmarks")


_NO_XDIST = (
    "compat's suites do not run under pytest-xdist (-n): one worker process a device shares each load among checks. "
    "Use --compat-workers N for more workers, or split the matrix with --compat-cells."
)


def _names_suites(config: pytest.Config) -> bool:
    folder = Path(__file__).parent / "suites"
    for argument in config.args:
        text = argument.split("::")[0]
        if text == SUITES or text.startswith(f"{SUITES}."):
            return True
        path = (config.invocation_params.dir / text).resolve()
        if path == folder or path.is_relative_to(folder):
            return True
    return False


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One parameter for each cell that has the test's check."""
    if "compat_task" not in metafunc.fixturenames:
        return
    check = metafunc.function.__name__.removeprefix(_PREFIX)
    state = _state(metafunc.config)
    cells = [c for c in state.cells() if check in c.checks]
    metafunc.parametrize("compat_cell", cells, ids=[c.id for c in cells])


@pytest.fixture
def compat_task(request: pytest.FixtureRequest, compat_cell: CellSpec) -> Task:
    """The check that the test is named after, of the cell that it is parametrized with."""
    name = getattr(request.node, "originalname", request.node.name)
    task = Task(compat_cell, name.removeprefix(_PREFIX), _state(request.config), request.node.user_properties)
    request.node.user_properties += [*compat_cell.axes.items(), ("check", task.check)]
    return task


@dataclass(frozen=True)
class Task:
    """A check of a cell, as a test sees it."""

    cell: CellSpec
    check: str
    state: _State = field(repr=False)
    properties: list[tuple[str, object]] = field(repr=False)
    """Of the test, for --junitxml."""

    def result(self) -> Check:
        """Wait for the result. Raises what ended the run, if it ended before."""
        session = self.state.session
        self.properties.append(("run", session.header.run.id if session is not None else ""))
        result = self.state.wait(self.cell.id, self.check)
        self.properties.append(("outcome", result.outcome.value))
        return result

    def expect_pass(self) -> None:
        """Pass, skip or fail the running test as the result says."""
        __tracebackhide__ = True
        result = self.result()
        book = self.state.book()
        if result.outcome == Outcome.PASS:
            entry = book.broken_by(self.cell.id, result) if book is not None else None
            if book is not None and entry is not None and self.state.config.getoption("--compat-strict"):
                pytest.fail(f"passes, though {book.path}: {entry.key} expects a failure: {entry.told}", pytrace=False)
            return
        if book is not None and result.outcome in FAILING and (known := book.covering(self.cell.id, result)):
            pytest.xfail(f"{result.outcome.value}: {known.told}")
        if result.outcome in FAILING:
            pytest.fail(explain(self.cell.id, result), pytrace=False)
        pytest.skip(f"{result.outcome.value}: {result.reason}")


def explain(cell: str, check: Check) -> str:
    """Cell, outcome, figures against thresholds, kernels, exception and how to run it again."""
    lines = [f"{cell}: {check.name} is {check.outcome.value}: {check.reason}"]
    if check.evidence.kernels:
        lines.append(f"kernels seen: {', '.join(sorted(check.evidence.kernels))}")
    if check.evidence.exception is not None:
        lines.append(check.evidence.exception.traceback.strip()[-1500:])
    if check.evidence.repro:
        lines.append(f"again: {check.evidence.repro}")
    return "\n".join(lines)


def _state(config: pytest.Config) -> _State:
    state = config.pluginmanager.get_plugin("compat-state")
    assert isinstance(state, _State)
    return state


class _State:
    """What one pytest session knows: the matrix, the run under way, its result."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.session: Session | None = None
        self.run: Run | None = None
        self.folder: Path | None = None
        self._cells: tuple[CellSpec, ...] | None = None
        self._results: dict[tuple[str, str], Check] = {}
        self._tested: set[tuple[str, str]] = set()
        """(cell id, check) of the tests that have had their result."""
        self._arrived = threading.Condition()

    # -- collection ----------------------------------------------------------------------------------------------

    def cells(self) -> tuple[CellSpec, ...]:
        """The cells of the matrix that would run. Raises UsageError for a matrix that cannot be used."""
        if self._cells is None:
            from compat import device
            from compat.matrix import MatrixError, read_matrix
            from compat.plan import fits_nothing, make_plan, select
            from compat.session import SessionError, part_of

            kind = self.config.getoption("--compat-device")
            kind = device.detect().type if kind == "auto" else kind
            try:
                matrix = read_matrix(self._matrix_path(), kind)
            except MatrixError as error:
                raise pytest.UsageError(str(error)) from error
            patterns = self.config.getoption("--compat-cells")
            chosen = select(matrix.cells, patterns)
            if said := fits_nothing(matrix.path, matrix.cells, patterns, chosen):
                raise pytest.UsageError(said)
            try:
                self._cells = make_plan(part_of(matrix, chosen, self._shard())).cells
            except SessionError as error:
                raise pytest.UsageError(str(error)) from error
        return self._cells

    def _shard(self) -> tuple[int, int] | None:
        from argparse import ArgumentTypeError

        from compat.commands.arguments import part

        asked = self.config.getoption("--compat-shard")
        try:
            return None if asked is None else part(asked)
        except ArgumentTypeError as error:
            raise pytest.UsageError(f"--compat-shard: {error}") from error

    def book(self) -> Expectations | None:
        """What is known to fail here, where that was asked for."""
        session = self.session
        return session.here(session.book) if session is not None and session.book is not None else None

    def _matrix_path(self) -> Path:
        from compat.builtin import matrix_path

        return matrix_path(self.config.getoption("--compat-matrix"), Path(self.config.invocation_params.dir))

    def _look_for_stack(self) -> None:
        """Raises UsageError for a stack that does not exist or is not created."""
        from compat import environments
        from compat.matrix import MatrixError

        try:
            environments.interpreter(
                self.config.getoption("--compat-stack") or "current", self.config.getoption("--compat-cache")
            )
        except (MatrixError, environments.NotCreated) as error:
            raise pytest.UsageError(str(error)) from error

    def _tasks(self, items: list[pytest.Item]) -> dict[tuple[str, str], pytest.Item]:
        found: dict[tuple[str, str], pytest.Item] = {}
        for item in items:
            if isinstance(item, pytest.Function) and "compat_task" in item.fixturenames and hasattr(item, "callspec"):
                cell: Any = item.callspec.params["compat_cell"]
                if cell is not NOTSET:  # pytest's own stand-in for a test without parameters
                    found[cell.id, item.originalname.removeprefix(_PREFIX)] = item
        return found

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Read the matrix before anything is collected, so that a bad one is a usage error (exit code 4)."""
        if _names_suites(self.config):
            self.cells()
            self._look_for_stack()

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Put compat's tests in the order of the plan: all checks of a cell together, cells by load group."""
        tasks = self._tasks(items)
        if not tasks:
            return
        if hasattr(config, "workerinput"):
            raise pytest.UsageError(_NO_XDIST)
        wanted = [(cell.id, check) for cell in self.cells() for check in cell.checks]
        ordered = [tasks[key] for key in wanted if key in tasks]
        items[:] = [*(i for i in items if "compat_task" not in getattr(i, "fixturenames", ())), *ordered]

    # -- execution -----------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Run the plan of the selected tests in the background while pytest goes through them."""
        tasks = {k: i for k, i in self._tasks(session.items).items() if i.get_closest_marker("skip") is None}
        if not tasks or self.config.option.collectonly:
            return (yield)
        self._start(frozenset(tasks))
        try:
            return (yield)
        finally:
            self._end()

    def _start(self, tasks: frozenset[tuple[str, str]]) -> None:
        from compat.matrix import MatrixError
        from compat.session import Options, SessionError, prepare

        option = self.config.getoption
        options = Options(
            matrix=self._matrix_path(),
            device=option("--compat-device"),
            tasks=tasks,
            out=option("--compat-out"),
            workers=option("--compat-workers"),
            seed=option("--compat-seed"),
            depth=option("--compat-depth"),
            timeout_seconds=option("--compat-timeout"),
            cache=option("--compat-cache"),
            stack=option("--compat-stack"),
            argv=("pytest", *self.config.invocation_params.args),
            patterns=tuple(option("--compat-cells")) if option("--compat-shard") else (),
            shard=self._shard(),
            expect=option("--compat-expect") or option("--compat-strict"),
            expectations=option("--compat-expectations"),
            rerun=option("--compat-rerun-failures"),
        )
        try:
            self.session = prepare(options)
        except (MatrixError, SessionError) as error:
            raise pytest.UsageError(str(error)) from error
        self.session.on_result = self._result
        self.session.start()

    def _result(self, cell: CellSpec, check: Check) -> None:
        with self._arrived:
            self._results[cell.id, check.name] = check
            self._arrived.notify_all()

    def wait(self, cell: str, check: str) -> Check:
        """The result of a check; raises what ended the run when it ended without one."""
        assert self.session is not None
        with self._arrived:
            while (cell, check) not in self._results:
                self._arrived.wait(0.1)  # short, so that Ctrl-C is seen
                if (cell, check) not in self._results and not self.session.running:
                    self.session.raise_failure()
                    pytest.fail("the run ended before this check", pytrace=False)
            self._tested.add((cell, check))
            return self._results[cell, check]

    def _end(self) -> None:
        from compat.stored import write_reports

        assert self.session is not None
        self.session.stop()
        self.run, self.folder = self.session.finish()
        write_reports(self.run, self.folder)
        benchmarks = self.config.pluginmanager.get_plugin("compat-benchmarks")
        if benchmarks is not None:
            benchmarks.hand_over(self.run, [cell for cell, check in self._tested if check == "speed"])

    # -- report --------------------------------------------------------------------------------------------------

    def pytest_report_header(self, config: pytest.Config) -> str | None:
        """Which matrix, when the suites are what was asked for."""
        if not _names_suites(config):
            return None
        return f"compat: matrix {self._matrix_path()}, device {config.getoption('--compat-device')}"

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The matrix, and where the run is stored."""
        if self.run is None:
            return
        from compat.render import render

        terminalreporter.section("compat")
        terminalreporter.write(render(self.run, "terminal", width=80, color=terminalreporter.hasmarkup))
        terminalreporter.write_line(f"Stored: {self.folder}")
