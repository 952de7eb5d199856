"""The forms that matrices are stored in: their bytes, and what each operator makes of them in a graph."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from mla_export.quantize import quantize_blocks
from mla_export.quantize.pack import packed
from mla_graphs import ops
from mla_graphs.lowering import lower
from mla_graphs.storage import Blocks, Channels, Groups, Matrix, Storage

DENSE, STACK, TABLE = Matrix((64, 24)), Matrix((3, 64, 24)), Matrix((24, 64), table=True)
FORMS: dict[str, tuple[Storage, Matrix]] = {
    "channels": (Channels(), DENSE),
    "channels of a stack": (Channels(), STACK),
    "channels of a head": (Channels(), TABLE),
    "channels as rows": (Channels(rows=True), TABLE),
    "groups": (Groups(32), DENSE),
    "groups of a stack": (Groups(32), STACK),
    "groups of a head": (Groups(32), TABLE),
    "blocks": (Blocks(4, 32), DENSE),
    "blocks of a stack": (Blocks(8, 32), STACK),
}


def drawn(storage: Storage, matrix: Matrix, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give codes and scales as an export writes them, and the values [..., out, in] that they stand for."""
    generator = torch.Generator().manual_seed(3)
    written, values = [], []
    for _ in range(math.prod(matrix.stack)):
        found = quantize_blocks(
            torch.randn(matrix.outputs[-1], matrix.inputs, generator=generator),
            storage.bits,
            storage.group(matrix.inputs),
            scale_dtype=dtype,
            positive=storage.positive(matrix),
        )
        written.append(packed(storage, found, stacked=bool(matrix.stack)))
        values.append(found.dequantize())
    parts = zip(*written, strict=True)
    codes, scales = (np.concatenate([x.contiguous().numpy().ravel() for x in part]) for part in parts)
    made = storage.codes(matrix)
    assert codes.nbytes == made.nbytes
    shaped = codes.view(np.uint8) if made.dtype == "int4" else codes.view(made.dtype).reshape(made.shape)
    wanted = torch.stack(values) if matrix.stack else values[0]
    return shaped, scales.reshape(storage.scales(matrix)), wanted.numpy()


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_written_stands_for_the_quantised_weight(name, dtype):
    """Taken apart by plain NumPy, from the words in `mla_graphs.ops`."""
    storage, matrix = FORMS[name]
    codes, scales, wanted = drawn(storage, matrix, dtype)
    assert scales.dtype == {torch.float32: np.float32, torch.float16: np.float16}[dtype]
    wide = scales.astype(np.float32)
    match storage:
        case Blocks(bits=4):
            signed = np.stack([codes & 15, codes >> 4], -1).astype(np.float32) - 8
            got = (signed.reshape(24, 2, 32) * wide[..., None]).reshape(24, 64)
        case Blocks():
            got = ((codes.astype(np.float32) - 128) * wide[..., None]).reshape(wanted.shape)
        case Channels(rows=True):
            got = codes * wide[:, None]
        case Channels():
            got = (codes * wide).swapaxes(-1, -2)
        case Groups() if matrix.stack:
            high = codes >> 4
            signed = np.concatenate([codes - 16 * high.astype(np.int16) - 8, high], 1)
            got = (signed * np.repeat(wide, 32, 1)).swapaxes(-1, -2)
        case _:
            nibbles = np.stack([codes & 15, codes >> 4], -1).astype(np.int16).reshape(64, 24)
            got = (((nibbles ^ 8) - 8) * np.repeat(wide, 32, 0)).T
    np.testing.assert_array_equal(got, wanted)


def graph(storage: Storage, matrix: Matrix, dtype: torch.dtype) -> tuple[ir.Value, list[ir.Value], ir.Node]:
    """Give a `Dequantize…` node and its initializers; its value is the weight."""
    codes, scales, _ = drawn(storage, matrix, dtype)
    made = storage.codes(matrix)
    floats = ir.DataType.FLOAT if dtype == torch.float32 else ir.DataType.FLOAT16
    if made.dtype == "int4":
        shape = ir.Shape(made.shape)
        tensor = ir.PackedTensor(codes, ir.DataType.INT4, shape=shape, name="w.codes")
    else:
        tensor = ir.tensor(codes, name="w.codes")
    values = []
    for constant in (tensor, ir.tensor(scales, name="w.scales")):
        kind, shape = ir.TensorType(constant.dtype), ir.Shape(constant.shape)
        values.append(ir.Value(name=constant.name, shape=shape, type=kind, const_value=constant))
    weight = ir.Value(name="w", shape=ir.Shape(matrix.shape), type=ir.TensorType(floats))
    attributes: dict[str, str | int] = {"name": "w", **storage.attributes(matrix)}
    node = ir.node(storage.operator, values, attributes, domain=ops.DOMAIN, outputs=[weight], name="w")
    return weight, values, node


def run(op_type: str, storage: Storage, matrix: Matrix, x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Compute x with the weight by an operator of the lowered graph, on ONNX Runtime with exact weights."""
    weight, values, dequantize = graph(storage, matrix, dtype)
    ids = op_type == "Embed"
    shape = ["B", "S"] if ids else [*"BS"[: x.ndim - 1], matrix.inputs]
    source = ir.Value(
        name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.INT64 if ids else weight.dtype)
    )
    attributes = {"name": "y"} if op_type == "Linear" else {"name": "y", "scale": 1.0}
    made = ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT if op_type == "Logits" else weight.dtype))
    node = ir.node(op_type, [source, weight], attributes, domain=ops.DOMAIN, outputs=[made], name="y")
    model = ir.Graph(
        [source],
        [made],
        nodes=[dequantize, node],
        initializers=values,
        opset_imports={"": 21, ops.DOMAIN: 1},
        name="one",
    )
    proto = ir.to_proto(lower(ir.Model(model, ir_version=10), "portable", "step"))
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x})[0]


PRODUCTS = {
    "channels": "Linear",
    "groups": "Linear",
    "channels of a head": "Logits",
    "channels as rows": "Logits",
    "groups of a head": "Logits",
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_products_in_portable_graphs(name, dtype):
    storage, matrix = FORMS[name]
    wanted = drawn(storage, matrix, dtype)[2].astype(np.float64)
    x = np.random.default_rng(1).standard_normal((5, 64) if PRODUCTS[name] == "Logits" else (2, 5, 64))
    x = x.astype(np.float32 if dtype == torch.float32 else np.float16)
    got = run(PRODUCTS[name], storage, matrix, x, dtype)
    limit = 1e-5 if dtype == torch.float32 else 4e-2
    np.testing.assert_allclose(got, x.astype(np.float64) @ wanted.T, atol=limit)


def test_rows_are_looked_up_exactly():
    storage, matrix = FORMS["channels as rows"]
    ids = np.array([[3, 0], [23, 3]])
    got = run("Embed", storage, matrix, ids, torch.float32)
    np.testing.assert_array_equal(got, drawn(storage, matrix, torch.float32)[2][ids])


def test_a_table_that_is_not_in_rows_is_not_looked_up():
    with pytest.raises(ValueError, match="y: its table is not stored in rows"):
        run("Embed", Groups(32), TABLE, np.zeros((1, 1), dtype=np.int64), torch.float32)
