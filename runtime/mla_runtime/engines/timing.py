"""The times of kernels that TensorRT measured on this GPU, kept for its next build.

TensorRT-RTX measures none when it builds.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mla_runtime.engines.flavour import Library
from mla_runtime.engines.gpu import gpu_at_hand
from mla_runtime.integrity import cache_folder


@contextmanager
def kept_timings(library: Library, config: Any) -> Iterator[None]:
    """Give a build what was measured before, and keep what it measures.

    Times are of one GPU and one version. A cache that is damaged or cannot be written only means measuring
    again: TensorRT checks what it is given, and what it measured is no part of an engine.
    """
    if library.flavour.cards or (gpu := gpu_at_hand()) is None:
        yield
        return
    of = hashlib.sha256(f"{library.flavour.name} {library.version} {gpu.name}".encode()).hexdigest()
    path = cache_folder() / "timings" / f"{of[:32]}.cache"
    cache = None
    with suppress(OSError):
        cache = config.create_timing_cache(path.read_bytes())
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    yield
    with suppress(OSError):
        _write(path, bytes(config.get_timing_cache().serialize()))


def _write(path: Path, data: bytes) -> None:
    """Write beside the name and rename: whoever reads finds one or the other."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(name).replace(path)
