"""Nodes whose results are new numbers. Floats come in, and go out, in float32: whoever asks rounds them.

A sum, a difference, a product, a quotient or a root of float16 numbers that is computed in float32 and
rounded once is the nearest float16 to the true one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from mla_export.emulate.call import DTYPES, Call, Rule

# of a matrix as many elements are widened at a time: 128 MiB in float32
_ELEMENTS = 2**25


def _of_one(function: Callable[[Tensor], Tensor]) -> Rule:
    return lambda call: [function(call.given(0))]


def _of_two(function: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    return lambda call: [function(call.given(0), call.given(1))]


def _of_any(function: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    return lambda call: [reduce(function, (call.given(i) for i in range(len(call.inputs))))]


def _div(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _reduced(function: Callable[[Tensor, list[int], bool], Tensor]) -> Rule:
    def rule(call: Call) -> list[Tensor]:
        x, keep = call.given(0), bool(call.integer("keepdims", 1))
        axes = list(range(x.dim())) if call.optional(1) is None else call.numbers(1)
        return [function(x, axes, keep)]

    return rule


def _cast(call: Call) -> list[Tensor]:
    to = DTYPES[ir.DataType(call.integer("to", 0))]
    return [call.given(0).to(torch.float32 if to.is_floating_point else to)]


def _softmax(call: Call) -> list[Tensor]:
    return [torch.softmax(call.given(0), dim=call.integer("axis", -1))]


def product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices [..., m, k] and [..., k, n] of any float types, with sums in float32."""
    a = a.float()
    if b.numel() <= _ELEMENTS:
        return torch.matmul(a, b.float())
    if b.dim() == 2:
        columns = max(1, _ELEMENTS // b.shape[0])
        return torch.cat([torch.matmul(a, part.float()) for part in torch.split(b, columns, dim=1)], dim=-1)
    lead = np.broadcast_shapes(tuple(a.shape[:-2]), tuple(b.shape[:-2]))
    a, b = a.expand(*lead, *a.shape[-2:]), b.expand(*lead, *b.shape[-2:])
    return torch.stack([product(*pair) for pair in zip(a, b, strict=True)])


def _gemm(call: Call) -> list[Tensor]:
    a, b = call.given(0), call.given(1)
    a = a.mT if call.integer("transA", 0) else a
    b = b.mT if call.integer("transB", 0) else b
    found = product(a, b) * call.number("alpha", 1.0)
    bias = call.optional(2)
    return [found if bias is None else found + bias.float() * call.number("beta", 1.0)]


def _quantize(call: Call) -> list[Tensor]:
    zero = call.given(2)
    codes = torch.round(call.given(0) / _along(call, call.given(1))) + _along(call, zero.float())
    limits = torch.iinfo(zero.dtype)
    return [codes.clamp(limits.min, limits.max).to(zero.dtype)]


def _dequantize(call: Call) -> list[Tensor]:
    codes, zero = call.given(0).float(), call.optional(2)
    if zero is not None:
        codes = codes - _along(call, zero.float())
    return [codes * _along(call, call.given(1))]


def _along(call: Call, scale: Tensor) -> Tensor:
    """Shape scales so that they meet what they scale: one for all, one a slice of an axis, or one a block."""
    x, axis, block = call.given(0), call.integer("axis", 1), call.integer("block_size", 0)
    if scale.dim() == 0:
        return scale
    axis %= x.dim()
    if block:
        return scale.repeat_interleave(block, dim=axis).narrow(axis, 0, x.shape[axis])
    return scale.reshape(-1, *(1,) * (x.dim() - axis - 1))


# its inputs come as they are stored: a matrix is widened in parts
PRODUCTS: dict[str, Rule] = {"MatMul": _of_two(product), "Gemm": _gemm}

RULES: dict[str, Rule] = {
    "Abs": _of_one(torch.abs),
    "Floor": _of_one(torch.floor),
    "Sigmoid": _of_one(torch.sigmoid),
    "Sqrt": _of_one(torch.sqrt),
    "Add": _of_two(torch.add),
    "Sub": _of_two(torch.sub),
    "Mul": _of_two(torch.mul),
    "Div": _of_two(_div),
    "Pow": _of_two(torch.pow),
    "Max": _of_any(torch.maximum),
    "Min": _of_any(torch.minimum),
    "ReduceMax": _reduced(lambda x, axes, keep: torch.amax(x, axes, keep)),
    "ReduceMean": _reduced(lambda x, axes, keep: torch.mean(x, axes, keep)),
    "ReduceSum": _reduced(lambda x, axes, keep: torch.sum(x, axes, keep)),
    "Cast": _cast,
    "Softmax": _softmax,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
