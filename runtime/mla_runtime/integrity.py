"""Hashes of a bundle's files, and the stamp that says when they need not be hashed again.

The stamp lives in the user's cache folder, never in the bundle: whoever can change a bundle must not
be able to vouch for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from mla_runtime.errors import BundleError
from mla_runtime.manifest import FileEntry

_BLOCK = 4 * 2**20
OnBytes = Callable[[int], None]
Stamp = list[int | str]


def check_sizes(paths: Mapping[str, Path], files: Mapping[str, FileEntry]) -> None:
    """Raise `BundleError` for the first file that is shorter or longer than its manifest says."""
    for name, entry in files.items():
        size = paths[name].stat().st_size
        if size != entry.size:
            raise BundleError(
                f"{paths[name]}: {size} bytes, not the {entry.size} of bundle.json; get the bundle again"
            )


def sha256(path: Path, on_bytes: OnBytes | None = None) -> str:
    """Hash a file in full; `on_bytes` is called with the bytes hashed since its last call."""
    state = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            state.update(block[:count])
            if on_bytes is not None:
                on_bytes(count)
    return state.hexdigest()


def verify_hashes(
    paths: Mapping[str, Path], files: Mapping[str, FileEntry], on_bytes: OnBytes | None = None
) -> None:
    """Hash every file in full; raise `BundleError` for the first that differs.

    `on_bytes` is called with the number of bytes hashed since its last call.
    """
    check_sizes(paths, files)
    for name, entry in files.items():
        found = sha256(paths[name], on_bytes)
        if found != entry.sha256:
            msg = f"{paths[name]}: SHA-256 {found} is not {entry.sha256} of bundle.json; "
            raise BundleError(msg + "the file is damaged, get the bundle again")


def stamps(paths: Mapping[str, Path], files: Mapping[str, FileEntry]) -> dict[str, Stamp]:
    """Give what tells that files are those that were hashed: device, inode, size, times, expected hash."""
    found: dict[str, Stamp] = {}
    for name, entry in files.items():
        s = paths[name].stat()
        # ctime too: it moves even when whoever changed the file has set its mtime back.
        found[name] = [s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns, entry.sha256]
    return found


def remembered(root: Path) -> object:
    """Give what was kept for the folder `root`, or None."""
    try:
        return json.loads(_stamp_file(root).read_bytes())
    except (OSError, ValueError):
        return None


def remember(root: Path, found: Mapping[str, object]) -> None:
    """Keep what was found of `root`. A cache folder that cannot be written only means hashing again."""
    path = _stamp_file(root)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w") as file:
            json.dump(found, file)
        Path(name).replace(path)
    except OSError:
        return


def cache_folder() -> Path:
    """Give this user's cache folder of the toolkit; `XDG_CACHE_HOME` is honoured everywhere."""
    if (base := os.environ.get("XDG_CACHE_HOME", "")) and Path(base).is_absolute():
        return Path(base) / "mla-export"
    if sys.platform == "win32" and (base := os.environ.get("LOCALAPPDATA", "")):
        return Path(base) / "mla-export"
    return Path(os.path.expanduser("~")) / ".cache" / "mla-export"  # noqa: PTH111 - Path.home() raises without a home


def _stamp_file(root: Path) -> Path:
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()
    return cache_folder() / "hashed" / f"{name}.json"
