"""Single nodes computed as a card does: each float16 result is the nearest one, sums are kept wider."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from mla_export.emulate import Calling, Place, Watch
from mla_export.emulate.graph import Graph
from mla_runtime.errors import BackendError

FLOAT, HALF, INT64 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT64
CALLING = Calling("prompt", ((0, 0),), 4)


def value(name: str, tensor: torch.Tensor, dtype: ir.DataType | None = None) -> ir.Value:
    found = {torch.float16: HALF, torch.float32: FLOAT, torch.int64: INT64, torch.int8: ir.DataType.INT8}
    return ir.Value(name=name, type=ir.TensorType(dtype or found[tensor.dtype]))


def graph_of(
    op_type: str, tensors: list[torch.Tensor], outputs: int = 1, **attributes: Any
) -> tuple[ir.Graph, dict]:
    inputs = [value(f"x{i}", tensor) for i, tensor in enumerate(tensors)]
    node = ir.node(op_type, inputs, attributes, num_outputs=outputs, name=op_type)
    for i, output in enumerate(node.outputs):
        output.name = f"y{i}"
    feeds = {f"x{i}": tensor for i, tensor in enumerate(tensors)}
    return ir.Graph(inputs, node.outputs, nodes=[node], name="one"), feeds


def no_weights(value: ir.Value) -> torch.Tensor:
    raise AssertionError(value.name)


def compute(
    op_type: str,
    *tensors: torch.Tensor,
    precision: Any = "float16",
    watch: Watch | None = None,
    **attributes: Any,
) -> torch.Tensor:
    graph, feeds = graph_of(op_type, list(tensors), **attributes)
    return Graph(graph, no_weights, precision, watch or Watch(CALLING))(feeds)["y0"]


def halves(seed: int, *shape: int) -> torch.Tensor:
    """Numbers of all sizes: from subnormals to what overflows when two of them meet."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator)
    sizes = torch.exp2(torch.randint(-20, 16, shape, generator=generator).float())
    return (noise * sizes).clamp(-65504, 65504).half()


def same(got: torch.Tensor, want: torch.Tensor) -> bool:
    assert got.dtype == want.dtype
    return torch.equal(got.nan_to_num(7.0), want.nan_to_num(7.0)) and torch.equal(got.isnan(), want.isnan())


@pytest.mark.parametrize(
    ("op_type", "by_torch"),
    [
        ("Add", torch.add),
        ("Sub", torch.sub),
        ("Mul", torch.mul),
        ("Div", torch.div),
        ("Max", torch.maximum),
        ("Min", torch.minimum),
        ("Sqrt", torch.sqrt),
        ("Sigmoid", torch.sigmoid),
        ("Floor", torch.floor),
        ("Abs", torch.abs),
    ],
)
def test_an_elementwise_node_gives_torchs_float16_bit_for_bit(op_type, by_torch):
    tensors = [halves(seed, 64, 512) for seed in range(2)]
    if op_type in ("Sqrt", "Sigmoid", "Floor", "Abs"):
        tensors = [tensors[0].abs() if op_type == "Sqrt" else tensors[0]]
    want = by_torch(*tensors)
    assert same(compute(op_type, *tensors), want)
    assert op_type not in ("Add", "Mul", "Div") or want.isinf().any(), "nothing overflowed"


def test_a_product_is_summed_in_float32_and_rounded_once():
    ones = compute("MatMul", torch.full((1, 4096), 1 + 2**-10).half(), torch.ones(4096, 1).half())
    assert ones.item() == 4100.0  # summed in float16, ones would stop counting at 2048
    back = compute("MatMul", torch.tensor([[300.0, 300.0]]).half(), torch.tensor([[300.0], [-300.0]]).half())
    assert back.item() == 0.0  # its parts would not fit
    over = compute("MatMul", torch.full((1, 2), 300.0).half(), torch.full((2, 1), 300.0).half())
    assert over.isinf().all()


@pytest.mark.parametrize("shape", [(48, 40), (3, 48, 40), (2, 1, 48, 40)])
@pytest.mark.parametrize("elements", [2**25, 500])
def test_a_matrix_widened_in_parts_gives_the_same(shape, elements, monkeypatch):
    from mla_export.emulate import arithmetic

    monkeypatch.setattr(arithmetic, "_ELEMENTS", elements)
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.integers(-9, 9, s)).half() for s in ((*shape[:-2], 5, 48), shape))
    assert same(compute("MatMul", a, b), (a.double() @ b.double()).half())


def test_without_rounding_what_the_graph_calls_float16_stays_float32():
    big = torch.full((1, 4), 40000.0).half()
    assert compute("Add", big, big).isinf().all()
    found = compute("Add", big, big, precision="float32")
    assert found.dtype == torch.float32
    assert (found == 80000.0).all()


def test_the_watch_has_the_largest_before_rounding_and_counts():
    watch = Watch(Calling("step", ((2, 7), (5, 40)), 1))
    x = torch.tensor([[1.0, 40000.0, 2.0**-20], [3.0, -40000.0, 0.0]]).half()
    compute("Add", x, x, watch=watch)
    seen = watch.seen["Add"]
    assert (seen.op_type, seen.largest, seen.overflows) == ("Add", 80000.0, 2)
    assert (seen.values, seen.subnormal) == (6, 1)
    assert seen.place == Place("step", 2, 7, 7)
    compute("Add", 1.5 * x.flip(0), x.flip(0), watch=watch)
    assert (watch.seen["Add"].largest, watch.seen["Add"].values) == (100000.0, 12)
    assert watch.seen["Add"].place == Place("step", 2, 7, 7)
    compute(
        "Add", torch.tensor([[0.0], [65504.0]]).half(), torch.tensor([[0.0], [65504.0]]).half(), watch=watch
    )
    assert watch.seen["Add"].place == Place("step", 5, 40, 40)


def test_partial_sums_are_bounded_by_the_sum_of_magnitudes():
    watch = Watch(CALLING)
    x, column = torch.tensor([[40000.0, 40000.0, -40000.0]]).half(), torch.ones(3, 1).half()
    compute("MatMul", x, column, precision="float32", watch=watch)
    compute("MatMul", x / 2, column, precision="float32", watch=watch)
    assert (watch.seen["MatMul"].largest, watch.seen["MatMul"].sums) == (40000.0, 120000.0)
    compute("Add", x, x, precision="float32", watch=watch)
    assert watch.seen["Add"].sums is None


def test_what_is_spoiled_before_a_node_is_not_its_overflow():
    watch = Watch(CALLING)
    compute("Add", torch.tensor([torch.inf, 1.0]).half(), torch.ones(2).half(), watch=watch)
    assert watch.seen["Add"].overflows == 0


def test_a_token_is_found_by_the_names_of_axes():
    calling = Calling("prompt", ((1, 10),), 4)
    for shape, index, want in (
        (["B", 6, "S", 8], [0, 5, 3, 1], (13, 13)),
        (["B*S", 8], [2, 7], (12, 12)),
        (["B", "T + S", 8], [0, 2, 1], (10, 13)),
    ):
        output = ir.Value(name="y", shape=ir.Shape(shape))
        assert calling.place(output, index) == Place("prompt", 1, *want)
    assert calling.place(ir.Value(name="y"), [0, 0]) == Place("prompt", 1, 10, 13)


@pytest.mark.parametrize(
    ("codes", "axis", "block"), [("int8", 1, 0), ("int8", 0, 0), ("int4", 0, 32), ("uint4", 1, 16)]
)
def test_weights_in_codes_are_what_onnxruntime_makes_of_them(codes, axis, block, tmp_path):
    import ml_dtypes
    import onnxruntime

    from mla_export.emulate.weights import Weights

    rng = np.random.default_rng(1)
    low, high = {"int8": (-127, 128), "int4": (-8, 8), "uint4": (0, 16)}[codes]
    kind = np.int8 if codes == "int8" else getattr(ml_dtypes, codes)
    weight = rng.integers(low, high, (64, 48)).astype(kind)
    size = [64, 48]
    size[axis] = size[axis] // block if block else size[axis]
    scales = rng.uniform(1e-3, 1e-2, size if block else size[axis]).astype(np.float16)
    tensors = {"w": ir.tensor(weight, name="w"), "s": ir.tensor(scales, name="s")}
    values = [
        ir.Value(name=k, shape=t.shape, type=ir.TensorType(t.dtype), const_value=t)
        for k, t in tensors.items()
    ]
    node = ir.node("DequantizeLinear", values, {"axis": axis, "block_size": block}, name="dq")
    output = node.outputs[0]
    output.name, output.type, output.shape = "y", ir.TensorType(HALF), ir.Shape([64, 48])
    graph = ir.Graph([], [output], nodes=[node], initializers=values, name="g", opset_imports={"": 21})
    content = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    (want,) = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {})
    found = Graph(graph, Weights(None), "float16", Watch(CALLING))({})["y"]  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.numpy(), want)


def test_an_unknown_operator_is_named():
    with pytest.raises(BackendError, match=r"MatMulNBits: .*is no operator of a portable graph"):
        compute("MatMulNBits", torch.ones(2))


def test_onnx_agrees_on_what_is_left_of_a_split_and_on_reshapes():
    from onnx.reference import ReferenceEvaluator

    x = torch.arange(42.0).reshape(2, 21).half()
    graph, feeds = graph_of("Split", [x], outputs=2, axis=-1, num_outputs=2)
    for output in graph.outputs:
        output.type = ir.TensorType(HALF)
    graph.opset_imports[""] = 20
    model = onnx.load_from_string(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())
    want = ReferenceEvaluator(model).run(None, {"x0": x.numpy()})
    found = Graph(graph, no_weights, "float16", Watch(CALLING))(feeds)
    for got, wanted in zip(found.values(), want, strict=True):
        np.testing.assert_array_equal(got.numpy(), wanted)
    shape = torch.tensor([0, -1, 7])
    assert compute("Reshape", x, shape).shape == (2, 3, 7)
