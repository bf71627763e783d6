"""Environments of stacks: make them in the cache folder, look at them, find their interpreters.

In: a `Stack` and a cache folder. Out: an environment under `stacks/NAME-DIGEST`, whole or not there at all: it is built
beside, imported, and then renamed. An overlay holds the pins and a .pth to the packages of the environment that compat
runs in; a stack that pins another torch gets an environment that shares nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from packaging.utils import canonicalize_name

from compat import stacks
from compat.execute.worker_process import environment_of
from compat.stacks import Base, Stack

RECEIPT = "compat-stack.json"
"""In an environment: what it holds and what it cost."""

PIP_SECONDS = 3600.0
"""Longest wait for pip: a CUDA build of torch over a slow line."""

IMPORT_SECONDS = 300.0
"""Longest wait for all imports of a stack on a cold disk."""

LOCK_SECONDS = 3600.0
"""Longest wait for another process that makes the same environment."""

SHOWN_LINES = 12
"""Of what pip said last."""

_POLL_SECONDS = 0.1
_NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ConnectionResetError|Name or service not known|name resolution|"
    r"Failed to establish a new connection|Network is unreachable"
)
IN_OUR_WAY = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIRE_VIRTUALENV", "PIP_DRY_RUN")
"""The user's settings for pip that contradict `--target`; all others stand."""


class NotCreated(Exception):
    """The stack has no environment here; the message says which command makes it."""


class CreateError(Exception):
    """An environment could not be made; the message says why, with the last words of the tool that failed."""


@dataclass(frozen=True)
class Receipt:
    """What an environment holds and what it cost: distributions that it holds itself, bytes on the disk, seconds."""

    stack: str
    overlay: bool
    python: str
    prefix: str
    installed: dict[str, str] = field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0
    bytes: int = 0


@dataclass(frozen=True)
class Finding:
    """What `check` saw of one distribution or module; `problem` is empty where it is as it should be."""

    subject: str
    wanted: str
    found: str
    problem: str = ""


def stacks_folder(cache: Path | None) -> Path:
    """Where environments are: in `cache`, or in $COMPAT_CACHE, or in the user's cache folder."""
    named = cache or os.environ.get("COMPAT_CACHE")
    if named:
        return Path(named).absolute() / "stacks"
    import platformdirs

    return Path(platformdirs.user_cache_dir("compat")) / "stacks"


def base() -> Base:
    """The environment that compat runs in, by its metadata: nothing is imported."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            versions.setdefault(canonicalize_name(name), distribution.version)
    return Base(platform.python_version(), sys.prefix, versions)


def place(stack: Stack, cache: Path | None, below: Base | None = None) -> Path:
    """The folder of the stack's environment, made or not."""
    return stacks_folder(cache) / f"{stack.name}-{stacks.digest(stack, below or base())}"


def receipt(folder: Path) -> Receipt | None:
    """What the environment at `folder` says of itself; None where there is none."""
    try:
        return Receipt(**json.loads((folder / RECEIPT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def python_of(folder: Path) -> str:
    """The interpreter of the environment at `folder`."""
    return str(folder / "bin" / "python")


def interpreter(named: str, cache: Path | None) -> str:
    """The interpreter of the stack `named`. Raises StackFileError, and NotCreated with the command that makes it."""
    stack = stacks.find(named)
    if stack.current:
        return sys.executable
    folder = place(stack, cache)
    if receipt(folder) is None:
        more = "" if cache is None else f" --cache {cache}"
        older = "; an environment of another state of its file or of this environment exists" if _older(folder) else ""
        raise NotCreated(f"stack {stack.name} is not created{older}: compat stack create {named}{more}")
    return python_of(folder)


def _older(folder: Path) -> list[Path]:
    """Environments of the same stack for another state of its file, or over another environment."""
    form = re.compile(re.escape(folder.name.rpartition("-")[0]) + r"-[0-9a-f]{12}")
    beside = sorted(folder.parent.iterdir()) if folder.parent.is_dir() else []
    return [p for p in beside if form.fullmatch(p.name) and p.name != folder.name and receipt(p) is not None]


def older(stack: Stack, cache: Path | None) -> list[Path]:
    """Environments of `stack` that no run uses from here: its file has changed since, or they lie over another base."""
    return _older(place(stack, cache))


# -- making ------------------------------------------------------------------------------------------------------


def create(stack: Stack, cache: Path | None, say: Callable[[str], None] = lambda text: None) -> Path:
    """Make the environment of `stack` unless it exists; its folder. Raises CreateError, and nothing is left then."""
    below = base()
    if not stacks.fits_python(stack, below.python):
        problem = f"stack {stack.name} needs Python {stack.python}, and this is {below.python}"
        raise stacks.StackFileError(stack.path, "python", problem)
    folder = place(stack, cache, below)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder, say):
            if receipt(folder) is not None:
                say(f"{stack.name} is there already: {folder}")
                return folder
            _clear(folder)
            building = folder.parent / f".{folder.name}.{os.getpid()}"
            try:
                _build(stack, below, building, say)
                os.rename(building, folder)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise CreateError(f"stack {stack.name}: {error.filename or folder}: {error.strerror or error}") from error
    return folder


def _build(stack: Stack, below: Base, building: Path, say: Callable[[str], None]) -> None:
    started = time.monotonic()
    overlay, pins = stacks.overlays(stack, below), stacks.to_install(stack, below)
    _Bare(symlinks=True).create(building)
    site = next((building / "lib").glob("python*/site-packages"))
    own = ", ".join(f"{name} {version}" for name, version in pins.items()) or "nothing of its own"
    say(f"{stack.name}: {own}; " + (f"the rest as in {below.prefix}" if overlay else "with all that they need"))
    if pins:
        _pip(stack, pins, site, ["--no-deps"] if overlay else [])
    if overlay:
        (site / "compat-base.pth").write_text("".join(f"{p}\n" for p in _package_folders()), encoding="utf-8")
    problems = [f for f in check(stack, python_of(building)) if f.problem]
    if problems:
        said = "\n".join(f"  {f.subject}: {f.problem}" for f in problems)
        raise CreateError(f"stack {stack.name} was installed, and does not work:\n{said}")
    made = Receipt(
        stack=stack.name,
        overlay=overlay,
        python=below.python,
        prefix=below.prefix,
        installed=pins,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        seconds=round(time.monotonic() - started, 1),
        bytes=_bytes(building),
    )
    (building / RECEIPT).write_text(json.dumps(asdict(made), indent=1) + "\n", encoding="utf-8")


class _Bare(venv.EnvBuilder):
    """An environment without pip, and without scripts that name the folder it was built in."""

    def setup_scripts(self, context: SimpleNamespace) -> None:
        """None: it is renamed when it is whole, and called by its interpreter."""


def _package_folders() -> list[str]:
    """The folders of this environment's packages, in the order of the search path."""
    folders = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages") and Path(p).is_dir()]
    spec = importlib.util.find_spec("torch")  # of a top-level package: nothing is imported
    if spec is not None and spec.origin is not None:
        folders.append(str(Path(spec.origin).parents[1]))
    return list(dict.fromkeys(folders))


def _pip(stack: Stack, pins: dict[str, str], site: Path, options: list[str]) -> None:
    """Install `pins` into `site` by the pip of this environment, as the user has configured it. Raises CreateError."""
    wanted = [f"{name}=={version}" for name, version in pins.items()]
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-compile"]
    variables = {k: v for k, v in os.environ.items() if k not in IN_OUR_WAY}
    try:
        done = subprocess.run(
            [*command, *options, "--target", str(site), *wanted],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env=variables,
            timeout=PIP_SECONDS,
            preexec_fn=_end_with_parent,
        )
    except subprocess.TimeoutExpired as error:
        raise CreateError(f"stack {stack.name}: pip did not end within {PIP_SECONDS:g} s") from error
    if done.returncode == 0:
        return
    said = [line for line in done.stdout.splitlines() if line.strip()][-SHOWN_LINES:]
    why = f"pip ended with {done.returncode}"
    if any("No module named pip" in line for line in said):
        why = f"the environment of {sys.executable} has no pip ({Path(sys.executable).name} -m ensurepip makes one)"
    elif _NO_NETWORK.search(done.stdout):
        why = "pip reached no package index: is there a network?"
    raise CreateError("\n".join([f"stack {stack.name}: {why}", *(f"  {line}" for line in said)]))


def _end_with_parent() -> None:
    """Let pip die when compat is killed, so that nothing writes on (Linux: prctl(PR_SET_PDEATHSIG))."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


@contextlib.contextmanager
def _alone(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of `folder` inside the block. Raises CreateError when another process keeps it too long."""
    with (folder.parent / f".{folder.name}.lock").open("w", encoding="ascii") as lock:
        deadline, told = time.monotonic() + LOCK_SECONDS, False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say(f"another process is making {folder.name}; waiting for it")
                    told = True
                if time.monotonic() > deadline:
                    raise CreateError(f"another process has been making {folder} for {LOCK_SECONDS:g} s") from None
                time.sleep(_POLL_SECONDS)
        yield


def _clear(folder: Path) -> None:
    """Remove what killed attempts at `folder` have left."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # without a receipt it is none of ours that could be used


def _bytes(folder: Path) -> int:
    """Bytes of all files below `folder`, each counted once; links are not followed."""
    return sum((Path(root) / name).lstat().st_size for root, _, files in os.walk(folder) for name in files)


# -- looking -----------------------------------------------------------------------------------------------------


def check(stack: Stack, python: str) -> list[Finding]:
    """Import torch, transformers, every pinned package and the stack's modules in a child with `python`, and compare
    the versions. Raises CreateError where the child does not answer."""
    wanted = {"torch": "", "transformers": "", **stack.pins}
    command = [python, "-m", "compat.worker.imported", *wanted, "--modules", *stack.imports]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
            env=environment_of(python), timeout=IMPORT_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise CreateError(f"{python}: the imports took more than {IMPORT_SECONDS:g} s") from error
    except OSError as error:
        raise CreateError(f"{python}: cannot be started: {error.strerror}") from error
    try:
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError) as error:
        said = "\n".join(f"  {line}" for line in done.stderr.strip().splitlines()[-SHOWN_LINES:])
        raise CreateError(f"{python}: ended with {done.returncode} while importing\n{said}") from error
    found = []
    for name, version in wanted.items():
        seen = answer["distributions"][name]
        problem = seen["error"]
        if seen["version"] and version and not stacks.same_version(version, seen["version"]):
            problem = f"is {seen['version']}, not {version}" + (f"; {problem}" if problem else "")
        found.append(Finding(name, version, seen["version"], problem))
    found += [Finding(name, "", "", error) for name, error in answer["modules"].items()]
    if not stacks.fits_python(stack, answer["python"]):
        found.append(Finding("python", stack.python, answer["python"], f"is {answer['python']}, not {stack.python}"))
    return found
