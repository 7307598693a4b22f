"""What the engine is doing, on the error output of a terminal; nothing at all where that is no terminal."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Iterator


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.start = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        print(f"[{time.monotonic() - self.start:6.1f} s] {record.getMessage()}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress() -> Iterator[None]:
    """Show the steps of the engine while it works, with the seconds since the beginning; warnings in one line each."""
    log = logging.getLogger("speedup")
    lines, level, show = _Lines(), log.level, warnings.showwarning
    if sys.stderr.isatty():
        log.addHandler(lines)
        log.setLevel(logging.INFO)
    warnings.showwarning = lambda message, *_, **__: print(f"speedup: warning: {message}", file=sys.stderr)
    try:
        yield
    finally:
        warnings.showwarning = show
        log.removeHandler(lines)
        log.setLevel(level)


def step(text: str) -> None:
    """Tell of a step of a command itself."""
    logging.getLogger("speedup").info(text)
