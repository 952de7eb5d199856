"""A lock between processes. The system holds it, so that it ends with its holder however that ends."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mla_runtime.errors import EngineError

_POLL_SECONDS = 0.1
_LOCKED_BYTE = 2**30  # far behind what the file says: Windows lets nobody read a byte that is locked


@contextmanager
def held(path: Path, seconds: float, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of the file `path`, which is made and stays.

    `on_wait` is told once where another process has it. Raises `EngineError` that names the file after
    `seconds`, and `OSError` where the file cannot be made or its file system knows no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline, told = time.monotonic() + seconds, False
        while not _try(descriptor):
            owner = _owner(descriptor)
            if time.monotonic() >= deadline:
                raise EngineError(
                    f"{path}: {owner} has held this lock for more than {seconds:g} s; wait for it, or end "
                    "it: a lock ends with its process"
                )
            if not told:
                on_wait(f"{owner} builds the same engines; waiting for it ({path})")
                told = True
            time.sleep(_POLL_SECONDS)
        try:
            _write_owner(descriptor)
            yield
        finally:
            _release(descriptor)
    finally:
        os.close(descriptor)


def _owner(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    said = os.read(descriptor, 20).decode(errors="replace").strip()
    return f"process {said}" if said.isdigit() else "another process"


def _write_owner(descriptor: int) -> None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())


if sys.platform == "win32":
    import msvcrt

    def _try(descriptor: int) -> bool:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def _release(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _release(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
