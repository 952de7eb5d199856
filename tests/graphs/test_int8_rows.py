"""The round trip of a row through INT8, by the lowered operator itself."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mla_graphs import ops
from mla_graphs.lowering import lower
from mla_graphs.lowering.portable.int8 import SMALLEST_SCALE

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


@functools.cache
def session() -> ort.InferenceSession:
    x = ir.Value(name="x", shape=ir.Shape(["B", "S", "C"]), type=ir.TensorType(ir.DataType.FLOAT))
    made = [ir.Value(name="codes", type=ir.TensorType(ir.DataType.INT8)), ir.Value(name="scale")]
    node = ir.node("QuantizeRows", [x], {"name": "rows"}, domain=ops.DOMAIN, outputs=made)
    graph = ir.Graph([x], made, nodes=[node], opset_imports={"": 20, ops.DOMAIN: 1}, name="rows")
    proto = ir.to_proto(lower(ir.Model(graph, ir_version=10), "portable", "step"))
    for output, dtype in zip(proto.graph.output, (3, 1), strict=True):
        output.type.tensor_type.elem_type = dtype
    return ort.InferenceSession(proto.SerializeToString())


def quantize(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    codes, scale = session().run(None, {"x": rows[None]})
    return codes[0], scale[0]


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=FINITE))
@settings(deadline=None, max_examples=300)
def test_no_value_is_off_by_more_than_half_a_scale(rows):
    codes, scale = quantize(rows)
    assert (np.abs(codes.astype(int)) <= 127).all()  # -128 would make rows lopsided
    error = np.abs(codes.astype(np.float64) * scale[:, None] - rows)
    assert (error <= 0.5 * scale[:, None].astype(np.float64) * (1 + 1e-5)).all()


@given(arrays.arrays(np.float32, 24, elements=st.floats(-100, 100, width=32)), st.floats(1, 1e6))
@settings(deadline=None, max_examples=100)
def test_an_outlier_costs_its_own_row_only(row, outlier):
    spoiled = row.copy()
    spoiled[7] = outlier
    alone, _ = quantize(row[None])
    codes, _ = quantize(np.stack([spoiled, row]))
    np.testing.assert_array_equal(codes[1], alone[0])


def test_the_largest_value_takes_the_last_code_and_ties_go_to_even():
    codes, scale = quantize(np.array([[254.0, -254.0, 1.0, 3.0, 5.0, -1.0]], dtype=np.float32))
    assert scale[0] == 2.0
    assert codes[0].tolist() == [127, -127, 0, 2, 2, 0]


def test_a_row_of_zeros_has_a_scale_that_divides():
    codes, scale = quantize(np.zeros((2, 8), dtype=np.float32))
    assert not codes.any()
    assert (scale == np.float32(SMALLEST_SCALE)).all()


def test_an_infinite_value_shows_in_the_scale_of_its_row():
    # NaN need not: whatever makes it in a row makes it in the queries of the same token
    for bad in (np.inf, -np.inf):
        rows = np.ones((2, 8), dtype=np.float32)
        rows[0, 3] = bad
        codes, scale = quantize(rows)
        assert not np.isfinite(scale[0])
        assert scale[1] == np.float32(1 / 127)
        assert (codes[1] == 127).all()
