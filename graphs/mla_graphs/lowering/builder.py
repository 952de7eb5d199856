"""Writing standard ONNX nodes with names that say where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

Attribute = int | float | str | Sequence[int] | Sequence[float] | ir.Graph | ir.DataType | ir.TensorProtocol


class Constants:
    """The small constants of one model, each written once, as named initializers."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def __call__(self, array: np.ndarray) -> ir.Value:
        """Give the initializer that holds `array`."""
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._values:
            name = f"constant.{len(self._values)}"
            tensor = ir.tensor(array, name=name)
            self._values[key] = ir.Value(
                name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        return self._values[key]

    @property
    def initializers(self) -> list[ir.Value]:
        """All constants given out, in the order in which they were first asked for."""
        return list(self._values.values())


class Builder:
    """Collects the nodes that one `mla::` operator lowers to, each named `prefix.name`."""

    def __init__(self, prefix: str, constants: Constants) -> None:
        self.prefix = prefix
        self.nodes: list[ir.Node] = []
        self._constants = constants

    def op(self, op_type: str, *inputs: ir.Value | None, name: str = "", **attributes: Attribute) -> ir.Value:
        """Write a node with one output and give that output."""
        return self.ops(op_type, *inputs, names=(name,), **attributes)[0]

    def ops(
        self, op_type: str, *inputs: ir.Value | None, names: Sequence[str], **attributes: Attribute
    ) -> list[ir.Value]:
        """Write a node with an output for each of `names`; the node takes the first one's name."""
        full = [f"{self.prefix}.{name}" if name else self.prefix for name in names]
        converted = {
            key: ir.Attr(key, ir.AttributeType.INT, int(value)) if isinstance(value, ir.DataType) else value
            for key, value in attributes.items()
        }
        node = ir.node(
            op_type,
            inputs,
            converted,
            outputs=[ir.Value(name=value) for value in full],
            name=full[0],
        )
        self.nodes.append(node)
        return list(node.outputs)

    def inner(self, name: str) -> Builder:
        """Give a builder for a subgraph of this operator; constants are shared."""
        return Builder(f"{self.prefix}.{name}", self._constants)

    def ints(self, *values: int) -> ir.Value:
        """Give a constant int64 vector."""
        return self._constants(np.array(values, dtype=np.int64))

    def index(self, value: int) -> ir.Value:
        """Give a constant int64 scalar."""
        return self._constants(np.array(value, dtype=np.int64))

    def int8(self, value: int) -> ir.Value:
        """Give a constant int8 scalar."""
        return self._constants(np.array(value, dtype=np.int8))

    def number(self, value: float, dtype: ir.DataType) -> ir.Value:
        """Give a constant scalar of a float type."""
        return self._constants(np.array(value, dtype=dtype.numpy()))

    def float32(self, x: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        """Give x in float32; `dtype` is the type it has."""
        return x if dtype == ir.DataType.FLOAT else self.op("Cast", x, name=name, to=ir.DataType.FLOAT)

    def cast(self, x: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        """Give float32 x in `dtype`."""
        return x if dtype == ir.DataType.FLOAT else self.op("Cast", x, name=name, to=dtype)


@dataclass(frozen=True, slots=True)
class Call:
    """One `mla::` operator to lower: its node, and its inputs as they are in the lowered graph."""

    node: ir.Node
    inputs: list[ir.Value]

    def dtype(self, index: int = 0) -> ir.DataType:
        """Give the type of an input; every traced value has one."""
        dtype = self._input(index).dtype
        if dtype is None:
            raise ValueError(f"{self.node.name}: input {index} has no type")
        return dtype

    def size(self, index: int, axis: int) -> int:
        """Give a size of an input that the geometry fixes."""
        shape = self._input(index).shape
        size = None if shape is None else shape[axis]
        if not isinstance(size, int):
            raise ValueError(f"{self.node.name}: axis {axis} of input {index} is not fixed")
        return size

    def integer(self, name: str) -> int:
        """Give an integer attribute."""
        return self.node.attributes[name].as_int()

    def integers(self, name: str) -> Sequence[int]:
        """Give an attribute of several integers."""
        return self.node.attributes[name].as_ints()

    def number(self, name: str) -> float:
        """Give a float attribute."""
        return self.node.attributes[name].as_float()

    def text(self, name: str) -> str:
        """Give a string attribute."""
        return self.node.attributes[name].as_string()

    def _input(self, index: int) -> ir.Value:
        value = self.node.inputs[index]
        if value is None:
            raise ValueError(f"{self.node.name}: input {index} is absent")
        return value


Rule = Callable[[Builder, Call], list[ir.Value]]
