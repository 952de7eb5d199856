"""Backends by name. Each imports its engine only when asked for."""

from __future__ import annotations

from pathlib import Path

from mla_runtime.backends.base import Backend
from mla_runtime.bundle import Bundle
from mla_runtime.errors import BackendError, InputError

NAMES = ("ort:cpu", "tensorrt-rtx", "tensorrt")


def load(name: str, bundle: Bundle, threads: int | None, engines: str | Path | None = None) -> Backend:
    """Load `bundle` on the backend `name` with `threads` computing threads (None: the engine's choice).

    A GPU has no use for `threads`. `engines` is the folder of engines to run (None: those of the cache, or
    built now). Raises `BackendError` for a name that is not known and an engine that is not there, and what
    building and loading engines raises.
    """
    if name not in NAMES:
        raise BackendError(f"no backend {name!r}; known are {', '.join(NAMES)}")
    if name == "ort:cpu":
        if engines is not None:
            raise InputError(f"engines are given ({engines}), and {name} runs none; name a TensorRT backend")
        from mla_runtime.backends.ort import OrtBackend

        return OrtBackend(bundle, threads)
    from mla_runtime.backends.cuda import Driver
    from mla_runtime.backends.tensorrt import TensorrtBackend
    from mla_runtime.engines.loading import load_engines

    Driver(name)  # without a driver, nothing else that is missing matters
    return load_engines(name, bundle, TensorrtBackend, folder=engines)
