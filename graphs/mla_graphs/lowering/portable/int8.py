"""Rows of a cache in 8 bits: one scale a token, folded into scores and probabilities.

A row's value is code · scale. A query's score with it is (query · code) · scale, and what it adds to the
context is (probability · scale) · code, so that no row is ever written out in floats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mla_graphs.lowering.builder import Builder, Call

Values = list[ir.Value]

_FLOAT = ir.DataType.FLOAT
LARGEST_CODE = 127.0
# The smallest normal float32: the scale of a row of zeros, so that nothing is divided by zero.
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)

# Codes are up to 127 times as large as the numbers they stand for, which a sum over a row in fp16 may not
# bear: there queries are made smaller, and probabilities (which scales make small) larger. Powers of two.
_FP16_FACTOR = 16.0


@dataclass(frozen=True, slots=True)
class Stored:
    """Rows [B,T,·] as a cache stores them: floats, or codes of 8 bits with their scales [B,T]."""

    rows: ir.Value
    scale: ir.Value | None


def _factor(dtype: ir.DataType) -> float:
    return 1.0 if dtype == _FLOAT else _FP16_FACTOR


def query_scale(softmax_scale: float, dtype: ir.DataType) -> float:
    """Give what a query is multiplied with before it meets codes."""
    return softmax_scale / _factor(dtype)


def codes(b: Builder, stored: Stored, dtype: ir.DataType, name: str) -> ir.Value:
    """Give codes as floats of `dtype`, exactly; float rows as they are.

    DequantizeLinear by one is a cast that every TensorRT knows for int8. ONNX Runtime 1.31 moves it past a
    Transpose, which before opset 21 takes int8 for uint8 without a zero point, and from then on with one.
    """
    if stored.scale is None:
        return stored.rows
    implied = b.opset >= 21 and stored.rows.dtype == ir.DataType.INT8
    zero = [] if implied else [zero_point(b, stored.rows)]
    return b.op("DequantizeLinear", stored.rows, b.number(1.0, dtype), *zero, name=name)


def zero_point(b: Builder, codes: ir.Value | None) -> ir.Value:
    """Give the code that stands for zero: 0 in int8, 128 in uint8."""
    if codes is None or codes.dtype is None:
        raise ValueError("codes have no type")
    return b.byte(0 if codes.dtype == ir.DataType.INT8 else 128, codes.dtype)


def scaled_scores(b: Builder, scores: ir.Value, stored: Stored, dtype: ir.DataType, name: str) -> ir.Value:
    """Fold the scales into scores [B,H·S,T] of codes; the result is float32."""
    scale = b.op("Unsqueeze", stored.scale, b.ints(1), name=f"{name}_scale_row")
    if (factor := _factor(dtype)) != 1.0:
        scale = b.op("Mul", scale, b.number(factor, _FLOAT), name=f"{name}_scale")
    return b.op("Mul", b.float32(scores, dtype, f"{name}_float32"), scale, name=f"{name}_scaled")


def scaled_probabilities(
    b: Builder, probabilities: ir.Value, stored: Stored, dtype: ir.DataType, name: str
) -> ir.Value:
    """Fold the scales into float32 probabilities [B,H·S,T]; the result is of type `dtype`."""
    scale = b.op("Unsqueeze", stored.scale, b.ints(1), name=f"{name}_scale_row")
    if (factor := _factor(dtype)) != 1.0:
        scale = b.op("Mul", scale, b.number(factor, _FLOAT), name=f"{name}_scale")
    return b.cast(b.op("Mul", probabilities, scale, name=f"{name}_scaled"), dtype, f"{name}_scaled_cast")


def unscaled_context(b: Builder, context: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
    """Take out of the context the factor that `scaled_probabilities` put in."""
    if (factor := _factor(dtype)) == 1.0:
        return context
    return b.op("Mul", context, b.number(1.0 / factor, dtype), name=f"{name}_unscaled")


def values(b: Builder, stored: Stored, dtype: ir.DataType, name: str) -> ir.Value:
    """Write rows out in floats [B,T,·], for many queries at once; float rows as they are."""
    column = b.op("Unsqueeze", stored.scale, b.ints(2), name=f"{name}_scale")
    found = b.op("Mul", codes(b, stored, _FLOAT, f"{name}_codes"), column, name=f"{name}_values")
    return b.cast(found, dtype, f"{name}_cast")


def _quantize_rows(b: Builder, call: Call) -> Values:
    x = b.float32(call.inputs[0], call.dtype(), "float32")
    largest = b.op("ReduceMax", b.op("Abs", x, name="magnitude"), b.ints(-1), keepdims=0, name="largest")
    scale = b.op("Div", largest, b.number(LARGEST_CODE, _FLOAT), name="scale_or_zero")
    scale = b.op("Max", scale, b.number(SMALLEST_SCALE, _FLOAT), name="scale")  # [B,S]
    ratio = b.op("Div", x, b.op("Unsqueeze", scale, b.ints(2), name="scale_column"), name="ratio")
    # Rounds to even and saturates; |ratio| is at most 127 but for the last bit of the division.
    zero = zero_point(b, call.node.outputs[0])
    return [b.op("QuantizeLinear", ratio, b.number(1.0, _FLOAT), zero, name="codes"), scale]


RULES = {"QuantizeRows": _quantize_rows}
