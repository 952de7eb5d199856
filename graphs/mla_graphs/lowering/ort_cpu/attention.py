"""Attention over rows of 8 bits by integer products, which processors with VNNI or AMX do many times faster.

ONNX Runtime 1.31 is quick at uint8 · int8 only: uint8 · uint8 takes two to six times as long, int8 · int8 ten
times. The rows of this target are uint8: they are the first operand of the scores, which read all of them
as they are. As the second operand of the context they become int8.
"""

from __future__ import annotations

import onnx_ir as ir

from mla_graphs.lowering.builder import Builder, Call
from mla_graphs.lowering.portable import attention, grouped
from mla_graphs.lowering.portable.attention import Floats
from mla_graphs.lowering.portable.int8 import LARGEST_CODE, SMALLEST_SCALE, Stored, zero_point

Values = list[ir.Value]

_FLOAT = ir.DataType.FLOAT
# Added to scores, which are far smaller. Finite, so that a query that sees nothing gives finite rows.
_UNSEEN = -3e38
# Probabilities become 16 bits, in two products of 8: the many small ones together weigh too much to be lost.
_LARGEST_PROBABILITY = 65535.0
# Up to here writing the rows out in int8 takes longer than the slower product.
_FEW_HEADS = 16


class Biased(Floats):
    """What is not seen gets a bias, which takes a third of the time of a selection."""

    def seen(self, b: Builder, scores: ir.Value, visible: ir.Value) -> ir.Value:
        """Add the bias; rows that are not seen must give finite scores, as the rows of any token do."""
        bias = b.op("Where", visible, b.number(0.0, _FLOAT), b.number(_UNSEEN, _FLOAT), name="bias")
        return b.op("Add", scores, bias, name="seen")


class Integers(Biased):
    """Rows are read as they are stored; queries are rounded to int8 a head, probabilities to 16 bits."""

    def __init__(self, heads: int) -> None:
        self._heads = heads

    def scores(self, b: Builder, query: ir.Value, rows: Stored, dtype: ir.DataType, name: str) -> ir.Value:
        """Multiply rows [T,C] with queries [C,H·S], which is the order that ONNX Runtime does well."""
        if rows.scale is None:
            return super().scores(b, query, rows, dtype, name)
        largest = b.op("Abs", query, name=f"{name}_magnitude")
        largest = b.op("ReduceMax", largest, b.ints(-1), keepdims=1, name=f"{name}_largest")  # [B,H·S,1]
        scale = b.op("Mul", largest, b.number(1.0 / LARGEST_CODE, _FLOAT), name=f"{name}_query_scale_or_zero")
        scale = b.op("Max", scale, b.number(SMALLEST_SCALE, _FLOAT), name=f"{name}_query_scale")
        ratio = b.op("Div", query, scale, name=f"{name}_ratio")
        int8 = b.byte(0, ir.DataType.INT8)
        codes = b.op("QuantizeLinear", ratio, b.number(1.0, _FLOAT), int8, name=f"{name}_query_codes")
        found = b.contrib(
            "MatMulIntegerToFloat",
            rows.rows,
            b.op("Transpose", codes, perm=[0, 2, 1], name=f"{name}_query_t"),  # [B,C,H·S]
            b.number(1.0, _FLOAT),
            b.op("Transpose", scale, perm=[0, 2, 1], name=f"{name}_query_scale_t"),  # [B,1,H·S]
            zero_point(b, rows.rows),
            name=f"{name}_products",
        )  # [B,T,H·S]
        found = b.op("Transpose", found, perm=[0, 2, 1], name=f"{name}_by_head")  # [B,H·S,T]
        row = b.op("Unsqueeze", rows.scale, b.ints(1), name=f"{name}_scale_row")
        return b.op("Mul", found, row, name=name)

    def context(
        self, b: Builder, probabilities: ir.Value, rows: Stored, dtype: ir.DataType, name: str
    ) -> ir.Value:
        """Multiply probabilities times scales, in two parts of 8 bits, with rows [T,C]."""
        if rows.scale is None:
            return super().context(b, probabilities, rows, dtype, name)
        row = b.op("Unsqueeze", rows.scale, b.ints(1), name=f"{name}_scale_row")
        weights = b.op("Mul", probabilities, row, name=f"{name}_weights")
        largest = b.op("ReduceMax", weights, b.ints(-1), keepdims=1, name=f"{name}_largest_or_zero")
        largest = b.op("Max", largest, b.number(SMALLEST_SCALE * 1e6, _FLOAT), name=f"{name}_largest")
        unit = b.op("Div", b.number(_LARGEST_PROBABILITY, _FLOAT), largest, name=f"{name}_per_unit")
        codes = b.op("Mul", weights, unit, name=f"{name}_ratio")
        codes = b.op("Add", codes, b.number(0.5, _FLOAT), name=f"{name}_to_nearest")
        # Casts drop what is behind the point, and the one to 8 bits keeps the low byte.
        high = b.op("Mul", codes, b.number(1 / 256, _FLOAT), name=f"{name}_high_bits")
        high = b.op("Cast", high, to=ir.DataType.UINT8, name=f"{name}_high")
        low = b.op("Cast", codes, to=ir.DataType.INT32, name=f"{name}_codes")
        low = b.op("Cast", low, to=ir.DataType.UINT8, name=f"{name}_low")
        parts = b.op("Concat", high, low, axis=1, name=f"{name}_parts")  # [B,2·H·S,T]
        found = self._sums(b, parts, rows.rows, name)  # [B,2·H·S,C]
        found = b.op("Cast", found, to=_FLOAT, name=f"{name}_sums")
        high, low = b.ops("Split", found, axis=1, num_outputs=2, names=(f"{name}_of_high", f"{name}_of_low"))
        high = b.op("Mul", high, b.number(256.0, _FLOAT), name=f"{name}_high_scaled")
        found = b.op("Add", high, low, name=f"{name}_joined")
        return b.op("Div", found, unit, name=name)

    def _sums(self, b: Builder, parts: ir.Value, rows: ir.Value, name: str) -> ir.Value:
        zero = zero_point(b, rows)
        if self._heads <= _FEW_HEADS:
            none = b.byte(0, ir.DataType.UINT8)
            return b.op("MatMulInteger", parts, rows, none, zero, name=f"{name}_products")
        rows = b.op("Sub", rows, zero, name=f"{name}_two_s_complement")
        rows = b.op("Cast", rows, to=ir.DataType.INT8, name=f"{name}_signed_rows")
        return b.op("MatMulInteger", parts, rows, name=f"{name}_products")


def _latent_attention(b: Builder, call: Call) -> Values:
    return attention.latent_attention(b, call, Integers(call.integer("heads")))


def _prompt_attention(b: Builder, call: Call) -> Values:
    return attention.prompt_attention(b, call, Integers(call.integer("heads")))


def _head_attention(b: Builder, call: Call) -> Values:
    return attention.head_attention(b, call, Biased())


def _grouped_attention(b: Builder, call: Call) -> Values:
    return grouped.grouped_attention(b, call, Integers(grouped.heads_a_group(call)))


RULES = {
    "LatentAttention": _latent_attention,
    "PromptAttention": _prompt_attention,
    "HeadAttention": _head_attention,
    "GroupedAttention": _grouped_attention,
}
