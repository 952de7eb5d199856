"""The weights file: every weight in its place, streamed from a checkpoint, one piece in memory at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from mla_export.assemble import ALIGNMENT, Weight
from mla_runtime.errors import ExportError
from mla_runtime.manifest import FileEntry

_TORCH = {ir.DataType.FLOAT: torch.float32, ir.DataType.FLOAT16: torch.float16}


def write(
    path: Path,
    weights: Sequence[Weight],
    pieces: Callable[[str], Iterator[Tensor]],
    advance: Callable[[int], None],
) -> FileEntry:
    """Write `weights` to `path` and flush it to the disk; `advance` is told the bytes written.

    `pieces` gives a weight's data along its first axis. Raises `ExportError` where a value is not
    finite in the weight's type, and naming the weight.
    """
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for weight in weights:
            done = 0
            for piece in pieces(weight.name):
                data = _bytes(weight, piece)
                file.write(data)
                digest.update(data)
                done += data.nbytes
                advance(data.nbytes)
            if done != weight.nbytes:
                raise ValueError(f"{weight.name}: {done} bytes were made for a weight of {weight.nbytes}")
            padding = bytes(-done % ALIGNMENT)
            file.write(padding)
            digest.update(padding)
        size = file.tell()
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(size, digest.hexdigest())


def _bytes(weight: Weight, piece: Tensor) -> memoryview:
    dtype = _TORCH[weight.dtype]
    # Transposed first, in the few bytes it has: three times faster than transposing and widening at once.
    target = piece.contiguous().to(dtype)
    if not torch.isfinite(torch.stack(torch.aminmax(target))).all():  # the extremes: no mask in memory
        largest = piece.abs().max().item()
        name = str(dtype).removeprefix("torch.")
        msg = (
            f"{weight.name}: the largest value, {largest:.4g}, is not finite in {name} "
            f"(limit {torch.finfo(dtype).max:.4g}); export with --dtype fp32"
        )
        raise ExportError(msg)
    return target.numpy().reshape(-1).view(np.uint8).data
