"""Writing standard ONNX nodes with names that say where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

Attribute = int | float | str | Sequence[int] | Sequence[float] | ir.Graph | ir.DataType | ir.TensorProtocol


CONTRIB = "com.microsoft"  # ONNX Runtime's own operators


class Constants:
    """The initializers that lowering adds to one model: small constants, each once, and parts of weights."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._parts: dict[str, ir.Value] = {}

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

    def part(self, stack: ir.Value, index: int) -> ir.Value:
        """Give entry `index` of a stacked weight as an initializer of its own, on the same bytes."""
        name = f"{stack.name}.{index}"
        if name not in self._parts:
            whole = stack.const_value
            if not isinstance(whole, ir.ExternalTensor):
                raise ValueError(f"{stack.name} is not in a weights file")
            shape = ir.Shape(whole.shape[1:])
            nbytes = whole.nbytes // whole.shape.numpy()[0]
            start = (whole.offset or 0) + index * nbytes
            tensor = ir.ExternalTensor(whole.location, start, nbytes, whole.dtype, shape=shape, name=name)
            self._parts[name] = ir.Value(
                name=name, shape=shape, type=ir.TensorType(whole.dtype), const_value=tensor
            )
        return self._parts[name]

    @property
    def initializers(self) -> list[ir.Value]:
        """All that was given out, in the order in which it was first asked for."""
        return [*self._values.values(), *self._parts.values()]


class Builder:
    """Collects the nodes of `opset` that one `mla::` operator lowers to, each named `prefix.name`."""

    def __init__(self, prefix: str, constants: Constants, opset: int) -> None:
        self.prefix, self.opset = prefix, opset
        self.nodes: list[ir.Node] = []
        self._constants = constants

    def op(self, op_type: str, *inputs: ir.Value | None, name: str = "", **attributes: Attribute) -> ir.Value:
        """Write a node with one output and give that output."""
        return self.ops(op_type, *inputs, names=(name,), **attributes)[0]

    def contrib(
        self, op_type: str, *inputs: ir.Value | None, name: str = "", **attributes: Attribute
    ) -> ir.Value:
        """Write a node of one of ONNX Runtime's own operators and give its output."""
        return self._node(CONTRIB, op_type, inputs, (name,), attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        names: Sequence[str],
        **attributes: Attribute,
    ) -> list[ir.Value]:
        """Write a node with an output for each of `names`; the node takes the first one's name."""
        return self._node("", op_type, inputs, names, attributes)

    def _node(
        self,
        domain: str,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        names: Sequence[str],
        attributes: Mapping[str, Attribute],
    ) -> list[ir.Value]:
        full = [f"{self.prefix}.{name}" if name else self.prefix for name in names]
        converted = {
            key: ir.Attr(key, ir.AttributeType.INT, int(value)) if isinstance(value, ir.DataType) else value
            for key, value in attributes.items()
        }
        node = ir.node(
            op_type,
            inputs,
            converted,
            domain=domain,
            outputs=[ir.Value(name=value) for value in full],
            name=full[0],
        )
        self.nodes.append(node)
        return list(node.outputs)

    def inner(self, name: str) -> Builder:
        """Give a builder for a subgraph of this operator; constants are shared."""
        return Builder(f"{self.prefix}.{name}", self._constants, self.opset)

    def ints(self, *values: int) -> ir.Value:
        """Give a constant int64 vector."""
        return self._constants(np.array(values, dtype=np.int64))

    def index(self, value: int) -> ir.Value:
        """Give a constant int64 scalar."""
        return self._constants(np.array(value, dtype=np.int64))

    def part(self, stack: ir.Value, index: int) -> ir.Value:
        """Give entry `index` of a stacked weight."""
        return self._constants.part(stack, index)

    def byte(self, value: int, dtype: ir.DataType) -> ir.Value:
        """Give a constant scalar of an integer type of 8 bits."""
        return self._constants(np.array(value, dtype=dtype.numpy()))

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
class BlockWeight:
    """A weight stored in blocks: the inputs and attributes of its `Dequantize`."""

    codes: ir.Value
    scales: ir.Value
    bits: int
    group: int
    inputs: int
    fine: bool

    @property
    def outputs(self) -> int:
        """Give the number of outputs of a matrix, or of each in a stack."""
        shape = self.codes.shape
        size = None if shape is None else shape[-3]
        if not isinstance(size, int):
            raise ValueError(f"{self.codes.name} has no shape")
        return size


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

    def codes(self, index: int, op_type: str) -> tuple[ir.Node, ir.Value, ir.Value] | None:
        """Give the `op_type` that makes an input, its codes and scales; None where something else does."""
        node = self._input(index).producer()
        if node is None or node.op_type != op_type:
            return None
        codes, scales = node.inputs
        if codes is None or scales is None:
            raise ValueError(f"{node.name} lacks codes or scales")
        return node, codes, scales

    def blocks(self, index: int) -> BlockWeight | None:
        """Give the form of a weight that is stored in blocks; None for one in floats."""
        found = self.codes(index, "Dequantize")
        if found is None:
            return None
        node, codes, scales = found
        bits, group, inputs = (node.attributes[name].as_int() for name in ("bits", "group", "inputs"))
        return BlockWeight(codes, scales, bits, group, inputs, bool(node.attributes["fine"].as_int()))

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
