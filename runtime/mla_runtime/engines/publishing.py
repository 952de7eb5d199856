"""Engines compiled beside the name they are to have, and renamed into place once they are whole."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mla_runtime.bundle import MANIFEST, Bundle
from mla_runtime.engines.files import hash_files, sync, write_record
from mla_runtime.engines.flavour import Library
from mla_runtime.engines.record import RECORD, Built, Limits
from mla_runtime.engines.wanted import Wanted
from mla_runtime.errors import EngineError

Build = Callable[[Bundle, Library, Sequence[str], Limits, Path, Any], Built]


def published(
    bundle: Bundle, library: Library, wanted: Wanted, final: Path, build: Build, on_progress: Any
) -> Built:
    """Build engines into the folder `final`, in a parent that is there: the old, the new or none remain.

    One process at a time may build into a folder. Raises `EngineError`, and `OSError` for a folder that does
    not take them.
    """
    for left in final.parent.glob(f".{final.name}.*"):  # of one that was killed
        shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.staging-"))
    try:
        built = build(bundle, library, wanted.compiled, wanted.limits, staging, on_progress)
        bundle.check_unchanged()
        built = replace(built, cards=wanted.cards, gpu=wanted.gpu)
        if why := wanted.misfit(built):
            raise EngineError(f"{bundle.path}: the engines that were built {why}; please report this")
        hash_files(built, staging)
        for engine in built.engines:
            sync(staging / engine.file)
        write_record(built, staging)
        sync(staging)
        if final.exists():
            discard(final)
        staging.rename(final)
        sync(final.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return built


def discard(folder: Path) -> None:
    """Remove a folder of engines; at once, and what remains of them is never found again."""
    gone = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.removed-"))
    folder.rename(gone / folder.name)
    shutil.rmtree(gone, ignore_errors=True)


def check_free(folder: Path, *, replaced: bool) -> None:
    """Raise `EngineError` unless `folder` can be built: it is not there, or holds engines to be `replaced`.

    Nothing is built into a bundle, which may be handed on.
    """
    if inside := next((path for path in folder.resolve().parents if (path / MANIFEST).exists()), None):
        raise EngineError(
            f"{folder}: lies in the bundle {inside}; engines are not part of one, name a folder beside"
        )
    if not folder.parent.is_dir():
        raise EngineError(f"{folder}: its folder {folder.parent} does not exist; make it first")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / RECORD).is_file():
        raise EngineError(f"{folder}: is there, and no engines of this toolkit; name another folder")
    if not replaced:
        raise EngineError(f"{folder}: engines are there; name another folder, or replace them with --rebuild")
