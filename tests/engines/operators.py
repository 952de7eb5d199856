"""The smallest graph of each operator of the table of versions, with data of a type."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper

from tests.engines.graphs import BOOL, F32, I4, I64, constant, made, node, weights

DTYPES = {
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "bool": BOOL,
    "float16": onnx.TensorProto.FLOAT16,
    "float32": F32,
    "int4": I4,
    "int64": I64,
    "int8": onnx.TensorProto.INT8,
}
X = [2, 4]
Model = onnx.ModelProto
COMPARED = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
TWO = {"Add", "And", "Div", "Max", "Min", "Mul", "Or", "Pow", "Sub"}


def smallest(operator: str, dtype: str) -> Model:
    """The graph; an operator without a recipe takes one tensor and gives one like it."""
    kind = DTYPES[dtype]
    if operator in _RECIPES:
        return _RECIPES[operator](kind)
    if operator in COMPARED | TWO:
        result = BOOL if operator in COMPARED else kind
        return made(node(operator, "x z"), [("x", kind, X), ("z", kind, X)], [("y", result, X)])
    if operator.startswith("Reduce"):
        return of_one(operator, kind, "x axes", ["n", "m"], constant("axes", [1], "int64"))
    return of_one(operator, kind, "x", X)


def of_one(operator: str, kind: int, inputs: str, shape: list[int | str], *given, **attributes) -> Model:
    return made(node(operator, inputs, **attributes), [("x", kind, X)], [("y", kind, shape)], given)


def cast(kind: int) -> Model:
    to = onnx.TensorProto.FLOAT16 if kind == F32 else F32
    return made(node("Cast", "x", to=to), [("x", kind, X)], [("y", to, X)])


def dequantize(kind: int) -> Model:
    given = [weights("x", kind, [8, 4]), constant("s", 1.0)]
    return made(node("DequantizeLinear", "x s"), [], [("y", F32, [8, 4])], given, opset=21)


def quantize(kind: int) -> Model:
    scale = helper.make_tensor("s", kind, [], [1.0])
    ends = [("x", kind, X)], [("y", DTYPES["int8"], X)]
    return made(node("QuantizeLinear", "x s z"), *ends, [scale, constant("z", 0, "int8")])


def branches(kind: int) -> Model:
    inner = [
        helper.make_graph([node(one, "x", one)], one, [], [helper.make_tensor_value_info(one, kind, X)])
        for one in ("Identity", "Transpose")
    ]
    inner[1].node[0].attribute.append(helper.make_attribute("perm", [0, 1]))
    held = node("If", "c", then_branch=inner[0], else_branch=inner[1])
    return made(held, [("c", BOOL, []), ("x", kind, X)], [("y", kind, X)])


def loop(kind: int) -> Model:
    ends = [("i", I64, []), ("go", BOOL, []), ("s", kind, X)], [("on", BOOL, []), ("r", kind, X)]
    infos = [[helper.make_tensor_value_info(*end) for end in side] for side in ends]
    body = helper.make_graph([node("Identity", "go", "on"), node("Identity", "s", "r")], "body", *infos)
    held = node("Loop", "n c x", body=body)
    return made(held, [("n", I64, []), ("c", BOOL, []), ("x", kind, X)], [("y", kind, X)])


def attention(kind: int) -> Model:
    rows = [(name, kind, [1, 4, 8, 64]) for name in "qkv"]
    return made(node("Attention", "q k v"), rows, [("y", kind, [1, 4, 8, 64])], opset=23)


def rotary(kind: int) -> Model:
    ends = [("x", kind, [1, 4, 1, 64]), ("c", kind, [1, 1, 32]), ("s", kind, [1, 1, 32])]
    return made(node("RotaryEmbedding", "x c s"), ends, [("y", kind, [1, 4, 1, 64])], opset=23)


def norm(kind: int) -> Model:
    ends = [("x", kind, X), ("w", kind, [4])]
    return made(node("RMSNormalization", "x w"), ends, [("y", kind, X)], opset=23)


def in_place(kind: int) -> Model:
    rows = [("cache", kind, [1, 1, 128, 64]), ("rows", kind, [1, 1, 1, 64]), ("at", I64, [1])]
    return made(node("TensorScatter", "cache rows at"), rows, [("y", kind, [1, 1, 128, 64])], opset=24)


def packed(kind: int) -> Model:
    given = [constant("w", np.zeros((32, 2, 16)), "uint8"), helper.make_tensor("s", kind, [64], [1.0] * 64)]
    attributes = {"K": 64, "N": 32, "bits": 4, "block_size": 32}
    product = node("MatMulNBits", "x w s", domain="com.microsoft", **attributes)
    return made(product, [("x", kind, [2, 64])], [("y", kind, [2, 32])], given)


def product(operator: str) -> Callable[[int], Model]:
    return lambda kind: made(node(operator, "x w"), [("x", kind, X), ("w", kind, [4, 4])], [("y", kind, X)])


def with_integers(operator: str, shape: list[int | str], *numbers: list[int], **attributes):
    """An operator whose other inputs are constant integers."""
    names = [f"k{place}" for place in range(len(numbers))]
    given = [constant(name, value, "int64") for name, value in zip(names, numbers, strict=True)]
    return lambda kind: of_one(operator, kind, " ".join(["x", *names]), shape, *given, **attributes)


def ranged(kind: int) -> Model:
    given = [
        helper.make_tensor(name, kind, [], [value]) for name, value in zip("abc", (0, 4, 1), strict=True)
    ]
    return made(node("Range", "a b c"), [], [("y", kind, ["n"])], given)


def scattered(kind: int) -> Model:
    ends = [("x", kind, X), ("i", I64, [1, 1]), ("u", kind, [1, 4])]
    return made(node("ScatterND", "x i u"), ends, [("y", kind, X)])


def chosen(kind: int) -> Model:
    ends = [("c", BOOL, X), ("x", kind, X), ("z", kind, X)]
    return made(node("Where", "c x z"), ends, [("y", kind, X)])


def highest(kind: int) -> Model:
    two = constant("k", [2], "int64")
    return made(
        node("TopK", "x k", "y i"), [("x", kind, X)], [("y", kind, [2, 2]), ("i", I64, [2, 2])], [two]
    )


def halved(kind: int) -> Model:
    halves = [(name, kind, [1, 4]) for name in "yz"]
    return made(node("Split", "x", "y z", axis=0, num_outputs=2), [("x", kind, X)], halves, opset=20)


def held(kind: int) -> Model:
    value = helper.make_tensor("v", kind, [4], [0] * 4)
    nodes = [node("Constant", "", "k", value=value), node("Identity", "k")]
    return made(nodes, [], [("y", kind, [4])])


_RECIPES: dict[str, Callable[[int], Model]] = {
    "Attention": attention,
    "Cast": cast,
    "Clip": lambda kind: of_one("Clip", kind, "x low", X, helper.make_tensor("low", kind, [], [0.0])),
    "Concat": lambda kind: of_one("Concat", kind, "x x", [4, 4], axis=0),
    "Constant": held,
    "CumSum": with_integers("CumSum", X, 0),
    "DequantizeLinear": dequantize,
    "Expand": with_integers("Expand", [3, 2, 4], [3, 2, 4]),
    "Gather": with_integers("Gather", [1, 4], [1]),
    "GatherElements": with_integers("GatherElements", [1, 4], [[0, 1, 0, 1]]),
    "Gemm": product("Gemm"),
    "If": branches,
    "Loop": loop,
    "MatMul": product("MatMul"),
    "QuantizeLinear": quantize,
    "RMSNormalization": norm,
    "Range": ranged,
    "Reshape": with_integers("Reshape", [8], [8]),
    "RotaryEmbedding": rotary,
    "ScatterND": scattered,
    "Shape": lambda kind: made(node("Shape", "x"), [("x", kind, X)], [("y", I64, [2])]),
    "Slice": with_integers("Slice", [1, 4], [0], [1], [0]),
    "Split": halved,
    "Squeeze": lambda kind: made(
        node("Squeeze", "x k"), [("x", kind, [1, 4])], [("y", kind, [4])], [constant("k", [0], "int64")]
    ),
    "TensorScatter": in_place,
    "Tile": with_integers("Tile", [4, 4], [2, 1]),
    "TopK": highest,
    "Unsqueeze": with_integers("Unsqueeze", [1, 2, 4], [0]),
    "Where": chosen,
    "com.microsoft:MatMulNBits": packed,
}
