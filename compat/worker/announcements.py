"""What the library says of itself while it works: log lines and warnings, whatever its verbosity is set to.

In: a block of calls. Out: the lines, also those that it says once only and has said before.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Listener(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def announcements(library: str = "transformers") -> Iterator[list[str]]:
    """Collect what `library` logs from level warning on, and every Python warning; complete when the block ends."""
    said: list[str] = []
    once: Any = getattr(logging.Logger, "warning_once", None)  # transformers adds it, with a cache of what was said
    if hasattr(once, "cache_clear"):
        once.cache_clear()
    logger = logging.getLogger(library)
    level, handlers, propagates = logger.level, logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [_Listener(said)], False
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
        said += [str(w.message) for w in caught]
    finally:
        logger.handlers, logger.propagate = handlers, propagates
        logger.setLevel(level)
