"""The `mla::` operators by their definitions: each against NumPy, and what each must not do."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from mla_export import operators
from mla_graphs import ops
from tests.export.operator_cases import (
    CASES,
    MASKS,
    NEW_LENGTHS,
    PAST_LENGTHS,
    B,
    C,
    H,
    P,
    R,
    S,
    T,
    compute,
    normal,
    softmax,
)

ATTENTION = ("LatentAttention", "PromptAttention", "HeadAttention")
INT8 = ir.DataType.INT8


def first_type(op_type: str) -> ir.DataType:
    return INT8 if op_type == "QuantizeRows" else ir.DataType.FLOAT


def test_every_operator_is_there_and_has_a_case():
    assert set(operators.OPERATORS) == set(ops.OPERATORS) == set(CASES)


@pytest.mark.parametrize("op_type", CASES)
def test_an_operator_is_what_its_formula_says(op_type):
    inputs, attributes, wanted = CASES[op_type]()
    assert set(attributes) == set(ops.OPERATORS[op_type].attributes)
    found = compute(op_type, inputs, first_type=first_type(op_type), **attributes)
    for got, want in zip(found, wanted, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)
        assert got.dtype == (np.float64 if want.dtype.kind == "f" else got.dtype)


@pytest.mark.parametrize(
    ("precision", "step"), [("float32", 2.0**-24), ("float16", 2.0**-11), ("bfloat16", 2.0**-8)]
)
@pytest.mark.parametrize("op_type", sorted(set(CASES) - {"QuantizeRows"}))
def test_a_narrower_precision_is_off_by_some_of_its_steps(op_type, precision, step):
    """Inputs are of the narrow type already, so that only the operator itself rounds."""
    inputs, attributes, _ = CASES[op_type]()
    narrow = [
        torch.from_numpy(x).to(getattr(torch, precision)).double().numpy()
        if x is not None and x.dtype.kind == "f"
        else x
        for x in inputs
    ]
    found, wanted = compute(op_type, narrow, precision, **attributes), compute(op_type, narrow, **attributes)
    for got, want in zip(found, wanted, strict=True):
        if want.dtype.kind != "f":
            np.testing.assert_array_equal(got, want)
            continue
        np.testing.assert_allclose(got, want, rtol=0, atol=12 * step * max(1.0, np.abs(want).max()))
        moves_only = op_type in ("Split", "Rows", "Unrows", "SelectRows", "RotaryRows") or "Head" in op_type
        exact = moves_only and op_type not in ("HeadLinear", "HeadAttention")
        assert (np.abs(got - want).max() == 0) == exact or op_type in ("Experts", "Route")


def test_a_product_in_float16_is_summed_in_float32_and_rounded_once():
    x, weight = np.full((1, 4096), 1 + 2**-10), np.full((4096, 1), 1.0)
    (y,) = compute("Linear", [x, weight], "float16")
    assert y.item() == 4100.0  # summed in float16, ones would stop counting at 2048
    (y,) = compute("Linear", [np.full((1, 2), 300.0), np.array([[300.0], [-300.0]])], "float16")
    assert y.item() == 0.0  # 90,000 is beyond float16, and a sum on the way is not
    (y,) = compute("Linear", [np.full((1, 1), 300.0), np.array([[300.0]])], "float16")
    assert np.isinf(y.item())


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("op_type", ATTENTION)
def test_rows_that_are_not_seen_have_no_effect(op_type, junk):
    inputs, attributes, wanted = CASES[op_type]()
    at = {name: i for i, name in enumerate(ops.OPERATORS[op_type].inputs)}
    past = [name for name in at if name.startswith("past_") and not name.endswith("scale?")]
    for name in past:
        for b in range(B):
            inputs[at[name]][b, PAST_LENGTHS[b] :] = junk
            inputs[at[name.removeprefix("past_")]][b, NEW_LENGTHS[b] :] = junk
    last = np.array([1, 0]), slice(None), NEW_LENGTHS[::-1] - 1
    (got,) = compute(op_type, inputs, **attributes)
    np.testing.assert_allclose(got, wanted[0], rtol=1e-12)
    # a row that only the last query sees, broken, spoils that query alone
    for name in past:
        inputs[at[name.removeprefix("past_")]][[1, 0], NEW_LENGTHS[::-1] - 1] = np.nan
    (got,) = compute(op_type, inputs, **attributes)
    assert np.isnan(got[last]).all()
    np.testing.assert_allclose(
        got[0, :, : NEW_LENGTHS[0] - 1], wanted[0][0, :, : NEW_LENGTHS[0] - 1], rtol=1e-12
    )


@pytest.mark.parametrize("op_type", [*ATTENTION, "GroupedAttention"])
def test_a_query_that_sees_nothing_gives_zeros(op_type):
    inputs, attributes, _ = CASES[op_type]()
    at = ops.OPERATORS[op_type].inputs.index("visible")
    inputs[at] = MASKS[0].copy()
    inputs[at][1, :, 0] = False
    assert (compute(op_type, inputs, **attributes)[0][1, :, 0] == 0).all()


@pytest.mark.parametrize("code", [np.int8, np.uint8])
@pytest.mark.parametrize("parts", [("latent",), ("latent", "rope")])
@pytest.mark.parametrize("op_type", ["LatentAttention", "PromptAttention"])
def test_rows_as_codes_are_code_times_scale(op_type, parts, code):
    inputs, attributes, _ = CASES[op_type]()
    at = {name: i for i, name in enumerate(ops.OPERATORS[op_type].inputs)}
    floats, scales = list(inputs), []
    for part in parts:
        for name in (f"past_{part}", part):
            rows = inputs[at[name]]
            codes, scale = (
                np.random.default_rng(3).integers(-127, 128, rows.shape),
                np.abs(normal(*rows.shape[:2])),
            )
            scale = scale.astype(np.float32) / 100
            floats[at[name]] = codes * scale[..., None].astype(np.float64)
            inputs[at[name]] = (codes + 128).astype(code) if code == np.uint8 else codes.astype(code)
            scales.append(scale)
    (want,) = compute(op_type, floats, **attributes)
    (got,) = compute(op_type, [*inputs, *scales], **attributes)
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-13)
    scales[0] = scales[0].copy()
    scales[0][1] = np.nan  # the second sequence has no past rows
    np.testing.assert_array_equal(compute(op_type, [*inputs, *scales], **attributes)[0], got)
    (half,) = compute(op_type, [*inputs, *scales], "float16", **attributes)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, want, atol=0.02 * np.abs(want).max())


def test_codes_do_not_overflow_in_float16():
    """A query of 16 against 512 codes of 127 is 1.04 million, and what it stands for is 1,024."""
    rows = [np.full((1, 1, 512), 127, np.int8), np.zeros((1, 1, 2)), np.full((1, 1, 512), 127, np.int8)]
    scale = np.full((1, 1), 0.125 / 127, np.float32)
    query = [np.full((1, 1, 1, 512), 16.0), np.zeros((1, 1, 1, 2))]
    masks = [np.ones((1, 1, 1, 2), bool), np.array([1]), np.array([1, 1, -1]), np.array([1, 1, 1, -1])]
    inputs = [*query, *rows, np.zeros((1, 1, 2)), *masks, scale, scale]
    (y,) = compute("LatentAttention", inputs, "float16", scale=0.7, heads=1)
    np.testing.assert_allclose(y, 0.125, rtol=2e-3)


@pytest.mark.parametrize("queries", [1, 23, 24, 60])
def test_both_ways_of_a_prompt_give_the_same(queries):
    """C = 8 and P + D = 12: rebuilt from 24 queries on, which in float16 rounds otherwise."""
    shapes = [(1, H, queries, P), (1, H, queries, R), (1, T, C), (1, T, R), (1, queries, C), (1, queries, R)]
    q_nope, q_rope, *rows = (normal(*shape) for shape in shapes)
    w_uk, w_uv = normal(H, P, C), normal(H, C, 5)
    masks = [np.tri(queries, T + queries, T, dtype=bool)[None, None], *MASKS[1:]]

    def both(precision):
        inputs = [q_nope, q_rope, *rows, w_uk, w_uv, *masks]
        (found,) = compute("PromptAttention", inputs, precision, scale=0.3, heads=H)
        (x,) = compute("HeadLinear", [q_nope, w_uk], precision)
        (x,) = compute("LatentAttention", [x, q_rope, *rows, *masks], precision, scale=0.3, heads=H)
        return found, compute("HeadLinear", [x, w_uv], precision)[0]

    np.testing.assert_allclose(*both("float64"), rtol=1e-10, atol=1e-12)
    found, absorbed = both("float16")
    assert (found == absorbed).all() == (queries < 24)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("group_score", ["none", "max", "top2"])
def test_the_gate_takes_the_lowest_of_equals(scoring, group_score):
    attributes = {
        "scoring": scoring, "experts": 8, "top_k": 3, "groups": 0 if group_score == "none" else 4,
        "top_groups": 2, "group_score": group_score, "normalize": 0, "scaling": 1.0,
    }  # fmt: skip
    ids, weights = compute("Route", [np.zeros((2, C)), normal(C, 8)], **attributes)
    assert ids.tolist() == [[0, 1, 2]] * 2
    np.testing.assert_allclose(weights, 0.125 if scoring == "softmax" else 0.5)


def test_a_softmax_gate_limited_by_the_best_of_a_group():
    x, weight = normal(50, C), normal(C, 12)
    attributes = {
        "scoring": "softmax", "experts": 12, "top_k": 2, "groups": 3, "top_groups": 1,
        "group_score": "max", "normalize": 0, "scaling": 16.0,
    }  # fmt: skip
    ids, weights = compute("Route", [x, weight], **attributes)
    scores = softmax(x @ weight)
    assert (ids[:, 0] == scores.argmax(1)).all()
    assert (ids[:, 0] // 4 == ids[:, 1] // 4).all()
    np.testing.assert_allclose(weights, 16 * np.take_along_axis(scores, ids, 1), rtol=1e-12)


@pytest.mark.parametrize("table", [0, 1])
def test_codes_of_8_bits_as_a_matrix_and_as_a_table(table):
    codes, scales = np.random.default_rng(5).integers(0, 256, (6, 2, 4), dtype=np.uint8), normal(6, 2)
    want = ((codes.astype(int) - 128) * scales[..., None]).reshape(6, 8)[:, :7]
    (got,) = compute("Dequantize", [codes, scales], bits=8, group=4, inputs=7, table=table, fine=1)
    np.testing.assert_array_equal(got, want if table else want.T)


def test_unsigned_codes_of_rows_are_128_higher():
    x = normal(B, S, C)
    signed, scale = compute("QuantizeRows", [x], first_type=INT8)
    unsigned, same = compute("QuantizeRows", [x], first_type=ir.DataType.UINT8)
    assert (signed.dtype, unsigned.dtype) == (np.int8, np.uint8)
    np.testing.assert_array_equal(unsigned.astype(int) - 128, signed)
    np.testing.assert_array_equal(scale, same)
    assert np.abs(signed).max() == 127


def test_an_operator_that_is_not_known_is_named():
    node = ir.node(
        "Gelu", [ir.Value(name="x")], {"name": "layers.0.gelu"}, domain=ops.DOMAIN, name="layers.0.gelu"
    )
    with pytest.raises(ValueError, match=r"layers\.0\.gelu: mla::Gelu is not an operator of a traced block"):
        operators.compute(node, [torch.zeros(1)], "float32")


def test_an_absent_input_is_named():
    node = ir.node("Linear", [ir.Value(name="x")], domain=ops.DOMAIN, name="q")
    with pytest.raises(ValueError, match="q: input 1 of Linear is absent"):
        operators.compute(node, [torch.zeros(1, 2)], "float32")


@pytest.mark.parametrize("code", [np.int8, np.uint8])
def test_rows_of_groups_as_codes_are_code_times_scale(code):
    inputs, attributes, _ = CASES["GroupedAttention"]()
    rng = np.random.default_rng(3)
    floats, scales = list(inputs), []
    for i in range(1, 5):
        codes = rng.integers(-127, 128, inputs[i].shape)
        scale = (np.abs(normal(*codes.shape[:2])) / 100).astype(np.float32)
        floats[i] = codes * scale[..., None].astype(np.float64)
        inputs[i] = (codes + 128 * (code == np.uint8)).astype(code)
        scales.append(scale)
    (want,) = compute("GroupedAttention", floats, **attributes)
    (got,) = compute("GroupedAttention", [*inputs, *scales], **attributes)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_a_head_and_an_embedding_in_codes_are_tables():
    codes, scales = np.random.default_rng(6).integers(-8, 8, (8, 6)).astype(np.int8), normal(2, 6)
    (head,) = compute("DequantizeGroups", [codes, scales], group=4, table=1)
    np.testing.assert_array_equal(head, (codes * np.repeat(scales, 4, 0)).T)
    (head,) = compute("DequantizeChannels", [codes, scales[0]], rows=0, table=1)
    np.testing.assert_array_equal(head, (codes * scales[0]).T)
    (rows,) = compute("DequantizeChannels", [codes.T, scales[0]], rows=1, table=1)
    np.testing.assert_array_equal(rows, head)
