"""What target `portable` promises of every graph."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import pytest

from mla_export.plan import Bulk, Plan
from mla_graphs import baselines, ops
from mla_graphs.contract import CacheTypes
from mla_graphs.lowering import ort_cpu, portable
from tests.graphs import golden

# What the parser of TensorRT 10.3 lists (its documentation's operator table), of what we write.
TENSORRT_10_3 = {
    *(
        "Add",
        "And",
        "Abs",
        "Cast",
        "Concat",
        "Constant",
        "CumSum",
        "DequantizeLinear",
        "Div",
        "Equal",
        "Expand",
        "Floor",
        "Gather",
        "GatherElements",
        "If",
    ),
    *(
        "Gemm",
        "Identity",
        "Less",
        "LessOrEqual",
        "Loop",
        "MatMul",
        "Max",
        "Min",
        "Mul",
        "Pow",
        "QuantizeLinear",
        "Range",
        "ReduceMax",
    ),
    *(
        "ReduceMean",
        "ReduceSum",
        "Reshape",
        "ScatterND",
        "Shape",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Split",
        "Sqrt",
    ),
    *("Squeeze", "Sub", "TopK", "Transpose", "Unsqueeze", "Where"),
}
PLANS = {
    "factored": golden.FACTORED,
    "merged": golden.MERGED,
    "expanded": golden.EXPANDED,
    "int8 rows": golden.INT8_ROWS,
    "int8 rows, merged": dataclasses.replace(golden.MERGED, cache=CacheTypes("int8", "int8")),
    "int8 weights": dataclasses.replace(golden.FACTORED, weights=Bulk(8, None)),
    "int4 weights, int8 rows": dataclasses.replace(golden.INT8_ROWS, weights=Bulk(4, 32)),
}
FORMS = [(name, phase) for name in PLANS for phase in ("step", "prompt")]


def nodes(graph: ir.Graph) -> list[ir.Node]:
    found = []
    for node in graph:
        found.append(node)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                found += nodes(attribute.as_graph())
    return found


@pytest.mark.parametrize(("form", "phase"), FORMS)
def test_only_standard_operators_that_tensorrt_10_3_lists(form, phase):
    model = golden.build(PLANS[form], phase)
    assert model.ir_version <= 10
    assert dict(model.graph.opset_imports) == {"": 21 if form.startswith("int4 weights") else 20}
    assert {node.domain for node in nodes(model.graph)} == {""}
    assert {node.op_type for node in nodes(model.graph)} <= TENSORRT_10_3


@pytest.mark.parametrize("form", PLANS)
def test_step_has_no_control_flow(form):
    step = golden.build(PLANS[form], "step")
    assert not {node.op_type for node in nodes(step.graph)} & {"Loop", "If", "Scan", "NonZero"}
    prompt = golden.build(PLANS[form], "prompt")
    found = [node.op_type for node in nodes(prompt.graph)]
    assert found.count("Loop") == 1  # one layer has experts
    assert found.count("If") == (
        2 if PLANS[form].absorb == "factored" else 0
    )  # a layer attends in one of two ways


@pytest.mark.parametrize(("form", "phase"), FORMS)
def test_names_are_unique_and_say_where_they_are(form, phase):
    model = golden.build(PLANS[form], phase)
    every = nodes(model.graph)
    names = [node.name for node in every]
    values = [value.name for node in every for value in node.outputs] + list(model.graph.initializers)
    assert len(set(names)) == len(names)
    assert len(set(values)) == len(values)
    either = (PLANS[form].absorb, phase) == ("factored", "prompt")
    assert ("layers.1.attention.rebuilt.scores" if either else "layers.1.attention.scores") in names
    roots = ("embed", "rotary_rows", "visibility", "layers.0.", "layers.1.", "head.")
    assert [name for name in names if not name.startswith(roots)] == []


@pytest.mark.parametrize(("form", "phase"), FORMS)
def test_signature_is_the_contract(form, phase):
    model = golden.build(PLANS[form], phase)
    expected = PLANS[form].contract

    def described(values):
        return [
            (v.name, v.dtype.numpy().name, tuple(d if isinstance(d, int) else str(d) for d in v.shape))
            for v in values
        ]

    inputs = [*expected.inputs, *(spec.past for spec in expected.cache)]
    outputs = [*expected.outputs, *(spec.present for spec in expected.cache)]
    assert described(model.graph.inputs) == [(s.name, s.dtype, s.shape) for s in inputs]
    assert described(model.graph.outputs) == [(s.name, s.dtype, s.shape) for s in outputs]


def test_layers_are_stamped_not_traced():
    """Four layers come from the trace of two kinds, and the graph grows by whole layers."""
    geometry = dataclasses.replace(
        golden.GEOMETRY, num_hidden_layers=4, layer_kinds=("dense", "moe", "moe", "moe")
    )
    plan = dataclasses.replace(golden.FACTORED, geometry=geometry)
    two = golden.build(golden.FACTORED, "step", lowered=False)
    four = golden.build(plan, "step", lowered=False, kinds=golden.traced(golden.FACTORED))
    moe = [node for node in two.graph if str(node.name).startswith("layers.1.")]
    assert len(list(four.graph)) == len(list(two.graph)) + 2 * len(moe)


def test_float16_keeps_norms_scores_and_routing_in_float32():
    model = golden.build(Plan.floats(golden.GEOMETRY, "factored", "float16"), "step")
    by_name = {node.name: node for node in model.graph}
    assert (
        by_name["layers.0.attention.softmax"].inputs[0].producer().inputs[1].name.endswith("scores_float32")
    )
    assert by_name["layers.0.attention_norm.square"].inputs[0].name == "layers.0.attention_norm.float32"
    assert model.graph.initializers["layers.1.moe.router.weight"].dtype == ir.DataType.FLOAT
    assert model.graph.initializers["rotary.cos"].dtype == ir.DataType.FLOAT
    assert model.graph.initializers["layers.1.moe.experts.down"].dtype == ir.DataType.FLOAT16


def test_every_operator_is_used_and_lowered():
    used = {
        node.op_type
        for plan, phase, lowered in golden.KEPT.values()
        if not lowered
        for node in golden.build(plan, phase, lowered=False).graph
        if node.domain == ops.DOMAIN
    }
    compared = baselines.layer(baselines.Attention(baselines.Shape.of(golden.GEOMETRY), "gqa", "float32"))
    used |= {node.op_type for node in compared.graph if node.domain == ops.DOMAIN}
    assert used == set(ops.OPERATORS)
    standard = set(ops.OPERATORS) - {"Dequantize"}
    assert set(portable.rules("step")) == set(portable.rules("prompt")) == standard
    assert set(ort_cpu.rules("step")) == set(ort_cpu.rules("prompt")) == set(ops.OPERATORS)
