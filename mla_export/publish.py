"""Publishing a folder once: built beside its name, flushed, renamed into place, or not there at all."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mla_runtime.errors import ExportError

MANIFEST = "bundle.json"


def check_target(out: Path, *, force: bool) -> None:
    """Refuse a target that cannot or may not be replaced, before any work is done; make its parent folder."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise ExportError(f"{out}: its folder cannot be made ({cause}); choose another") from cause
    if not os.access(out.parent, os.W_OK):
        raise ExportError(f"{out}: the folder {out.parent} cannot be written to; choose another")
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
def staged(out: Path) -> Iterator[Path]:
    """Yield a staging folder beside `out` that becomes `out` when the block ends without an error.

    Whatever interrupts it, `out` is then the old folder, the new one, or missing; never a mix. After
    an error the staging folder is removed; after a kill, the next export of the same name removes it.
    """
    _sweep(out)
    staging = out.parent / f".{out.name}.staging-{os.getpid()}"
    staging.mkdir()
    try:
        yield staging
        for file in staging.iterdir():
            _sync(file)
        _sync(staging)
        _replace(staging, out)
    except OSError as cause:
        raise ExportError(f"{out}: writing failed ({cause}); nothing was changed there") from cause
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hash a file of the staging folder."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(staging: Path, out: Path) -> None:
    old = out.parent / f".{out.name}.replaced-{os.getpid()}"
    if out.exists():
        out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    _sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Remove what killed exports to the same name left; put back an old bundle that one had moved away."""
    pattern = re.compile(rf"\.{re.escape(out.name)}\.(staging|replaced)-(\d+)")
    for path in sorted(out.parent.iterdir()):
        match = pattern.fullmatch(path.name)
        if not match or _alive(int(match[2])):
            continue
        if match[1] == "replaced" and not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
