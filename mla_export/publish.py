"""Publishing a folder once: built beside its name, flushed, renamed into place, or not there at all."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mla_runtime.errors import ExportError

MANIFEST = "bundle.json"


def check_target(out: Path, *, force: bool) -> None:
    """Refuse a target that cannot or may not be replaced; make its parent folder.

    An old bundle that a killed export had moved away is put back here.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise ExportError(f"{out}: its folder cannot be made ({cause}); choose another") from cause
    if not os.access(out.parent, os.W_OK):
        raise ExportError(f"{out}: the folder {out.parent} cannot be written to; choose another")
    _put_back(out)
    if not out.exists() and not out.is_symlink():
        return
    if not (out.is_dir() and (out / MANIFEST).is_file()) or out.is_symlink():
        raise ExportError(f"{out} is there and is not a bundle, so it is not replaced; choose another name")
    if not force:
        raise ExportError(f"{out} is there already; give --force to replace it, or choose another name")


def _nothing(staging: Path) -> frozenset[str]:
    del staging
    return frozenset()


@contextmanager
def staged(
    out: Path, *, force: bool, needed: int = 0, keep: Callable[[Path], frozenset[str]] = _nothing
) -> Iterator[Path]:
    """Yield a staging folder beside `out` that becomes `out` when the block ends without an error.

    Before anything else it refuses a disk without room for `needed` bytes; what is in a folder that is taken
    over counts as there, and is kept when the rest has no room.

    Whatever interrupts it, `out` is then the old folder, the new one, or missing; never a mix. After
    an error the staging folder is removed. A kill leaves it, and so does Ctrl-C where `keep` names files of
    it: the next export to the same name takes it over with the files that `keep` then names, or removes it.
    `out` is checked once more before it is replaced: it may have come up since.
    """
    staging, lock = _staging(out, keep)
    kept = False
    try:
        if short := _short(out, needed, staging):
            kept = bool(keep(staging))
            raise ExportError(short)
        yield staging
        for file in staging.iterdir():
            _sync(file)
        _sync(staging)
        check_target(out, force=force)
        _replace(staging, out)
    except OSError as cause:
        raise ExportError(f"{out}: writing failed ({cause}); nothing was changed there") from cause
    except KeyboardInterrupt as interrupt:
        kept = bool(keep(staging))
        if not kept:
            raise
        msg = f"interrupted; what was finished is in {staging}: the same command goes on from there"
        raise KeyboardInterrupt(msg) from interrupt
    finally:
        if not kept:
            shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)


def _short(out: Path, needed: int, staging: Path) -> str | None:
    """Say what is needed and what is free where that is less; what lies in `staging` is needed no more."""
    there = sum(file.stat().st_size for file in staging.iterdir())
    free = shutil.disk_usage(staging).free
    if free >= needed - there:
        return None
    wanted = f"{needed / 1e9:.2f} GB are needed"
    if there:
        wanted += f", {there / 1e9:.2f} GB of them are there ({staging}),"
    return f"{out}: {wanted} and {free / 1e9:.2f} GB are free; free some or choose another disk"


def _staging(out: Path, keep: Callable[[Path], frozenset[str]]) -> tuple[Path, int]:
    """Give a staging folder and its lock: one to go on with, or a new one. Removes any other left one."""
    found: tuple[Path, int] | None = None
    for path in _left(out, "staging"):
        try:
            lock = _claim(path)
        except OSError:
            continue  # another export's, which is alive
        names = frozenset() if found else keep(path)
        if names:
            found = path, lock
            for file in path.iterdir():
                if file.name not in names:
                    file.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
    if found:
        return found
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.staging-", dir=out.parent))
    staging.chmod(0o777 & ~_umask())
    return staging, _claim(staging)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(staging: Path, out: Path) -> None:
    if not out.exists():
        staging.rename(out)
        _sync(out.parent)
        return
    old = out.parent / f".{out.name}.replaced-{secrets.token_hex(4)}"
    with _owned(out):
        try:
            out.rename(old)
            staging.rename(out)
        except BaseException:
            if old.exists() and not out.exists():
                old.rename(out)
            raise
        _sync(out.parent)
        shutil.rmtree(old, ignore_errors=True)


def _left(out: Path, kind: str) -> list[Path]:
    """Give the folders of a kind that exports to `out` left or are at work in."""
    pattern = re.compile(rf"\.{re.escape(out.name)}\.{kind}-\w+")
    found = sorted(path for path in out.parent.iterdir() if pattern.fullmatch(path.name))
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def _put_back(out: Path) -> None:
    """Put back an old bundle that a killed export had moved away, or remove it where a new one is there."""
    for path in _left(out, "replaced"):
        try:
            with _owned(path):
                if out.exists():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.rename(out)
        except OSError:
            continue  # another export's, which is alive


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder that lasts as long as this process, and through renames."""
    descriptor = _claim(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def _claim(folder: Path) -> int:
    """Lock a folder and give the descriptor that holds the lock; OSError where another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _umask() -> int:
    """Give the process's umask: a published folder has the permissions of any other."""
    current = os.umask(0)
    os.umask(current)
    return current
