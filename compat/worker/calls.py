"""Calls into the stack under test, told apart from the harness's own code.

An exception that leaves `under_test` is the stack's (a refusal, a bug, no memory); any other is a fault of ours and
ends as outcome `error`. The seconds spent inside are the run's model time, so that the harness's own cost can be
stated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StackError(Exception):
    """The stack under test raised `original` during `phase` (`load`, `switch`, `forward`, `generate`, `pipeline`
    ...)."""

    def __init__(self, phase: str, original: BaseException) -> None:
        super().__init__(f"{phase}: {type(original).__name__}: {original}")
        self.phase = phase
        self.original = original


class Unavailable(Exception):
    """Something that the cell needs is not on this machine; the message says what, and how to get it."""


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that host or device had no memory left."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text


class ModelClock:
    """Seconds spent in the stack under test since `reset`; nested calls count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def reset(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        self._depth += 1
        started = time.perf_counter()
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.seconds += time.perf_counter() - started


CLOCK = ModelClock()


@contextmanager
def under_test(phase: str) -> Iterator[None]:
    """Run a call into the stack under test. Raises StackError from whatever it raises."""
    with CLOCK.running():
        try:
            yield
        except (StackError, Unavailable):
            raise
        except Exception as error:
            raise StackError(phase, error) from error
