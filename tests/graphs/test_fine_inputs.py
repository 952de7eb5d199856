"""Products whose inputs count as 16 bits where `MatMulNBits` alone rounds them to 8."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from mla_graphs.lowering.builder import BlockWeight, Builder, Constants
from mla_graphs.lowering.ort_cpu import matrices

OUT = 24


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("inputs", [128, 200], ids=["whole groups", "a padded group"])
@pytest.mark.parametrize("shape", [(2, 3), (5,)], ids=["rows of a batch", "rows"])
def test_what_rounding_leaves_is_multiplied_too(shape, inputs, group):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*shape, inputs)).astype(np.float32)
    x.reshape(-1, inputs)[1] = 0.0
    x[..., 7] *= 100  # what rounds its whole group roughly
    groups = -(-inputs // group)
    codes = rng.integers(0, 256, (OUT, groups, group)).astype(np.uint8)
    scales = rng.uniform(1e-3, 2e-3, (OUT, groups)).astype(np.float32)
    values = ((codes - 128.0) * scales[..., None]).reshape(OUT, -1)[:, :inputs]
    bias = rng.standard_normal(OUT).astype(np.float32)
    want = x.astype(float) @ values.T

    def error(fine: bool, bias: np.ndarray | None = None) -> float:
        found = run(x, codes, scales, inputs, group, fine, bias)
        return float(np.abs(found - want - (0 if bias is None else bias)).max() / np.abs(want).max())

    assert error(fine=True) < error(fine=False) / 50
    assert error(fine=True, bias=bias) < error(fine=False) / 50


def run(
    x: np.ndarray,
    codes: np.ndarray,
    scales: np.ndarray,
    inputs: int,
    group: int,
    fine: bool,
    bias: np.ndarray | None,
) -> np.ndarray:
    """Run the product alone on ONNX Runtime."""
    constants = Constants()
    b = Builder("x", constants, 20)
    weight = BlockWeight(constants(codes), constants(scales), 8, group, inputs, fine)
    fed = ir.Value(name="in", shape=ir.Shape(x.shape), type=ir.TensorType(ir.DataType.FLOAT))
    added = [] if bias is None else [constants(bias)]
    if fine:
        result = matrices._fine_product(b, fed, x.ndim, weight, *added)
    else:
        result = matrices.product(b, fed, weight, *added)
    graph = ir.Graph(
        [fed], [result], nodes=b.nodes, initializers=constants.initializers,
        opset_imports={"": 20, "com.microsoft": 1}, name="one",
    )  # fmt: skip
    proto = ir.to_proto(ir.Model(graph, ir_version=10))
    proto.graph.output[0].type.tensor_type.elem_type = 1
    return ort.InferenceSession(proto.SerializeToString()).run(None, {"in": x})[0]
