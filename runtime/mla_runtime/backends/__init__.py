"""Backends by name. Each imports its engine only when asked for."""

from __future__ import annotations

import importlib

from mla_runtime.backends.base import Backend
from mla_runtime.bundle import Bundle
from mla_runtime.errors import BackendError

NAMES = ("ort:cpu", "tensorrt-rtx", "tensorrt")


def load(name: str, bundle: Bundle, threads: int | None) -> Backend:
    """Load `bundle` on the backend `name` with `threads` computing threads (None: the engine's choice).

    A GPU has no use for `threads`. Raises `BackendError` for a name that is not known and an engine that is
    not there, and what building and loading engines raises.
    """
    if name not in NAMES:
        raise BackendError(f"no backend {name!r}; known are {', '.join(NAMES)}")
    if name == "ort:cpu":
        from mla_runtime.backends.ort import OrtBackend

        return OrtBackend(bundle, threads)
    from mla_runtime.backends.cuda import Driver
    from mla_runtime.backends.tensorrt import TensorrtBackend

    Driver(name)  # without a driver, nothing else that is missing matters
    loading = importlib.import_module("mla_runtime.engines.loading")
    loaded: Backend = loading.load_engines(name, bundle, TensorrtBackend)
    return loaded
