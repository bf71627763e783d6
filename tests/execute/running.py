"""Running small matrices with real workers: in this process, or as the command that a user types."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import compat
from compat.records import Outcome, Run
from compat.session import Options, Session, prepare

ROOT = Path(compat.__file__).resolve().parents[1]
FAULTY_STACK = Path(__file__).parent / "faulty_stack"
BOUND_SECONDS = 90.0
"""Longest wait for anything; a test that reaches it has failed."""

Outcomes = dict[tuple[str, str], Outcome]


def run(
    matrix: Path, out: Path, cache: Path, prepared: Callable[[Session], None] = lambda s: None, **more: object
) -> Run:
    """Run `matrix` in this process with real workers; the run as stored."""
    session = prepare(Options(matrix=matrix, device="cpu", out=out, cache=cache, **more))  # type: ignore[arg-type]
    prepared(session)
    session.execute()
    return session.finish()[0]


def outcomes(stored: Run, model: str = "") -> Outcomes:
    """(cell, check) -> outcome, of one model or of all."""
    return {
        (cell.id, check.name): check.outcome
        for cell in stored.cells
        for check in cell.checks
        if not model or cell.axes["model"] == model
    }


def environment(fault: str = "", at: str = "", marker: Path | None = None) -> dict[str, str]:
    """The variables of a process whose stack has `fault`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("COMPAT_", "PYTHONUNBUFFERED"))}
    added = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if fault:
        added["PYTHONPATH"] = os.pathsep.join([str(FAULTY_STACK), str(ROOT)])
        added |= {"COMPAT_TEST_FAULT": fault, "COMPAT_TEST_FAULT_AT": at}
    if marker is not None:
        added["COMPAT_TEST_MARKER"] = str(marker)
    return {**kept, **added}


def _default_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*arguments: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> subprocess.Popen[str]:
    """`python -m compat ...`, started, with Ctrl-C as a terminal gives it: a shell's background jobs ignore it."""
    return subprocess.Popen(
        [sys.executable, "-m", "compat", *map(str, arguments)],
        env=env or environment(),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_default_interrupt,
    )


def command(
    *arguments: object, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m compat ...`, ended."""
    process = start(*arguments, env=env, cwd=cwd)
    out, err = process.communicate(timeout=BOUND_SECONDS)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Poll until `condition` holds; fails after BOUND_SECONDS."""
    deadline = time.monotonic() + BOUND_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def written_pid(marker: Path) -> int:
    """The process id in a marker file, once it is there."""
    wait_until(lambda: marker.exists() and marker.read_text(encoding="ascii"), f"{marker.name} was written")
    return int(marker.read_text(encoding="ascii"))


def alive(pid: int) -> bool:
    """Whether the process still runs (a zombie does not)."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rsplit(")", 1)[1].split()[0] not in ("Z", "X")
