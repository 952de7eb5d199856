"""An ONNX file's nodes, read off the wire without an onnx package or weights.

Field numbers are those of onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mla_runtime import wire
from mla_runtime.errors import BundleError

# numbers of TensorProto.DataType
DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "string",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    16: "bfloat16",
    17: "float8",
    21: "uint4",
    22: "int4",
    23: "float4",
}
Shape = tuple[int | str, ...]
_MAX_DEPTH = 16
_SMALL = 64


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of a tensor: type, shape with symbols, whether it is a constant, a small one's bytes."""

    dtype: str | None = None
    shape: Shape | None = None
    constant: bool = False
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A node; integers and texts among its attributes have their values, a tensor is `tensor`."""

    name: str
    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int | str | None]
    tensor: Value | None
    graphs: Mapping[str, Graph]


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in their order, and what is declared of values: inputs, outputs, initializers."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Model:
    """A model's main graph and the opset of ONNX's own operators."""

    opset: int
    graph: Graph


def read(path: Path) -> Model:
    """Read the ONNX file `path`; raises `BundleError` for another file."""
    opset, graph = 0, None
    try:
        for number, value in wire.fields(memoryview(path.read_bytes())):
            if number == 7 and isinstance(value, memoryview):
                graph = _graph(value, 0)
            elif number == 8 and isinstance(value, memoryview):
                domain, version = _text(value, 1), _integer(value, 2)
                opset = version if domain in ("", "ai.onnx") else opset
    except (ValueError, IndexError) as cause:
        raise BundleError(f"{path}: not an ONNX file ({cause}); get the bundle again") from cause
    if graph is None:
        raise BundleError(f"{path}: not an ONNX file (no graph in it); get the bundle again")
    return Model(opset, graph)


def _graph(data: memoryview, depth: int) -> Graph:
    if depth > _MAX_DEPTH:
        raise ValueError(f"graphs nested deeper than {_MAX_DEPTH}")
    nodes, values = [], {}
    ends: dict[int, list[str]] = {11: [], 12: []}
    for number, value in _messages(data):
        if number == 1:
            nodes.append(_node(value, depth))
        elif number == 5:
            values[_text(value, 8)] = _tensor(value)
        elif number in (11, 12, 13):
            name = _text(value, 1)
            values.setdefault(name, _declared(value))
            if number in ends:
                ends[number].append(name)
    return Graph(tuple(nodes), tuple(ends[11]), tuple(ends[12]), values)


def _node(data: memoryview, depth: int) -> Node:
    names: dict[int, list[str]] = {1: [], 2: [], 3: [""], 4: [""], 7: [""]}
    attributes: dict[str, int | str | None] = {}
    tensor, graphs = None, {}
    for number, value in _messages(data):
        if number in names:
            names[number].append(str(value, "utf-8"))
        elif number == 5:
            fields = dict(wire.fields(value))
            name = _string(fields.get(1))
            attributes[name] = _small(fields)
            content = fields.get(5, fields.get(6))
            if 5 in fields and isinstance(content, memoryview):
                tensor = _tensor(content)
            elif isinstance(content, memoryview):
                graphs[name] = _graph(content, depth + 1)
    inputs, outputs = tuple(names[1]), tuple(names[2])
    name, operator, domain = (names[field][-1] for field in (3, 4, 7))
    return Node(name, operator, domain, inputs, outputs, attributes, tensor, graphs)


def _small(fields: Mapping[int, int | memoryview]) -> int | str | None:
    """Give the value of an attribute that is an integer or a text."""
    if isinstance(number := fields.get(3), int):
        return next(wire.integers(number))
    return _string(fields[4]) if 4 in fields else None


def _tensor(data: memoryview) -> Value:
    shape: list[int | str] = []
    dtype, small = 0, None
    for number, value in wire.fields(data):
        if number == 1:
            shape.extend(wire.integers(value))
        elif number == 2 and isinstance(value, int):
            dtype = value
        elif number == 9 and isinstance(value, memoryview) and len(value) <= _SMALL:
            small = bytes(value)
    return Value(DTYPES.get(dtype), tuple(shape), constant=True, data=small)


def _declared(data: memoryview) -> Value:
    """Read a ValueInfoProto: type and shape of an input, an output or a value between."""
    for number, kind in _messages(data):
        for one, tensor in _messages(kind) if number == 2 else ():
            if one == 1:
                shapes = [value for field, value in _messages(tensor) if field == 2]
                dims = (dim for shape in shapes for _, dim in _messages(shape))
                shape = tuple(_text(dim, 2) or _integer(dim, 1) for dim in dims)
                return Value(DTYPES.get(_integer(tensor, 1)), shape if shapes else None)
    return Value()


def _messages(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    return ((number, value) for number, value in wire.fields(data) if isinstance(value, memoryview))


def _string(value: int | memoryview | None) -> str:
    return str(value, "utf-8", "replace") if isinstance(value, memoryview) else ""


def _text(data: memoryview, field: int) -> str:
    return next((str(value, "utf-8") for number, value in _messages(data) if number == field), "")


def _integer(data: memoryview, field: int) -> int:
    found = (value for number, value in wire.fields(data) if number == field and isinstance(value, int))
    return next((next(wire.integers(value)) for value in found), 0)
