"""Attention over the rows of a cache and the new rows, which are never joined.

What a query sees is a selection, not an added bias: 0 · NaN is NaN, and so is NaN - inf.
"""

from __future__ import annotations

import onnx_ir as ir

from mla_graphs.lowering.builder import Builder, Call

Values = list[ir.Value]

# Finite, so that a query that sees nothing (padding) gives finite rows instead of 0 / 0.
_UNSEEN = -1e30
_TO_THE_END = 2**31 - 1


def _visibility(b: Builder, call: Call) -> Values:
    ids, past_lengths, new_lengths, past = call.inputs
    heads = call.integer("heads")
    rows = b.op("Shape", past, start=1, end=2, name="past_rows")  # [1]: T
    queries = b.op("Shape", ids, start=1, end=2, name="queries")  # [1]: S
    zero, one = b.index(0), b.index(1)
    past_index = b.op("Range", zero, b.op("Squeeze", rows, name="t"), one, name="past_index")  # [T]
    in_past = b.op(
        "Less", past_index, b.op("Unsqueeze", past_lengths, b.ints(1), name="past_end"), name="in_past"
    )
    in_past = b.op("Unsqueeze", in_past, b.ints(1, 2), name="in_past_row")  # [B,1,1,T]
    batch = b.op("Shape", ids, start=0, end=1, name="batch")
    shape = b.op("Concat", batch, b.ints(1), queries, rows, axis=0, name="past_shape")
    in_past = b.op("Expand", in_past, shape, name="past_visible")  # [B,1,S,T]
    new_index = b.op("Range", zero, b.op("Squeeze", queries, name="s"), one, name="new_index")  # [S]
    counts = b.op(
        "Less", new_index, b.op("Unsqueeze", new_lengths, b.ints(1), name="new_end"), name="in_new"
    )  # [B,S]
    column = b.op("Unsqueeze", new_index, b.ints(1), name="query_index")  # [S,1]
    causal = b.op("LessOrEqual", new_index, column, name="causal")  # [S,S]
    in_new = b.op(
        "And", b.op("Unsqueeze", counts, b.ints(1, 2), name="in_new_row"), causal, name="new_visible"
    )
    fold = b.op(
        "Concat", b.ints(0), b.op("Mul", queries, b.ints(heads), name="hs"), b.ints(-1), axis=0, name="fold"
    )
    unfold = b.op("Concat", b.ints(0, heads), queries, b.ints(-1), axis=0, name="unfold")
    return [
        b.op("Concat", in_past, in_new, axis=3, name="visible"),  # [B,1,S,T+S]
        b.op("Reshape", counts, b.ints(-1), name="counts"),  # [N]
        rows,
        fold,
        unfold,
    ]


def _softmax(b: Builder, scores: ir.Value, visible: ir.Value, dtype: ir.DataType) -> ir.Value:
    scores = b.float32(scores, dtype, "scores_float32")
    seen = b.op("Where", visible, scores, b.number(_UNSEEN, ir.DataType.FLOAT), name="seen")
    return b.cast(b.op("Softmax", seen, axis=-1, name="softmax"), dtype, "probabilities")


def _parts(b: Builder, probabilities: ir.Value, split: ir.Value, axis: int) -> tuple[ir.Value, ir.Value]:
    past = b.op("Slice", probabilities, b.ints(0), split, b.ints(axis), name="past_probabilities")
    new = b.op("Slice", probabilities, split, b.ints(_TO_THE_END), b.ints(axis), name="new_probabilities")
    return past, new


def _latent_attention(b: Builder, call: Call) -> Values:
    """All heads read the same rows, so heads are folded into the queries: one matmul, not one a head."""
    q_latent, q_rope, past_latent, past_rope, latent, rope, visible, split, fold, unfold = call.inputs
    dtype = call.dtype()
    scale = b.number(call.number("scale"), dtype)
    heads = call.integer("heads")

    def folded(x: ir.Value, name: str) -> ir.Value:  # [B,H,S,·] to [B,H·S,·]
        return b.op("Reshape", b.op("Mul", x, scale, name=f"{name}_scaled"), fold, name=name)

    def scores(query: ir.Value, rows: ir.Value, name: str) -> ir.Value:
        return b.op("MatMul", query, b.op("Transpose", rows, perm=[0, 2, 1], name=f"{name}_t"), name=name)

    q_latent, q_rope = folded(q_latent, "query_latent"), folded(q_rope, "query_rope")
    past = b.op(
        "Add",
        scores(q_latent, past_latent, "past_latent_scores"),
        scores(q_rope, past_rope, "past_rope_scores"),
        name="past_scores",
    )
    new = b.op(
        "Add",
        scores(q_latent, latent, "new_latent_scores"),
        scores(q_rope, rope, "new_rope_scores"),
        name="new_scores",
    )
    joined = b.op(
        "Reshape", b.op("Concat", past, new, axis=2, name="joined"), unfold, name="scores"
    )  # [B,H,S,T+S]
    probabilities = b.op("Reshape", _softmax(b, joined, visible, dtype), fold, name="folded")  # [B,H·S,T+S]
    past_part, new_part = _parts(b, probabilities, split, axis=2)
    context = b.op(
        "Add",
        b.op("MatMul", past_part, past_latent, name="past_context"),
        b.op("MatMul", new_part, latent, name="new_context"),
        name="context",
    )
    return [b.op("Reshape", context, b.ints(0, heads, -1, call.size(2, 2)), name="heads")]  # [B,H,S,C]


def _head_attention(b: Builder, call: Call) -> Values:
    query, past_key, past_value, key, value, visible, split = call.inputs
    dtype = call.dtype()
    query = b.op("Mul", query, b.number(call.number("scale"), dtype), name="query")

    def scores(rows: ir.Value, name: str) -> ir.Value:
        return b.op("MatMul", query, b.op("Transpose", rows, perm=[0, 2, 3, 1], name=f"{name}_t"), name=name)

    def context(part: ir.Value, rows: ir.Value, name: str) -> ir.Value:
        return b.op("MatMul", part, b.op("Transpose", rows, perm=[0, 2, 1, 3], name=f"{name}_t"), name=name)

    joined = b.op("Concat", scores(past_key, "past_scores"), scores(key, "new_scores"), axis=3, name="scores")
    past_part, new_part = _parts(b, _softmax(b, joined, visible, dtype), split, axis=3)
    past, new = context(past_part, past_value, "past_context"), context(new_part, value, "new_context")
    return [b.op("Add", past, new, name="heads")]


def _head_keys(b: Builder, call: Call) -> Values:
    key_nope, rope = call.inputs
    heads = call.integer("heads")
    key_nope = b.op("Reshape", key_nope, b.ints(0, 0, heads, -1), name="nope")
    shared = b.op("Unsqueeze", rope, b.ints(2), name="rope_row")
    shared = b.op("Expand", shared, b.ints(1, 1, heads, 1), name="rope")
    return [b.op("Concat", key_nope, shared, axis=3)]


RULES = {
    "Visibility": _visibility,
    "LatentAttention": _latent_attention,
    "HeadAttention": _head_attention,
    "HeadKeys": _head_keys,
}
