"""How a worker's end is told, and that nothing of it is left: processes that speak the protocol and need no torch."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from compat.execute.worker_process import Stopped, WorkerProcess, default_memory_limit

from .running import alive, wait_until, written_pid

HELLO = """
import json, os, subprocess, sys, time
def answer(**content):
    print(json.dumps(content), flush=True)
hello = json.loads(sys.stdin.readline())
assert hello == {"op": "hello"}
answer(status="ok", environment={"python": "stub"})
"""

ECHO = (
    HELLO
    + """
for line in sys.stdin:
    answer(status="ok", asked=json.loads(line)["check"])
"""
)


def _worker(folder: Path, script: str, **more: object) -> WorkerProcess:
    """A worker whose process runs `script` in place of compat.worker."""
    (folder / "stub.py").write_text(script, encoding="utf-8")
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\\nexec {sys.executable} -u "{folder}/stub.py"\\n'.replace("\\n", "\n"), encoding="ascii"
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return WorkerProcess(folder / "worker.log", python=str(python), **more)  # type: ignore[arg-type]


ASK = {"op": "check", "check": "load"}


def test_one_process_answers_many_requests(tmp_path: Path) -> None:
    worker = _worker(tmp_path, ECHO)
    assert worker.pid is None
    assert worker.ask(ASK, 30) == {"status": "ok", "asked": "load"}
    assert worker.environment == {"python": "stub"}
    pid = worker.pid
    assert worker.ask(ASK | {"check": "speed"}, 30) == {"status": "ok", "asked": "speed"}
    assert worker.pid == pid
    worker.close()
    assert worker.pid is None
    assert pid is not None
    assert not alive(pid)
    worker.close()


def test_a_workers_own_gpu_comes_first_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 2,7")
    script = HELLO + "for line in sys.stdin:\n    answer(status='ok', sees=os.environ['CUDA_VISIBLE_DEVICES'])\n"
    for gpu, order in ((0, "4, 2,7"), (1, "2,7,4"), (2, "7,4,2")):
        worker = _worker(tmp_path, script, gpu=gpu)
        assert worker.ask(ASK, 30)["sees"] == order
        worker.close()
    worker = _worker(tmp_path, script, gpu=None)
    assert worker.ask(ASK, 30)["sees"] == "", "a run on the CPU sees none"
    worker.close()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("compat.device._nvidia_gpus", lambda: (3, "Example GPU"))
    worker = _worker(tmp_path, script, gpu=2)
    assert worker.ask(ASK, 30)["sees"] == "2,0,1"
    worker.close()


def test_an_exit_is_a_crash_with_its_status_and_the_end_of_stderr(tmp_path: Path) -> None:
    script = HELLO + "sys.stdin.readline()\nprint('x' * 9000 + 'the end ✗', file=sys.stderr)\nsys.exit(7)\n"
    worker = _worker(tmp_path, script)
    answer = worker.ask(ASK, 30)
    assert (answer["status"], answer["reason"]) == ("crash", "the worker exited with status 7")
    assert answer["stderr"].endswith("the end ✗")
    assert len(answer["stderr"].encode()) <= 4000
    assert worker.pid is None


def test_stderr_of_an_earlier_process_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    script = HELLO + "sys.stdin.readline()\nprint(f'I am {os.getpid()}', file=sys.stderr)\nsys.exit(1)\n"
    worker = _worker(tmp_path, script)
    first, second = worker.ask(ASK, 30)["stderr"], worker.ask(ASK, 30)["stderr"]
    assert first.count("I am") == second.count("I am") == 1
    assert first != second, "the next check got a fresh process"
    assert (tmp_path / "worker.log").read_text(encoding="utf-8").count("I am") == 2, "the log keeps both"


def test_a_process_that_does_not_start_is_a_crash(tmp_path: Path) -> None:
    worker = _worker(tmp_path, "raise ImportError('libcudart.so.12: cannot open shared object file')")
    answer = worker.ask(ASK, 30)
    assert answer["status"] == "crash"
    assert "libcudart.so.12" in answer["stderr"]
    assert worker.environment is None


def test_a_signal_is_named(tmp_path: Path) -> None:
    worker = _worker(tmp_path, HELLO + "sys.stdin.readline()\nos.kill(os.getpid(), 11)\n")
    assert worker.ask(ASK, 30)["reason"] == "the worker was killed by SIGSEGV"


def test_a_timeout_ends_the_process_and_everything_it_started(tmp_path: Path) -> None:
    marker = tmp_path / "grandchild"
    script = HELLO + (
        "sys.stdin.readline()\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        f"open({str(marker)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(1000)\n"
    )
    worker = _worker(tmp_path, script)
    answer = worker.ask(ASK, 1.0)
    assert (answer["status"], answer["reason"]) == ("timeout", "no answer within 1 s")
    assert worker.pid is None
    child = written_pid(marker)
    wait_until(lambda: not alive(child), "the grandchild ended")


def test_the_next_request_after_a_timeout_gets_a_fresh_process(tmp_path: Path) -> None:
    once = tmp_path / "once"
    script = HELLO + (
        "for line in sys.stdin:\n"
        f"    if not os.path.exists({str(once)!r}):\n"
        f"        open({str(once)!r}, 'w').close()\n"
        "        time.sleep(1000)\n"
        "    answer(status='ok', late=False)\n"
    )
    worker = _worker(tmp_path, script)
    assert worker.ask(ASK, 0.5)["status"] == "timeout"
    assert worker.ask(ASK, 30) == {"status": "ok", "late": False}, "a late answer must not be taken for this one"
    worker.close()


def test_memory_beyond_the_limit_is_told_apart_from_a_crash(tmp_path: Path) -> None:
    script = HELLO + "sys.stdin.readline()\nheld = bytearray(b'x') * 2**28\ntime.sleep(1000)\n"
    worker = _worker(tmp_path, script, memory_limit_bytes=2**27)
    answer = worker.ask(ASK, 60)
    assert answer["status"] == "oom"
    assert "more than its limit of 0.1 GiB" in answer["reason"]
    assert worker.pid is None


def test_stopping_gives_up_what_is_under_way(tmp_path: Path) -> None:
    marker = tmp_path / "asked"
    script = HELLO + f"sys.stdin.readline()\nopen({str(marker)!r}, 'w').write('1')\ntime.sleep(1000)\n"
    worker = _worker(tmp_path, script, stopping=marker.exists)
    with pytest.raises(Stopped):
        worker.ask(ASK, 60)
    assert worker.pid is None


def test_a_workers_process_leads_a_group_of_its_own(tmp_path: Path) -> None:
    """Ctrl-C in the terminal is for the parent, which ends its workers in order."""
    worker = _worker(tmp_path, ECHO)
    worker.start()
    assert worker.pid is not None
    assert os.getpgid(worker.pid) == worker.pid != os.getpgid(0)
    worker.close()


def test_a_worker_finds_compat_and_what_the_user_put_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "mine"))
    monkeypatch.chdir(tmp_path)
    worker = _worker(tmp_path, HELLO + "import compat\nsys.stdin.readline()\nanswer(status='ok', path=sys.path)\n")
    path = worker.ask(ASK, 30)["path"]
    assert str(tmp_path / "mine") in path
    worker.close()


def test_the_default_limit_leaves_the_machine_some_memory() -> None:
    limit = default_memory_limit()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert limit is not None
    assert 0 < limit < 0.86 * total


def test_another_interpreter_gets_compat_and_no_stack_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine", "stack/torch"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "mine"), str(tmp_path / "stack")]))
    worker = _worker(tmp_path, HELLO + "import compat\nsys.stdin.readline()\nanswer(status='ok', path=sys.path)\n")
    path = worker.ask(ASK, 30)["path"]
    worker.close()
    assert str(tmp_path / "mine") in path
    assert str(tmp_path / "stack") not in path
    (own,) = (p for p in path if Path(p).name.startswith("compat-package-"))
    assert [f.name for f in Path(own).iterdir()] == ["compat"], "not what stands beside it in site-packages"
