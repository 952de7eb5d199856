"""Backends by name. Each imports its engine only when asked for."""

from __future__ import annotations

from mla_runtime.backends.base import Backend
from mla_runtime.bundle import Bundle
from mla_runtime.errors import BackendError

NAMES = ("ort:cpu",)


def load(name: str, bundle: Bundle, threads: int | None) -> Backend:
    """Load `bundle` on the backend `name` with `threads` computing threads (None: the engine's choice).

    Raises `BackendError` for a name that is not known and an engine that is not there.
    """
    if name not in NAMES:
        raise BackendError(f"no backend {name!r}; known are {', '.join(NAMES)}")
    from mla_runtime.backends.ort import OrtBackend

    return OrtBackend(bundle, threads)
