"""Attention over the rows of a cache and the new rows: joined as scores, or for many queries as rows.

What a query sees is a selection here, not an added bias: a target may take the one for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from mla_graphs.lowering.builder import Builder, Call
from mla_graphs.lowering.portable import int8
from mla_graphs.lowering.portable.int8 import Stored

Values = list[ir.Value]

# Finite, so that a query that sees nothing (padding) gives finite rows instead of 0 / 0.
_UNSEEN = -1e30
_TO_THE_END = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Rows:
    """What is attended to: rows of the cache [B,T,·] and the new rows [B,S,·]."""

    past_latent: Stored
    past_rope: Stored
    latent: Stored
    rope: Stored

    @classmethod
    def of(cls, rows: Sequence[ir.Value], scales: Sequence[ir.Value]) -> Rows:
        """Pair past latent, past rope, latent, rope with the scales, as far as there are, in their order."""
        latent, new_latent, rope, new_rope = (*scales, None, None, None, None)[:4]
        return cls(*(Stored(*pair) for pair in zip(rows, (latent, rope, new_latent, new_rope), strict=True)))


class Arithmetic(Protocol):
    """How queries meet rows. `dtype` is what attention computes in, `name` begins the names of nodes."""

    def seen(self, b: Builder, scores: ir.Value, visible: ir.Value) -> ir.Value:
        """Make float32 scores of what a query does not see so low that their probability is 0."""

    def scores(self, b: Builder, query: ir.Value, rows: Stored, dtype: ir.DataType, name: str) -> ir.Value:
        """Give scores [B,H·S,T] of queries [B,H·S,·]; float32 where rows have scales."""

    def context(
        self, b: Builder, probabilities: ir.Value, rows: Stored, dtype: ir.DataType, name: str
    ) -> ir.Value:
        """Give the sum of rows [B,H·S,C] by probabilities [B,H·S,T], float32 where rows have scales."""


class Floats:
    """Rows are read as floats; scales are folded into scores and probabilities."""

    def seen(self, b: Builder, scores: ir.Value, visible: ir.Value) -> ir.Value:
        """Select, so that rows which are not seen may hold anything at all."""
        return b.op("Where", visible, scores, b.number(_UNSEEN, ir.DataType.FLOAT), name="seen")

    def scores(self, b: Builder, query: ir.Value, rows: Stored, dtype: ir.DataType, name: str) -> ir.Value:
        """Multiply with the rows, then by their scales."""
        codes = int8.codes(b, rows, dtype, f"{name}_rows")
        found = b.op("MatMul", query, b.op("Transpose", codes, perm=[0, 2, 1], name=f"{name}_t"), name=name)
        return int8.scaled_scores(b, found, rows, dtype, name) if rows.scale else found

    def context(
        self, b: Builder, probabilities: ir.Value, rows: Stored, dtype: ir.DataType, name: str
    ) -> ir.Value:
        """Multiply by the scales, then with the rows."""
        if not rows.scale:
            return b.op("MatMul", probabilities, rows.rows, name=name)
        part = int8.scaled_probabilities(b, probabilities, rows, dtype, name)
        found = b.op("MatMul", part, int8.codes(b, rows, dtype, f"{name}_rows"), name=name)
        return int8.unscaled_context(b, found, dtype, name)


NEW = Floats()  # new rows are few: what another arithmetic does to queries first would not pay


@dataclass(frozen=True, slots=True)
class Form:
    """The type that attention computes in, its softmax scale, H and C."""

    dtype: ir.DataType
    scale: float
    heads: int
    latent: int


@dataclass(frozen=True, slots=True)
class Masks:
    """What `Visibility` gives."""

    visible: ir.Value
    split: ir.Value
    fold: ir.Value
    unfold: ir.Value


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


def softmax(
    b: Builder, scores: ir.Value, visible: ir.Value, dtype: ir.DataType, arithmetic: Arithmetic
) -> ir.Value:
    """Give probabilities of `dtype` from scores of that type, computed in float32."""
    seen = arithmetic.seen(b, b.float32(scores, dtype, "scores_float32"), visible)
    return b.cast(b.op("Softmax", seen, axis=-1, name="softmax"), dtype, "probabilities")


def parts(b: Builder, probabilities: ir.Value, split: ir.Value, axis: int) -> tuple[ir.Value, ir.Value]:
    """Cut probabilities into those of the past rows and those of the new ones."""
    past = b.op("Slice", probabilities, b.ints(0), split, b.ints(axis), name="past_probabilities")
    new = b.op("Slice", probabilities, split, b.ints(_TO_THE_END), b.ints(axis), name="new_probabilities")
    return past, new


def _latent_attention(b: Builder, call: Call) -> Values:
    return latent_attention(b, call, Floats())


def latent_attention(b: Builder, call: Call, arithmetic: Arithmetic) -> Values:
    """Attend to latent rows throughout."""
    q_latent, q_rope, *rest = call.inputs
    rows, masks = Rows.of(rest[:4], rest[8:]), Masks(*rest[4:8])
    form = Form(call.dtype(), call.number("scale"), call.integer("heads"), call.size(2, 2))
    return [_attend_to_latent(b, q_latent, q_rope, rows, masks, form, arithmetic)]


def _attend_to_latent(
    b: Builder,
    q_latent: ir.Value,
    q_rope: ir.Value,
    rows: Rows,
    masks: Masks,
    form: Form,
    arithmetic: Arithmetic,
) -> ir.Value:
    """Attend in the latent space, from [B,H,S,C] to the same.

    All heads read the same rows, so heads are folded into the queries: one matmul, not one a head.
    """
    dtype = form.dtype

    def folded(x: ir.Value, rows: Stored, name: str) -> ir.Value:  # [B,H,S,·] to [B,H·S,·]
        # Scaled when folded: ONNX Runtime would put the scale into the product before, which it then
        # computes nearly twice as slowly for one query.
        scale = int8.query_scale(form.scale, dtype) if rows.scale else form.scale
        x = b.op("Reshape", x, masks.fold, name=f"{name}_folded")
        return b.op("Mul", x, b.number(scale, dtype), name=name)

    def both(latent: Stored, rope: Stored, name: str, arithmetic: Arithmetic) -> ir.Value:
        first, second = (
            arithmetic.scores(b, query, rows, dtype, f"{name}_{kind}_scores")
            for query, rows, kind in ((q_latent, latent, "latent"), (q_rope, rope, "rope"))
        )
        if latent.scale and not rope.scale:
            second = b.float32(second, dtype, f"{name}_rope_scores_float32")
        return b.op("Add", first, second, name=f"{name}_scores")

    q_latent = folded(q_latent, rows.latent, "query_latent")
    q_rope = folded(q_rope, rows.rope, "query_rope")
    past = both(rows.past_latent, rows.past_rope, "past", arithmetic)
    new = both(rows.latent, rows.rope, "new", NEW)
    joined = b.op("Concat", past, new, axis=2, name="joined")
    joined = b.op("Reshape", joined, masks.unfold, name="scores")  # [B,H,S,T+S]
    # Scores and probabilities of int8 rows are float32: the scale of a row is folded into them.
    scored = ir.DataType.FLOAT if rows.latent.scale else dtype
    probabilities = softmax(b, joined, masks.visible, scored, arithmetic)
    probabilities = b.op("Reshape", probabilities, masks.fold, name="folded")
    past_part, new_part = parts(b, probabilities, masks.split, axis=2)
    found = b.op(
        "Add",
        arithmetic.context(b, past_part, rows.past_latent, dtype, "past_context"),
        NEW.context(b, new_part, rows.latent, dtype, "new_context"),
        name="context",
    )
    return b.op("Reshape", found, b.ints(0, form.heads, -1, form.latent), name="heads")  # [B,H,S,C]


def _prompt_attention(b: Builder, call: Call) -> Values:
    return prompt_attention(b, call, Floats())


def prompt_attention(b: Builder, call: Call, arithmetic: Arithmetic) -> Values:
    """Choose by the number of queries; both forms give the same."""
    q_nope, q_rope, *rest = call.inputs
    rows, masks = Rows.of(rest[:4], rest[10:]), Masks(*rest[6:10])
    w_uk, w_uv = rest[4:6]
    form = Form(call.dtype(), call.number("scale"), call.integer("heads"), call.size(2, 2))
    few = b.inner("latent")
    absorbed = few.op("MatMul", q_nope, w_uk, name="absorb_k")  # [B,H,S,C]
    context = _attend_to_latent(few, absorbed, q_rope, rows, masks, form, arithmetic)
    few_result = few.op("MatMul", context, w_uv, name="absorb_v")  # [B,H,S,D]
    many = b.inner("rebuilt")
    many_result = _attend_to_rebuilt(many, q_nope, q_rope, rows, (w_uk, w_uv), masks, form, arithmetic)
    queries = b.op("Squeeze", b.op("Shape", q_nope, start=2, end=3, name="s"), name="queries")
    limit = b.index(_break_even(form.latent, call.size(0, 3) + call.size(7, 2)))
    return [
        b.op(
            "If",
            b.op("Less", queries, limit, name="few"),
            then_branch=ir.Graph([], [few_result], nodes=few.nodes, name=few.prefix),
            else_branch=ir.Graph([], [many_result], nodes=many.nodes, name=many.prefix),
            name="chosen",
        )
    ]


def _break_even(latent: int, head: int) -> int:
    """Give the number of queries from which rebuilding is less work; `head` is P + D.

    Multiplications a head and row: queries · (2C + R) in the latent space, C(P+D) + queries · (P+R+D)
    rebuilt. Where 2C <= P + D it never is.
    """
    return latent * head // (2 * latent - head) if 2 * latent > head else _TO_THE_END


def _attend_to_rebuilt(
    b: Builder,
    q_nope: ir.Value,
    q_rope: ir.Value,
    rows: Rows,
    weights: tuple[ir.Value, ir.Value],
    masks: Masks,
    form: Form,
    arithmetic: Arithmetic,
) -> ir.Value:
    """Rebuild keys as [B,H,P+R,T+S], the way the scores read them, so that no weight is transposed.

    Here rows are joined: with many queries they are less than their scores.
    """
    w_uk, w_uv = weights
    dtype = form.dtype

    def joined(past: Stored, new: Stored, name: str) -> ir.Value:  # [B,1,T+S,·]
        parts = [
            int8.values(b, x, dtype, f"{kind}_{name}") if x.scale else x.rows
            for x, kind in ((past, "past"), (new, "new"))
        ]
        return b.op(
            "Unsqueeze", b.op("Concat", *parts, axis=1, name=name), b.ints(1), name=f"{name}_of_all_heads"
        )

    latent, rope = joined(rows.past_latent, rows.latent, "latent"), joined(rows.past_rope, rows.rope, "rope")
    columns = b.op("Transpose", latent, perm=[0, 1, 3, 2], name="latent_t")  # [B,1,C,T+S]
    nope_keys = b.op("MatMul", w_uk, columns, name="nope_keys")  # [B,H,P,T+S]
    columns = b.op("Transpose", rope, perm=[0, 1, 3, 2], name="rope_t")
    columns = b.op("Expand", columns, b.ints(1, form.heads, 1, 1), name="rope_keys")  # [B,H,R,T+S]
    keys = b.op("Concat", nope_keys, columns, axis=2, name="keys")
    query = b.op("Concat", q_nope, q_rope, axis=3, name="query")
    query = b.op("Mul", query, b.number(form.scale, dtype), name="query_scaled")
    scores = b.op("MatMul", query, keys, name="scores")  # [B,H,S,T+S]
    probabilities = softmax(b, scores, masks.visible, dtype, arithmetic)
    values = b.op("MatMul", latent, w_uv, name="values")  # [B,H,T+S,D]
    return b.op("MatMul", probabilities, values, name="heads")


def _head_attention(b: Builder, call: Call) -> Values:
    return head_attention(b, call, Floats())


def head_attention(b: Builder, call: Call, arithmetic: Arithmetic) -> Values:
    """Attend to keys and values a head."""
    query, past_key, past_value, key, value, visible, split = call.inputs
    dtype = call.dtype()
    query = b.op("Mul", query, b.number(call.number("scale"), dtype), name="query")

    def scores(rows: ir.Value, name: str) -> ir.Value:
        return b.op("MatMul", query, b.op("Transpose", rows, perm=[0, 2, 3, 1], name=f"{name}_t"), name=name)

    def context(part: ir.Value, rows: ir.Value, name: str) -> ir.Value:
        return b.op("MatMul", part, b.op("Transpose", rows, perm=[0, 2, 1, 3], name=f"{name}_t"), name=name)

    joined = b.op("Concat", scores(past_key, "past_scores"), scores(key, "new_scores"), axis=3, name="scores")
    past_part, new_part = parts(b, softmax(b, joined, visible, dtype, arithmetic), split, axis=3)
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
    "PromptAttention": _prompt_attention,
    "HeadAttention": _head_attention,
    "HeadKeys": _head_keys,
}
