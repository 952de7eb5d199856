"""From a bundle to a backend on its engines: found or built, checked, loaded, and the canary run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mla_runtime.backends.base import Backend
from mla_runtime.bundle import Bundle
from mla_runtime.engines.flavour import FLAVOURS, THIS, Library
from mla_runtime.engines.gpu import gpu_at_hand
from mla_runtime.engines.progress import OnProgress
from mla_runtime.engines.proof import prove
from mla_runtime.engines.publishing import Build
from mla_runtime.engines.record import Built, Limits
from mla_runtime.engines.store import Say, compile_engines, ensure, taken, warn
from mla_runtime.errors import BackendError, EngineError
from mla_runtime.model import Model

Make = Callable[[Bundle, Library, Built, Path], Backend]
ANY = Limits(1, 1, 1)


def load_engines(
    name: str,
    bundle: Bundle,
    make: Make,
    *,
    limits: Limits | None = None,
    folder: str | Path | None = None,
    build: Build | None = compile_engines,
    on_progress: OnProgress | None = None,
    say: Say = warn,
) -> Backend:
    """Load `bundle` on the flavour `name`: `make` is given the engines, and the canary runs on what it makes.

    Engines are those of `folder`, or those of the cache, or built. `limits` None takes those that are there,
    whatever they are for, and builds for one sequence of the bundle's whole context. Raises `BackendError`
    where bindings or GPU are missing, `EngineError` for engines that do not fit, `VerificationError` for
    those that fail the canary.
    """
    library = FLAVOURS[name].load()
    if gpu_at_hand() is None:
        raise BackendError(f"backend {name}: no NVIDIA GPU is to be seen here; run it where there is one")
    if folder is not None:
        built, root = taken(folder, bundle, library, (THIS,), limits or ANY)
    else:
        built, root = _ensured(bundle, library, limits, build, on_progress, say)
    backend = make(bundle, library, built, root)
    try:
        prove(Model(bundle, backend), built, root)
    except BaseException:
        backend.close()
        raise
    return backend


def whole(bundle: Bundle) -> Limits:
    """Give the limits of one sequence with all that the bundle allows."""
    return Limits(1, bundle.model.max_context, bundle.chunk)


def _ensured(
    bundle: Bundle,
    library: Library,
    limits: Limits | None,
    build: Build | None,
    on_progress: OnProgress | None,
    say: Say,
) -> tuple[Built, Path]:
    if limits is None:
        try:
            return ensure(bundle, library, (THIS,), ANY, build=None, say=say)
        except EngineError:
            limits = whole(bundle)
    return ensure(bundle, library, (THIS,), limits, build=build, on_progress=on_progress, say=say)
