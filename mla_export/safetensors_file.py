"""The safetensors format, read strictly: header and offsets, without reading a weight.

Follows the format's own README (huggingface/safetensors): eight bytes with the header's size, the
header as JSON, then the tensors without gaps. Every rule is checked before anything is allocated, and
every violation is a CheckpointError: files come from strangers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mla_runtime.errors import CheckpointError
from mla_runtime.fields import parse_json

MAX_HEADER_BYTES = 100_000_000
MAX_RANK = 8
MAX_TENSORS = 1_000_000

# Bytes an element, of every type of the format that fills whole bytes.
DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E5M2": 1,
    "F8_E4M3": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: `nbytes` bytes at `offset` of `file`."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Read the tensors of one file: name -> where it lies; raises CheckpointError, naming the rule."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            header = _header_bytes(stream.read(8), size, file)
            raw = stream.read(header)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    if len(raw) != header:
        raise CheckpointError(f"{file}: ended inside its header; download it again")
    start = 8 + header
    tensors = {name: _tensor(name, entry, file, start) for name, entry in _entries(raw, file)}
    _check_layout(tensors, file, start, size)
    return tensors


def _header_bytes(raw: bytes, size: int, file: Path) -> int:
    if len(raw) < 8:
        raise CheckpointError(
            f"{file}: is {size} bytes long, too short for a safetensors file; download it again"
        )
    header = int.from_bytes(raw, "little")
    if header > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{file}: its header claims {header} bytes, above the limit of {MAX_HEADER_BYTES}"
        )
    if header > size - 8:
        raise CheckpointError(
            f"{file}: its header claims {header} bytes, but only {size - 8} follow; download it again"
        )
    return header


def _entries(raw: bytes, file: Path) -> list[tuple[str, Any]]:
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{file}: its header does not start with '{{'; is this a safetensors file?")
    header = parse_json(raw, f"{file}: header", CheckpointError)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{file}: __metadata__ must map strings to strings")
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{file}: has {len(header)} tensors, above the limit of {MAX_TENSORS}")
    return list(header.items())


def _integers(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _tensor(name: str, entry: Any, file: Path, start: int) -> TensorInfo:
    where = f"{file}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise CheckpointError(f"{where} is of dtype {dtype!r}; known are {', '.join(DTYPE_BYTES)}")
    if not _integers(shape):
        raise CheckpointError(f"{where} has shape {shape!r}, not a list of sizes")
    if len(shape) > MAX_RANK:
        raise CheckpointError(f"{where} has {len(shape)} dimensions, above the limit of {MAX_RANK}")
    if not _integers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where} has data_offsets {offsets!r}, not a begin and an end")
    begin, end = offsets
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != expected:
        raise CheckpointError(f"{where} has {end - begin} bytes; {dtype} {shape} takes {expected}")
    return TensorInfo(dtype, tuple(shape), file, start + begin, expected)


def _check_layout(tensors: dict[str, TensorInfo], file: Path, start: int, size: int) -> None:
    """Tensors must fill the file from the header to its end, without gaps or overlaps."""
    reached, before = start, "the header"
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset < reached:
            raise CheckpointError(f"{file}: tensor {name!r} overlaps {before}")
        if info.offset > reached:
            raise CheckpointError(
                f"{file}: {info.offset - reached} bytes between {before} and {name!r} belong to no tensor"
            )
        reached, before = info.offset + info.nbytes, repr(name)
    if reached > size:
        raise CheckpointError(
            f"{file}: its tensors end at byte {reached}, but the file at {size}; it was cut short: "
            "download it again"
        )
    if reached < size:
        raise CheckpointError(f"{file}: {size - reached} bytes after the last tensor belong to no tensor")
