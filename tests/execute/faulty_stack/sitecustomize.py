"""A faulty stack: put this folder on PYTHONPATH, and one family of transformers misbehaves in a worker.

COMPAT_TEST_FAULT names what happens, COMPAT_TEST_FAULT_AT when: a sequence length, optionally after the attention
implementation (`sdpa:65`); every forward without it. COMPAT_TEST_MARKER is a file
that is written just before; with COMPAT_TEST_FAULT_ONCE nothing happens once it is there. The family is OPT.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

MODULE = "transformers.models.opt.modeling_opt"
MOST_BYTES = 6 * 2**30
"""`allocate` gives up here, so that a test that fails does not take the machine down."""


def _raise() -> None:
    raise ValueError("the faulty stack raised 12 of 34")


def _hang() -> None:
    while True:
        time.sleep(1)


def _allocate() -> None:
    held: list[bytearray] = []
    while sum(len(x) for x in held) < MOST_BYTES:
        held.append(bytearray(b"x") * (32 * 2**20))
    raise AssertionError("nothing stopped the faulty stack from allocating")


def _sigkill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _segfault() -> None:
    import ctypes

    ctypes.string_at(0)


def _garbage() -> None:
    print('{"status": "ok", "measurements": [], "facts": {}, "kernels": {}}\nnot JSON')
    sys.stdout.flush()
    os.write(1, b'\xff\xfe\x00garbage\n{"status": "unavailable"}\n')


def _read_stdin() -> None:
    if answer := sys.stdin.readline():
        raise AssertionError(f"the faulty stack read {answer!r}, which was meant for the worker")


def _throttle() -> None:
    """The device is slow when its rate is next asked for, after the first time."""
    from compat.worker.ceilings import Canary

    asked, call = [0], Canary.__call__

    def throttled(self: Any) -> float:
        asked[0] += 1
        rate: float = call(self)
        self.last = rate if asked[0] != 2 else 0.1
        return float(self.last)

    Canary.__call__ = throttled  # type: ignore[method-assign]


FAULTS: dict[str, Callable[[], None]] = {
    "raise": _raise,
    "hang": _hang,
    "allocate": _allocate,
    "sigkill": _sigkill,
    "segfault": _segfault,
    "garbage": _garbage,
    "read_stdin": _read_stdin,
    "throttle": _throttle,
}


def _patch(module: Any) -> None:
    fault = FAULTS[os.environ["COMPAT_TEST_FAULT"]]
    implementation, _, length = os.environ.get("COMPAT_TEST_FAULT_AT", "").rpartition(":")
    once = bool(os.environ.get("COMPAT_TEST_FAULT_ONCE"))
    original = module.OPTForCausalLM.forward

    def forward(self: Any, input_ids: Any = None, *arguments: Any, **keywords: Any) -> Any:
        here = not implementation or self.config._attn_implementation == implementation
        marker = os.environ.get("COMPAT_TEST_MARKER", "")
        here = here and not (once and os.path.exists(marker))
        if here and (not length or (input_ids is not None and input_ids.shape[1] == int(length))):
            if marker:
                with open(marker, "w", encoding="ascii") as file:
                    file.write(str(os.getpid()))
            fault()
        return original(self, input_ids, *arguments, **keywords)

    forward.__wrapped__ = original  # type: ignore[attr-defined]
    module.OPTForCausalLM.forward = forward


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _patch(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = _Loader(spec.loader)
        return spec


if os.environ.get("COMPAT_TEST_FAULT"):
    sys.meta_path.insert(0, _Finder())
