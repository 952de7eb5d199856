"""Where an ONNX file takes its weights from: read off the wire, so that a device needs no onnx package.

onnxruntime before 1.24 follows `../`, absolute paths and links in an external data location wherever
they lead (tried with 1.23.2), and no version minds a location that the manifest has no hash for.
Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mla_runtime import wire
from mla_runtime.errors import BundleError
from mla_runtime.manifest import FileEntry

# message -> field number -> message of the field; what is not listed holds no tensor
_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}
_NAME, _EXTERNAL_DATA = 8, 13
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class External:
    """A tensor whose data are `length` bytes of the file `location`, from `offset` on."""

    name: str
    location: str
    offset: int
    length: int


def check_external(path: Path, files: Mapping[str, FileEntry]) -> None:
    """Raise `BundleError` unless every tensor that the ONNX file `path` keeps elsewhere is in `files`."""
    for tensor in external_tensors(path):
        where, end = tensor.location, tensor.offset + tensor.length
        if where not in files:
            msg = f"{path}: a tensor lies in {where!r}, which bundle.json does not list; "
            raise BundleError(msg + "do not use this bundle, get it again")
        if not 0 <= tensor.offset <= end <= files[where].size:
            msg = f"{path}: a tensor lies at bytes {tensor.offset} to {end} of {where!r}, "
            raise BundleError(msg + f"which has {files[where].size}; get the bundle again")


def external_tensors(path: Path) -> list[External]:
    """List the tensors that the ONNX file `path` keeps elsewhere; raises `BundleError` for another file."""
    data = memoryview(path.read_bytes())
    try:
        return list(_external(data, "Model", 0))
    except (ValueError, IndexError, RecursionError) as cause:
        raise BundleError(f"{path}: not an ONNX file ({cause}); get the bundle again") from cause


def _external(data: memoryview, message: str, depth: int) -> Iterator[External]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"messages nested deeper than {_MAX_DEPTH}")
    if message == "Tensor":
        fields = list(_fields(data))
        entries = dict(_entry(value) for number, value in fields if number == _EXTERNAL_DATA)
        if entries:
            name = next((str(value, "utf-8") for number, value in fields if number == _NAME), "")
            offset, length = (int(entries.get(key, 0)) for key in ("offset", "length"))
            yield External(name, entries.get("location", ""), offset, length)
        return
    inner = _MESSAGES[message]
    for number, value in _fields(data):
        if number in inner:
            yield from _external(value, inner[number], depth + 1)


def _entry(data: memoryview) -> tuple[str, str]:
    fields = {number: str(value, "utf-8") for number, value in _fields(data)}
    return fields.get(1, ""), fields.get(2, "")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the fields of a message that are texts, bytes or messages."""
    for number, value in wire.fields(data):
        if isinstance(value, memoryview):
            yield number, value
