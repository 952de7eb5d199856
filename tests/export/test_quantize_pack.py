"""Each layout is run by ONNX Runtime and compared with the values that the codes stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from mla_export.quantize import Quantized, pack, quantize_blocks
from mla_graphs.storage import Bits


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(
    node: onnx.NodeProto,
    feeds: dict[str, np.ndarray[Any, Any]],
    weights: list[onnx.TensorProto],
    opsets: dict[str, int],
) -> np.ndarray[Any, Any]:
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in feeds.items()
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializer=weights,
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: np.ndarray[Any, Any] = session.run(None, feeds)[0]
    return found


def constant(name: str, values: torch.Tensor) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(values.contiguous().numpy(), name)


def relative(got: np.ndarray[Any, Any], want: torch.Tensor) -> float:
    difference = torch.from_numpy(got).double() - want.double()
    return float(difference.norm() / want.double().norm())


def rounded(x: torch.Tensor, group: int) -> torch.Tensor:
    """Round activations to 8 bits, a scale a group: what operators compute with at accuracy_level 4."""
    padded = torch.nn.functional.pad(x.double(), (0, -x.shape[-1] % group)).unflatten(-1, (-1, group))
    steps = padded.abs().amax(-1, keepdim=True) / 127
    return ((padded / steps).round() * steps).flatten(-2)[..., : x.shape[-1]]


# float32 sums; at level 4 a few activations, at a tie, are rounded the other way than here
LIMITS = {0: 1e-5, 4: 1e-3}


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [256, 200, 40])  # 200 and 40 do not fill their last group
def test_matmul_nbits(bits: Bits, group: int, level: int, rows: int, inputs: int) -> None:
    found = quantize_blocks(random(48, inputs), bits, group)
    x = random(rows, inputs, seed=1)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"],
        ["y"],
        domain="com.microsoft",
        K=inputs,
        N=48,
        bits=bits,
        block_size=group,
        accuracy_level=level,
    )
    weights = [constant("w", pack.matmul_nbits(found)), constant("s", found.scales)]
    got = run(node, {"x": x.numpy()}, weights, {"": 20, "com.microsoft": 1})
    seen = rounded(x, group) if level == 4 else x.double()
    assert relative(got, seen @ found.dequantize().double().T) < LIMITS[level]


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [256, 200])
def test_dequantize_linear(bits: Bits, group: int, inputs: int) -> None:
    found = quantize_blocks(random(47, inputs), bits, group)
    packed, scales = pack.dequantize_linear(found)
    padded = found.codes.shape[1]
    kind = TensorProto.INT4 if bits == 4 else TensorProto.INT8
    x = onnx.TensorProto(name="w", data_type=kind, dims=[padded, 47], raw_data=packed.numpy().tobytes())
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["y"], axis=0, block_size=group)
    got = run(node, {}, [x, constant("s", scales)], {"": 21})
    np.testing.assert_array_equal(got[:inputs], found.dequantize().T.numpy())
    assert not got[inputs:].any()


def expert(x: torch.Tensor, gate: Quantized, up: Quantized, down: Quantized, rounds: bool) -> torch.Tensor:
    a, b, c = (found.dequantize().double() for found in (gate, up, down))
    x = rounded(x, gate.group) if rounds else x.double()
    inner = torch.nn.functional.silu(x @ a.T) * (x @ b.T)
    return (rounded(inner, down.group) if rounds else inner) @ c.T


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_qmoe(bits: Bits, group: int, level: int) -> None:
    experts, hidden, inner, top = 4, 256, 128, 2
    parts = [
        [quantize_blocks(random(*shape, seed=10 * e + i) * 0.1, bits, group) for e in range(experts)]
        for i, shape in enumerate([(inner, hidden), (inner, hidden), (hidden, inner)])
    ]
    gates, ups, downs = parts

    def rows(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return torch.stack((gate, up), dim=1).flatten(0, 1)  # the operator takes them in turns

    fc1 = torch.stack([rows(pack.qmoe(a), pack.qmoe(b)) for a, b in zip(gates, ups, strict=True)])
    fc1_scales = torch.stack([rows(a.scales, b.scales) for a, b in zip(gates, ups, strict=True)])
    fc2 = torch.stack([pack.qmoe(found) for found in downs])
    fc2_scales = torch.stack([found.scales for found in downs])
    x, router = random(3, hidden, seed=100), random(3, experts, seed=101)
    node = helper.make_node(
        "QMoE",
        ["x", "router", "fc1", "fc1_scales", "", "fc2", "fc2_scales"],
        ["y"],
        domain="com.microsoft",
        k=top,
        expert_weight_bits=bits,
        block_size=group,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
        normalize_routing_weights=1,
    )
    node.attribute.append(helper.make_attribute("accuracy_level", level))
    weights = [
        constant("fc1", fc1),
        constant("fc1_scales", fc1_scales),
        constant("fc2", fc2),
        constant("fc2_scales", fc2_scales),
    ]
    feeds = {"x": x.numpy(), "router": router.numpy()}
    got = run(node, feeds, weights, {"": 20, "com.microsoft": 1})
    rounds = level == 4 or bits == 8  # with 8-bit weights the operator takes no other level
    want = torch.zeros(3, hidden, dtype=torch.float64)
    for token in range(3):
        best = router[token].topk(top)
        for share, index in zip(best.values.double().softmax(0), best.indices.tolist(), strict=True):
            want[token] += share * expert(x[token], gates[index], ups[index], downs[index], rounds)
    assert relative(got, want) < LIMITS[4 if rounds else 0]


def test_qmoe_takes_whole_groups_only() -> None:
    with pytest.raises(ValueError, match="200 inputs in groups of 32"):
        pack.qmoe(quantize_blocks(random(8, 200), 4, 32))


def test_four_bits_an_odd_number_of_values() -> None:
    found = quantize_blocks(random(3, 32), 4, 32)
    packed, _ = pack.dequantize_linear(found)
    assert packed.shape == (48,)
    half = Quantized(found.codes[:1, :1].contiguous(), found.scales[:1], 4, 1, 1)
    assert pack.dequantize_linear(half)[0].tolist() == [int(found.codes[0, 0]) & 0xF]
