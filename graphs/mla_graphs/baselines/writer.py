"""Writing a graph of `mla::` operators by hand: values have the types and shapes that lowering reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from mla_graphs import ops
from mla_graphs.contract import Dim, TensorSpec

_FLOAT = ir.DataType.FLOAT
Attribute = int | float | str | Sequence[int]


class Writer:
    """Collects inputs, weights and nodes. Names of nodes begin with `attention.`, those of weights too."""

    def __init__(self) -> None:
        self.weights: dict[str, ir.Value] = {}
        self._inputs: list[ir.Value] = []
        self._nodes: list[ir.Node] = []
        self._constants: list[ir.Value] = []

    def input(self, name: str, dtype: str, shape: Sequence[Dim]) -> ir.Value:
        """Declare an input of the graph."""
        kind = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
        value = ir.Value(name=name, shape=ir.Shape(shape), type=kind)
        self._inputs.append(value)
        return value

    def weight(self, name: str, *shape: Dim) -> ir.Value:
        """Declare a float32 weight, an initializer whose bytes whoever loads the graph puts in."""
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(_FLOAT))
        self.weights[name] = value
        return value

    def ints(self, *values: int) -> ir.Value:
        """Give a constant int64 vector."""
        name = f"attention.constant.{len(self._constants)}"
        tensor = ir.tensor(np.array(values, dtype=np.int64), name=name)
        value = ir.Value(
            name=name,
            shape=ir.Shape([len(values)]),
            type=ir.TensorType(ir.DataType.INT64),
            const_value=tensor,
        )
        self._constants.append(value)
        return value

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        shape: Sequence[Dim],
        name: str,
        **attributes: Attribute,
    ) -> ir.Value:
        """Write an `mla::` operator with one output, which is float32."""
        return self.ops(op_type, inputs, [(_FLOAT, shape)], name, **attributes)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        results: Sequence[tuple[ir.DataType, Sequence[Dim]]],
        name: str,
        **attributes: Attribute,
    ) -> list[ir.Value]:
        """Write an `mla::` operator with the outputs of its schema, of these types and shapes."""
        names = ops.OPERATORS[op_type].outputs
        outputs = [self._result(f"attention.{name}.{n}", *r) for n, r in zip(names, results, strict=True)]
        given = {"name": f"attention.{name}", **attributes}
        self._nodes.append(ir.node(op_type, inputs, given, domain=ops.DOMAIN, outputs=outputs))
        return outputs

    def onnx(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        shape: Sequence[Dim],
        name: str,
        *,
        dtype: ir.DataType = _FLOAT,
        **attributes: Attribute,
    ) -> ir.Value:
        """Write an operator of ONNX with one output."""
        output = self._result(f"attention.{name}", dtype, shape)
        self._nodes.append(ir.node(op_type, inputs, attributes, outputs=[output], name=f"attention.{name}"))
        return output

    def model(self, outputs: Sequence[tuple[TensorSpec, ir.Value]]) -> ir.Model:
        """Give the graph; each output takes its specification's name, and has its type and shape."""
        for spec, value in outputs:
            value.name = spec.name
            value.shape = ir.Shape(spec.shape)
        graph = ir.Graph(
            self._inputs,
            [value for _, value in outputs],
            nodes=self._nodes,
            initializers=[*self.weights.values(), *self._constants],
            opset_imports={"": 20, ops.DOMAIN: ops.VERSION},
            name="attention",
        )
        return ir.Model(graph, ir_version=10, producer_name="mla-export")

    @staticmethod
    def _result(name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
