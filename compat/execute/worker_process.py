"""One worker process: start it, ask it, and say how it ended when it does not answer.

In: a request (a dict that the worker understands). Out: its answer, or an answer of our own with status `timeout`,
`crash` or `oom`. Every wait has a deadline; the worker's memory is watched while it works.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from compat.device import container_limit, visible_from

POLL_SECONDS = 0.05
START_SECONDS = 300.0
"""Longest wait for a worker's first answer: importing torch and transformers on a cold disk."""

STDERR_TAIL_BYTES = 4000


class Stopped(Exception):
    """The run was asked to stop while a check was under way; its answer, if any, is not recorded."""


class WorkerProcess:
    """A worker for one device. `memory_limit_bytes` bounds its resident memory."""

    def __init__(
        self,
        stderr: Path,
        memory_limit_bytes: int | None = None,
        stopping: Callable[[], bool] = lambda: False,
        python: str = sys.executable,
        gpu: int | None = 0,
    ) -> None:
        self.stderr = stderr
        self.memory_limit_bytes = memory_limit_bytes
        self.stopping = stopping
        self.python = python
        self.gpu = gpu
        """Which of the GPUs that we see is the first one, `cuda:0`, to the process; None for a run on the CPU, which
        must see none: libraries that are not told where to put a model put it on a GPU where there is one."""
        self.environment: dict[str, Any] | None = None
        """What the process said of its machine and packages when it started."""
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._stderr_start = 0

    @property
    def pid(self) -> int | None:
        """The running process, or None."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> dict[str, Any]:
        """Start the process and return its answer to `hello` (or how it ended)."""
        self.close()
        log = self.stderr.open("ab")
        self._stderr_start = log.tell()
        self._process = subprocess.Popen(
            [self.python, "-u", "-m", "compat.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env=environment_of(self.python) | self._gpus(),
            start_new_session=True,  # Ctrl-C in the terminal is for the parent
        )
        log.close()
        self._lines = queue.Queue()
        threading.Thread(target=_pump, args=(self._process, self._lines), daemon=True).start()
        answer = self._ask({"op": "hello"}, START_SECONDS)
        self.environment = answer.get("environment")
        return answer

    def _gpus(self) -> dict[str, str]:
        if self.gpu is None:
            return {"CUDA_VISIBLE_DEVICES": ""}
        return {"CUDA_VISIBLE_DEVICES": visible_from(self.gpu), "COMPAT_FIRST_GPU": str(self.gpu)} if self.gpu else {}

    def ask(self, request: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
        """The answer to `request`; starts the process first when it is not running. Raises Stopped."""
        if self.pid is None:
            answer = self.start()
            if answer["status"] != "ok":
                return answer
        return self._ask(request, timeout_seconds)

    def _ask(self, request: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        kills = _oom_kills()
        started = time.monotonic()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except OSError:
            return self._ended(process, kills, started)
        while True:
            try:
                line = self._lines.get(timeout=POLL_SECONDS)
            except queue.Empty:
                held = _resident_bytes(process.pid)
                if self.memory_limit_bytes is not None and held > self.memory_limit_bytes:
                    self.close()
                    reason = (
                        f"the worker held {_gib(held)} GiB, more than its limit of {_gib(self.memory_limit_bytes)} GiB"
                    )
                    return self._answer("oom", reason, started)
                if time.monotonic() - started > timeout_seconds:
                    self.close()
                    return self._answer("timeout", f"no answer within {timeout_seconds:g} s", started)
                if self.stopping():
                    self.close()
                    raise Stopped from None
                continue
            if line is None:
                return self._ended(process, kills, started)
            answer: dict[str, Any] = json.loads(line)
            return answer

    def _ended(self, process: subprocess.Popen[str], kills: int, started: float) -> dict[str, Any]:
        """How a worker that is gone has ended."""
        code = process.wait()
        tail = self.stderr_tail()
        self.close()
        if code == -signal.SIGKILL and _oom_kills() > kills:
            return self._answer("oom", "the kernel killed the worker: the host ran out of memory", started, tail)
        if code < 0:
            return self._answer("crash", f"the worker was killed by {signal.Signals(-code).name}", started, tail)
        return self._answer("crash", f"the worker exited with status {code}", started, tail)

    def _answer(self, status: str, reason: str, started: float, stderr: str = "") -> dict[str, Any]:
        answer = {"status": status, "reason": reason, "seconds": round(time.monotonic() - started, 3)}
        return {**answer, "stderr": stderr} if stderr else answer

    def stderr_tail(self) -> str:
        """The end of what this process wrote to stderr."""
        try:
            with self.stderr.open("rb") as file:
                file.seek(max(self._stderr_start, self.stderr.stat().st_size - STDERR_TAIL_BYTES))
                return file.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def close(self) -> None:
        """End the process and everything that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # a request that the dead worker never read
                    stream.close()


def _pump(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    """Move answers from the pipe to the queue; None marks the end."""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.put(line)
    except ValueError:
        pass  # closed under us: the process was ended on purpose
    lines.put(None)


def environment_of(python: str = sys.executable) -> dict[str, str]:
    """The variables of a process of `python`: the parent's, with compat importable and libraries told to keep quiet.
    Another interpreter gets compat alone, and none of the user's paths that hold a stack: its own packages are the ones
    under test."""
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    if python == sys.executable:
        paths.append(str(Path(__file__).resolve().parents[2]))
    else:
        stacks = ("torch", "transformers", "compat")
        paths = [p for p in paths if not any((Path(p) / name).is_dir() for name in stacks)] + [_compat_alone()]
    return {
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "passive",  # spinning threads stall each other when anything else runs on the machine
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
    }


@cache
def _compat_alone() -> str:
    """A folder that holds compat (by a link) and no other package; it goes with this process."""
    folder = tempfile.TemporaryDirectory(prefix="compat-package-")
    atexit.register(folder.cleanup)
    (Path(folder.name) / "compat").symlink_to(Path(__file__).resolve().parents[1], target_is_directory=True)
    return folder.name


def _resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where the system does not say."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _oom_kills() -> int:
    """How many processes the kernel has killed for memory since boot; 0 where the system does not say."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            return next((int(x.split()[1]) for x in file if x.startswith("oom_kill ")), 0)
    except OSError:
        return 0


def default_memory_limit(workers: int = 1) -> int | None:
    """A worker's share of 85% of the memory that is available now: beyond it they would take the machine down."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            available = next(int(x.split()[1]) * 1024 for x in file if x.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    return int(0.85 * min(available, container_limit() or available) / workers)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f}"
