"""stdout as the commands write to it: any encoding will do, and a failed write is told from other errors."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import IO, Any


class StdoutError(Exception):
    """What was printed could not be written to stdout; the message is the system's reason."""


@contextlib.contextmanager
def guarded_stdout() -> Iterator[None]:
    """Let everything be printed inside, flushed at the end; what stdout's encoding lacks becomes "?".

    Raises `StdoutError` for a write that fails, and BrokenPipeError where nobody reads any more.
    """
    if sys.stdout is None:
        raise StdoutError("it is closed")
    real = sys.stdout
    # handlers that somebody chose stay; stderr always has one that takes every character
    if getattr(real, "errors", None) in ("strict", "surrogateescape") and hasattr(real, "reconfigure"):
        real.reconfigure(errors="replace")
    told = _Told(real)
    with contextlib.redirect_stdout(told):
        try:
            yield
        except SystemExit:  # --help prints too
            told.flush()
            raise
        told.flush()


def abandon_stdout() -> None:
    """Send what is left for stdout nowhere: the interpreter flushes it once more when it ends."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Told:
    """A stream whose OSErrors say that they are its own: the system's name no file."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _telling():
            return self._stream.write(text)

    def flush(self) -> None:
        with _telling():
            self._stream.flush()


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as cause:
        raise StdoutError(cause.strerror or str(cause)) from cause
