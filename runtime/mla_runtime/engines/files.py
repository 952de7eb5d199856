"""A folder of engines on disk: its record read strictly, its files hashed before they are loaded."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from mla_runtime import integrity
from mla_runtime.engines.record import RECORD, Built, parse
from mla_runtime.errors import EngineError
from mla_runtime.fields import read_json
from mla_runtime.manifest import FileEntry
from mla_runtime.paths import guarded


def read_record(folder: Path) -> Built:
    """Read the record of a folder of engines; raises `EngineError` for none and for a damaged one."""
    if not (folder / RECORD).is_file():
        raise EngineError(f"{folder}: no engines here, there is no {RECORD}; build them: mla-export build")
    return parse(read_json(guarded(folder, RECORD, str(folder), EngineError), EngineError), folder / RECORD)


def check_files(built: Built, folder: Path) -> None:
    """Raise `EngineError` unless every engine is the file, of the size and the SHA-256, of its record.

    As with bundles a file is hashed when it is first seen, and again when its inode, size or times differ.
    """
    paths, entries = _listed(built, folder)
    try:
        stamps = {"engines": integrity.stamps(paths, entries)}
    except OSError as cause:
        raise EngineError(f"{folder}: engines cannot be read ({cause})") from cause
    if integrity.remembered(folder) != stamps:
        hash_files(built, folder)
        integrity.remember(folder, stamps)


def hash_files(built: Built, folder: Path) -> None:
    """Do what `check_files` does, and hash whatever was hashed before."""
    paths, entries = _listed(built, folder)
    try:
        for name, entry in entries.items():
            size = paths[name].stat().st_size
            if size != entry.size:
                raise EngineError(f"{paths[name]}: {size} bytes, not the {entry.size} of {RECORD}")
            if integrity.sha256(paths[name]) != entry.sha256:
                raise EngineError(f"{paths[name]}: the file is damaged, its SHA-256 is not that of {RECORD}")
    except OSError as cause:
        raise EngineError(f"{folder}: engines cannot be read ({cause})") from cause


def _listed(built: Built, folder: Path) -> tuple[dict[str, Path], dict[str, FileEntry]]:
    """Give path and entry of each engine; raises `EngineError` for a name that leads out of the folder."""
    where = str(folder / RECORD)
    paths = {engine.file: guarded(folder, engine.file, where, EngineError) for engine in built.engines}
    return paths, {engine.file: FileEntry(engine.size, engine.sha256) for engine in built.engines}


def write_record(built: Built, folder: Path) -> None:
    """Write the record beside its name and rename it into place, all of it or nothing."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{RECORD}.")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(built.json(), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(folder / RECORD)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk; Windows has no such thing for folders."""
    if sys.platform == "win32":
        if path.is_dir():
            return
        descriptor = os.open(path, os.O_RDWR | os.O_BINARY)
    else:
        descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
