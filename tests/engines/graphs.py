"""Small ONNX files made by hand, each with what some version of TensorRT refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NODE = "layers.3.attention.scores"
F32, F16, I4, I8, I64, BOOL = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.INT4,
    TensorProto.INT8,
    TensorProto.INT64,
    TensorProto.BOOL,
)
Ends = Sequence[tuple[str, int, Sequence[int | str]]]


def node(operator: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    """A node named like one of a bundle."""
    return helper.make_node(operator, inputs.split(), outputs.split(), name=NODE, **attributes)


def constant(name: str, values: Any, dtype: str = "float32") -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype=dtype), name)


def weights(name: str, dtype: int, shape: Sequence[int]) -> onnx.TensorProto:
    """A tensor of any type, all zeros: INT4 has no numpy type."""
    return helper.make_tensor(name, dtype, shape, np.zeros(int(np.prod(shape)), dtype=np.int8))


def made(
    nodes: onnx.NodeProto | Sequence[onnx.NodeProto],
    inputs: Ends,
    outputs: Ends,
    initializers: Sequence[onnx.TensorProto] = (),
    opset: int = 20,
) -> onnx.ModelProto:
    nodes = [nodes] if isinstance(nodes, onnx.NodeProto) else list(nodes)
    ends = ([helper.make_tensor_value_info(*end) for end in side] for side in (inputs, outputs))
    graph = helper.make_graph(nodes, "made", *ends, list(initializers))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def written(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "step.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def attention_of_two_widths() -> onnx.ModelProto:
    """Keys and values of different widths, as MLA has them."""
    rows = (("q", F16, [1, 4, 1, 192]), ("k", F16, [1, 4, 8, 192]), ("v", F16, [1, 4, 8, 128]))
    return made(node("Attention", "q k v"), rows, [("y", F16, [1, 4, 1, 128])], opset=23)


def int8_scatter() -> onnx.ModelProto:
    rows = (("cache", I8, [1, 1, 128, 64]), ("rows", I8, [1, 1, 1, 64]))
    return made(node("TensorScatter", "cache rows"), rows, [("y", I8, [1, 1, 128, 64])], opset=24)


def unknown_operator() -> onnx.ModelProto:
    return made(node("Frobnicate", "x"), [("x", F32, [2])], [("y", F32, [2])])


def not_there() -> onnx.ModelProto:
    ends = [("x", I8, [2, 8]), ("w", I8, [8, 4])]
    return made(node("MatMulInteger", "x w"), ends, [("y", TensorProto.INT32, [2, 4])])


def scale_a_token() -> onnx.ModelProto:
    ends = [("x", I8, ["T", 8]), ("s", F32, ["T"])]
    return made(node("DequantizeLinear", "x s", axis=0), ends, [("y", F32, ["T", 8])])


def zero_point() -> onnx.ModelProto:
    given = [constant("s", 1.0), constant("z", 3, "int8")]
    return made(node("DequantizeLinear", "x s z"), [("x", I8, [4, 8])], [("y", F32, [4, 8])], given)


def packed_weights() -> onnx.ModelProto:
    """ONNX Runtime's product with weights in 4 bits, as target ort-cpu has it."""
    given = [constant("w", np.zeros((32, 2, 16)), "uint8"), constant("s", np.ones(64))]
    attributes = {"K": 64, "N": 32, "bits": 4, "block_size": 32, "accuracy_level": 4}
    product = node("MatMulNBits", "x w s", domain="com.microsoft", **attributes)
    return made(product, [("x", F32, [2, 64])], [("y", F32, [2, 32])], given)


def scatter(**attributes: str) -> onnx.ModelProto:
    ends = [("x", F32, [8]), ("i", I64, [2, 1]), ("u", F32, [2])]
    return made(node("ScatterND", "x i u", **attributes), ends, [("y", F32, [8])])


def two_types() -> onnx.ModelProto:
    ends = [("x", F32, [2, 8]), ("w", F16, [8, 4])]
    return made(node("MatMul", "x w"), ends, [("y", F32, [2, 4])])


def foreign_type() -> onnx.ModelProto:
    ends = [("x", TensorProto.UINT8, [4, 8]), ("i", I64, [2])]
    return made(node("Gather", "x i"), ends, [("y", TensorProto.UINT8, [2, 8])])


def foreign_input() -> onnx.ModelProto:
    """A type that TensorRT has not, which is an error of no node."""
    return made(node("Cast", "x", to=F32), [("x", TensorProto.INT16, [4])], [("y", F32, [4])])


def blocks(dtype: int = I4, opset: int = 21, scale: int = F16) -> onnx.ModelProto:
    """A product with weights in blocks of 32 by DequantizeLinear, as target portable writes int4."""
    given = [weights("w", dtype, [64, 32]), helper.make_tensor("s", scale, [2, 32], np.ones(64))]
    attributes = {"axis": 0, "block_size": 32}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], name=f"{NODE}.weight", **attributes),
        node("MatMul", "x d"),
    ]
    return made(nodes, [("x", scale, [2, 64])], [("y", scale, [2, 32])], given, opset)


def gathered_experts(packed: bool) -> onnx.ModelProto:
    """The chosen experts' weights out of an int8 stack, in 8 bits or two of 4 in a byte."""
    rows = 32 if packed else 64
    given = [
        weights("codes", I8, [8, rows, 32]),
        helper.make_tensor("scales", F16, [8, 1, 32], np.ones(8 * 32)),
        helper.make_tensor("sixteen", F16, [], [16.0]),
    ]
    nodes = [
        node("Gather", "codes chosen", "picked", axis=0),
        node("Cast", "picked", "floats", to=F16),
        node("Gather", "scales chosen", "scale", axis=0),
    ]
    if packed:
        nodes += [
            node("Div", "floats sixteen", "shifted"),
            node("Floor", "shifted", "high"),
            node("Mul", "high sixteen", "back"),
            node("Sub", "floats back", "low"),
            node("Concat", "low high", "halves", axis=1),
        ]
    values = "halves" if packed else "floats"
    nodes += [node("Mul", f"{values} scale", "weight"), node("MatMul", "x weight")]
    ends = [("chosen", I64, [2]), ("x", F16, [2, 1, 64])]
    return made(nodes, ends, [("y", F16, [2, 1, 32])], given)
