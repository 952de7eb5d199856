"""Attention whose heads share keys and values in groups: MHA (a group a head), GQA, MQA (one group).

The rows of a group lie together, so that nothing of the cache is transposed, and the heads of a group are
folded into its queries, as all heads are in the latent space. So rows of 8 bits are met in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mla_graphs.lowering.builder import Builder, Call
from mla_graphs.lowering.portable import attention, int8
from mla_graphs.lowering.portable.attention import NEW, Arithmetic, Floats
from mla_graphs.lowering.portable.int8 import Stored

Values = list[ir.Value]


def heads_a_group(call: Call) -> int:
    """Give how many heads read the same rows: H / G."""
    return call.size(0, 1) // call.integer("groups")


def _stored(rows: Sequence[ir.Value], scales: Sequence[ir.Value]) -> tuple[Stored, ...]:
    """Pair past key, past value, key and value with their scales, where they have any."""
    pairs = zip(rows, scales or (None,) * len(rows), strict=True)
    return tuple(Stored(*pair) for pair in pairs)


def grouped_attention(b: Builder, call: Call, arithmetic: Arithmetic) -> Values:
    """Attend to the rows of each group [B·G,T,·] with the queries of its heads [B·G,H/G·S,·]."""
    query, *rows, visible, split = call.inputs[:7]
    past_key, past_value, key, value = _stored(rows, call.inputs[7:])
    dtype, heads, scale = call.dtype(), call.size(0, 1), call.number("scale")
    queries = b.op("Shape", query, start=2, end=3, name="queries")  # [1]: S
    folded = b.op("Mul", queries, b.ints(heads_a_group(call)), name="folded_queries")
    shape = b.op("Concat", b.ints(-1), folded, b.ints(call.size(0, 3)), axis=0, name="query_shape")
    query = b.op("Reshape", query, shape, name="query_folded")  # [B·G,H/G·S,K]
    if key.scale:
        scale = int8.query_scale(scale, dtype)
    query = b.op("Mul", query, b.number(scale, dtype), name="query")
    past = arithmetic.scores(b, query, past_key, dtype, "past_scores")
    new = NEW.scores(b, query, key, dtype, "new_scores")
    joined = b.op("Concat", past, new, axis=2, name="joined")
    columns = b.op("Shape", visible, start=3, end=4, name="columns")  # [1]: T + S
    shape = b.op("Concat", b.ints(-1, heads), queries, columns, axis=0, name="scores_shape")
    joined = b.op("Reshape", joined, shape, name="scores")  # [B,H,S,T+S]
    # Scores and probabilities of int8 rows are float32: the scale of a row is folded into them.
    scored = ir.DataType.FLOAT if key.scale else dtype
    probabilities = attention.softmax(b, joined, visible, scored, arithmetic)
    shape = b.op("Concat", b.ints(-1), folded, columns, axis=0, name="folded_shape")
    probabilities = b.op("Reshape", probabilities, shape, name="folded")  # [B·G,H/G·S,T+S]
    past_part, new_part = attention.parts(b, probabilities, split, axis=2)
    found = b.op(
        "Add",
        arithmetic.context(b, past_part, past_value, dtype, "past_context"),
        NEW.context(b, new_part, value, dtype, "new_context"),
        name="context",
    )
    shape = b.op("Concat", b.ints(-1, heads), queries, b.ints(call.size(2, 2)), axis=0, name="heads_shape")
    return [b.op("Reshape", found, shape, name="heads")]  # [B,H,S,D]


def _grouped_attention(b: Builder, call: Call) -> Values:
    return grouped_attention(b, call, Floats())


RULES = {"GroupedAttention": _grouped_attention}
