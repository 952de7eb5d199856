"""Kernels that TensorRT-RTX compiled on the card at first use, kept for the next start beside the engines."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from mla_runtime.engines.gpu import Gpu

CAP = 2**30
_HASH_BYTES = 32


def runtime_cache_path(folder: Path, gpu: Gpu) -> Path:
    """Give the file, in a folder of engines, of what was compiled for this GPU and driver."""
    key = f"{gpu.name} {gpu.card} {gpu.cuda}"
    return folder / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.cache"


def read_runtime_cache(path: Path) -> bytes | None:
    """Read what was kept; None where nothing is, or it is damaged, which only means compiling again."""
    try:
        if path.stat().st_size > CAP:
            return None
        content = path.read_bytes()
    except OSError:
        return None
    kept = content[_HASH_BYTES:]
    return kept if hashlib.sha256(kept).digest() == content[:_HASH_BYTES] else None


def write_runtime_cache(path: Path, kept: bytes) -> None:
    """Keep it, with its SHA-256 in front; a folder that cannot be written only means compiling again."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(kept).digest() + kept)
        Path(name).replace(path)
    except OSError:
        return
