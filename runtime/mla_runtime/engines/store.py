"""The user's own store of engines: found there or built there, once, and checked before every use.

    <cache folder>/engines/<bundle>/<flavour>-<version>-<cards>-<limits>/   engine.json and engines
    <cache folder>/engines/locks/                                           a lock for each such name

Nothing else is looked into: a bundle's folder may hold any number of engines, and none is loaded. Engines are
code, and so the folder is its user's alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mla_runtime.bundle import MANIFEST, Bundle
from mla_runtime.engines.files import check_files, read_record
from mla_runtime.engines.flavour import Library
from mla_runtime.engines.lock import held
from mla_runtime.engines.progress import OnProgress
from mla_runtime.engines.publishing import Build, discard, published
from mla_runtime.engines.record import RECORD, Built, Limits
from mla_runtime.engines.wanted import Wanted
from mla_runtime.errors import EngineError
from mla_runtime.integrity import cache_folder

KEPT_BYTES = 16 * 2**30  # of all engines together; those used longest ago go first
WAIT_SECONDS = 3600.0
_REASONS = 3  # why so many of those that are there do not serve is told, of those used last

Say = Callable[[str], None]


def warn(sentence: str) -> None:
    """Tell who listens to the log, which without further ado is who reads stderr."""
    logging.getLogger("mla_runtime").warning("%s", sentence)


def compile_engines(
    bundle: Bundle,
    library: Library,
    cards: Sequence[str],
    limits: Limits,
    folder: Path,
    on_progress: OnProgress | None,
) -> Built:
    """Compile with TensorRT."""
    from mla_runtime.engines.build import build

    return build(bundle, library, cards, limits, folder, on_progress)


def ensure(
    bundle: Bundle,
    library: Library,
    cards: Sequence[str],
    limits: Limits,
    *,
    rebuild: bool = False,
    on_progress: OnProgress | None = None,
    build: Build | None = compile_engines,
    say: Say = warn,
    wait: float = WAIT_SECONDS,
) -> tuple[Built, Path]:
    """Give engines of `bundle` for `cards`, of the library's exact version, that cover `limits`, and where.

    They are those of the user's cache folder if their record and files are sound, else they are built there:
    one process builds, others that want the same wait up to `wait` seconds. `build` None never builds. `say`
    is told why engines that are there were not taken. Raises `EngineError`.
    """
    wanted = Wanted.of(bundle, library, cards, limits)
    missed = _Missed()
    if not rebuild and (found := _find(wanted, missed)):
        return found
    if build is None:
        why = f" ({'; '.join(missed.reasons[:_REASONS])})" if missed.reasons else ""
        raise EngineError(
            f"{bundle.path}: no engines for {wanted.flavour} {wanted.version} and {', '.join(wanted.cards)} "
            f"are in the cache{why}; build them: mla-export build {bundle.path}"
        )
    for reason in missed.told[:_REASONS]:
        say(f"{reason.partition('; ')[0]}; building others")  # what follows is advice for who may not build
    try:
        locks = engines_folder() / "locks"
        locks.mkdir(mode=0o700, parents=True, exist_ok=True)
        with held(locks / f"{wanted.bundle[:32]}-{wanted.name}", wait, say):
            if not rebuild and (found := _find(wanted, _Missed())):  # built by who had the lock before
                return found
            made = _built(bundle, library, wanted, build, on_progress)
            for folder in missed.damaged - {made[1]}:
                with contextlib.suppress(OSError):  # removed by somebody else
                    discard(folder)
            return made
    except OSError as cause:
        raise EngineError(
            f"{engines_folder()}: engines cannot be kept there ({cause}); free space or make it writable, or "
            "set XDG_CACHE_HOME to another folder"
        ) from cause


def taken(
    folder: str | Path, bundle: Bundle, library: Library, cards: Sequence[str], limits: Limits
) -> tuple[Built, Path]:
    """Give the engines of a folder that the user named himself, checked as those of the cache are.

    Engines are native code: what is no file of this folder, and what came inside a bundle, is refused.
    Raises `EngineError`.
    """
    root = Path(folder).resolve()
    if inside := next((path for path in (root, *root.parents) if (path / MANIFEST).exists()), None):
        raise EngineError(
            f"{folder}: lies in the bundle {inside}, and engines that came with a bundle are never loaded; "
            "build your own: mla-export build"
        )
    built = read_record(root)
    if why := Wanted.of(bundle, library, cards, limits).misfit(built):
        raise EngineError(f"{folder}: these engines {why}; build them for what is here: mla-export build")
    check_files(built, root)
    return built, root


def engines_folder() -> Path:
    """Give the folder of all engines of this user."""
    return cache_folder() / "engines"


def is_ours(folder: Path) -> bool:
    """Whether a folder of engines is one of the cache, which may be removed."""
    return engines_folder().resolve() in folder.resolve().parents


@dataclass(slots=True)
class _Missed:
    """Why engines that are there do not serve: of all, of those worth a word; and where files are damaged."""

    reasons: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    damaged: set[Path] = field(default_factory=set)


def _find(wanted: Wanted, missed: _Missed) -> tuple[Built, Path] | None:
    """Give sound engines that serve, those used last first, and note of the others why they do not."""
    for folder in sorted(_folders(_home(wanted)), key=_used, reverse=True):
        built = None
        try:
            built = read_record(folder)
            if why := wanted.misfit(built):
                missed.reasons.append(f"the engines in {folder} {why}")
                if not wanted.differs_in_size(built):
                    missed.told.append(missed.reasons[-1])
                continue
            check_files(built, folder)
        except EngineError as cause:
            missed.reasons.append(str(cause))
            missed.told.append(str(cause))
            if built is not None:  # a record that cannot be read may be a newer version's
                missed.damaged.add(folder)
            continue
        # a cache that cannot be written is one that nothing is removed from
        with contextlib.suppress(OSError):
            os.utime(folder / RECORD)
        return built, folder
    return None


def _built(
    bundle: Bundle, library: Library, wanted: Wanted, build: Build, on_progress: OnProgress | None
) -> tuple[Built, Path]:
    home = _home(wanted)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    final = home / wanted.name
    built = published(bundle, library, wanted, final, build, on_progress)
    _trim(final)
    return built, final


def _trim(new: Path) -> None:
    """Remove the engines used longest ago until the rest, `new` among them, has `KEPT_BYTES`."""
    kept = 0
    others = [folder for home in _folders(engines_folder()) for folder in _folders(home) if folder != new]
    for folder in [new, *sorted(others, key=_used, reverse=True)]:
        try:
            kept += sum(file.stat().st_size for file in folder.iterdir())
            if kept > KEPT_BYTES and folder != new:
                discard(folder)
                folder.parent.rmdir()
        except OSError:
            continue  # in use, gone by itself, or with others of its bundle


def _home(wanted: Wanted) -> Path:
    return engines_folder() / wanted.bundle[:32]


def _folders(parent: Path) -> list[Path]:
    try:
        inside = list(parent.iterdir())
    except OSError:
        return []
    return [path for path in inside if path.name[:1] != "." and path.name != "locks" and path.is_dir()]


def _used(folder: Path) -> int:
    try:
        return (folder / RECORD).stat().st_mtime_ns
    except OSError:
        return 0
