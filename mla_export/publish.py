"""Publishing a folder once: built beside its name, flushed, renamed into place, or not there at all."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mla_runtime.errors import ExportError

MANIFEST = "bundle.json"


def check_target(out: Path, *, force: bool) -> None:
    """Refuse a target that cannot or may not be replaced; make its parent folder.

    What killed exports to the same name left is removed here, and an old bundle that one of them had
    moved away is put back.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise ExportError(f"{out}: its folder cannot be made ({cause}); choose another") from cause
    if not os.access(out.parent, os.W_OK):
        raise ExportError(f"{out}: the folder {out.parent} cannot be written to; choose another")
    _sweep(out)
    if not out.exists() and not out.is_symlink():
        return
    if not (out.is_dir() and (out / MANIFEST).is_file()) or out.is_symlink():
        raise ExportError(f"{out} is there and is not a bundle, so it is not replaced; choose another name")
    if not force:
        raise ExportError(f"{out} is there already; give --force to replace it, or choose another name")


def check_space(out: Path, needed: int) -> None:
    """Refuse when the disk of `out` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        gigabytes = f"{needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free"
        msg = f"{out}: {gigabytes}; free some or choose another disk"
        raise ExportError(msg)


@contextmanager
def staged(out: Path, *, force: bool) -> Iterator[Path]:
    """Yield a staging folder beside `out` that becomes `out` when the block ends without an error.

    Whatever interrupts it, `out` is then the old folder, the new one, or missing; never a mix. After
    an error the staging folder is removed; after a kill, the next export of the same name removes it.
    `out` is checked once more before it is replaced: it may have come up since.
    """
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.staging-", dir=out.parent))
    staging.chmod(0o777 & ~_umask())
    try:
        with _owned(staging):
            yield staging
            for file in staging.iterdir():
                _sync(file)
            _sync(staging)
            check_target(out, force=force)
            _replace(staging, out)
    except OSError as cause:
        raise ExportError(f"{out}: writing failed ({cause}); nothing was changed there") from cause
    finally:
        shutil.rmtree(staging, ignore_errors=True)


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


def _sweep(out: Path) -> None:
    """Remove what nobody owns any more; put back an old bundle that a killed export had moved away."""
    pattern = re.compile(rf"\.{re.escape(out.name)}\.(staging|replaced)-\w+")
    for path in sorted(out.parent.iterdir()):
        match = pattern.fullmatch(path.name)
        if not match or not path.is_dir() or path.is_symlink():
            continue
        try:
            with _owned(path):
                if match[1] == "replaced" and not out.exists():
                    path.rename(out)
                else:
                    shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue  # another export's, which is alive


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder that lasts as long as this process, and through renames."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _umask() -> int:
    """Give the process's umask: a published folder has the permissions of any other."""
    current = os.umask(0)
    os.umask(current)
    return current
