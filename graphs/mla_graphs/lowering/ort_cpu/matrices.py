"""Products with weights in blocks, by `MatMulNBits`; weights in floats as in `portable`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mla_graphs.lowering.builder import BlockWeight, Builder, Call
from mla_graphs.lowering.portable import dense

Values = list[ir.Value]

# Activations are rounded to int8 too, a scale for each block of a row. Level 0 is many times slower.
ACCURACY_LEVEL = 4
_LARGEST_CODE = 127.0
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


def product(
    b: Builder,
    x: ir.Value,
    weight: BlockWeight,
    bias: ir.Value | None = None,
    name: str = "",
    entry: int | None = None,
) -> ir.Value:
    """Write x [..., in] · weight [in, out] + bias; `entry` picks a matrix of a stack."""
    codes, scales = weight.codes, weight.scales
    if entry is not None:
        codes, scales = b.part(codes, entry), b.part(scales, entry)
    return b.contrib(
        "MatMulNBits",
        x,
        codes,
        scales,
        *([] if bias is None else [None, None, bias]),  # zero points and group indices are not used
        name=name,
        K=weight.inputs,
        N=weight.outputs,
        bits=weight.bits,
        block_size=weight.group,
        accuracy_level=ACCURACY_LEVEL,
    )


def _fine_product(
    b: Builder, x: ir.Value, rank: int, weight: BlockWeight, bias: ir.Value | None = None
) -> ir.Value:
    """Multiply x [..., in] of `rank` axes as 16 bits: what MatMulNBits rounds it to, and what that leaves.

    The two are rows of one product, which reads the weights once: for one token it takes a fifth longer.
    """
    rows = [0] * (rank - 1)
    groups = -(-weight.inputs // weight.group)
    if padding := groups * weight.group - weight.inputs:
        padded = b.op("Pad", x, b.ints(*[0] * (2 * rank - 1), padding), name="whole_groups")
    else:
        padded = x
    blocks = b.op("Reshape", padded, b.ints(*rows, groups, weight.group), name="blocks")
    largest = b.op("Abs", blocks, name="magnitude")
    largest = b.op("ReduceMax", largest, b.ints(-1), keepdims=1, name="largest")
    scale = b.op("Mul", largest, b.number(1.0 / _LARGEST_CODE, ir.DataType.FLOAT), name="scale_or_zero")
    scale = b.op("Max", scale, b.number(_SMALLEST_SCALE, ir.DataType.FLOAT), name="scale")
    codes = b.op("Round", b.op("Div", blocks, scale, name="ratio"), name="codes")
    rounded = b.op("Mul", codes, scale, name="rounded_blocks")
    rest = b.op("Sub", blocks, rounded, name="rest_blocks")
    both = b.op("Concat", rounded, rest, axis=0, name="both_blocks")  # twice the rows
    both = b.op("Reshape", both, b.ints(*rows, -1), name="both_padded")
    if padding:
        both = b.op("Slice", both, b.ints(0), b.ints(weight.inputs), b.ints(rank - 1), name="both")
    parts = product(b, both, weight, name="products")
    of_rounded, of_rest = b.ops("Split", parts, axis=0, num_outputs=2, names=("of_rounded", "of_rest"))
    if bias is not None:
        of_rest = b.op("Add", of_rest, bias, name="of_rest_and_bias")
    return b.op("Add", of_rounded, of_rest)


def _linear(b: Builder, call: Call) -> Values:
    weight = call.blocks(1)
    if weight is None:
        return dense.RULES["Linear"](b, call)
    x, _, *bias = call.inputs
    if weight.fine:
        return [_fine_product(b, x, 3, weight, *bias)]
    return [product(b, x, weight, bias[0] if bias else None)]


def _logits(b: Builder, call: Call) -> Values:
    table = call.blocks(1)
    if table is None:
        return dense.RULES["Logits"](b, call)
    x = dense.scaled(b, call.inputs[0], call.dtype(), call, "scaled")
    if table.fine:
        return [_fine_product(b, x, 2, table)]
    return [product(b, x, table)]


def _embed(b: Builder, call: Call) -> Values:
    table = call.blocks(1)
    if table is None:
        return dense.RULES["Embed"](b, call)
    if table.bits != 8:
        raise ValueError(f"{call.node.name}: rows of {table.bits} bits are not looked up")
    ids = call.inputs[0]
    codes = b.op("Gather", table.codes, ids, axis=0, name="codes")  # [B,S,groups,group]
    scales = b.op("Gather", table.scales, ids, axis=0, name="scales")
    signed = b.op(
        "Sub",
        b.op("Cast", codes, name="codes_float", to=ir.DataType.FLOAT),
        b.number(128.0, ir.DataType.FLOAT),
        name="signed",
    )
    rows = b.op("Mul", signed, b.op("Unsqueeze", scales, b.ints(3), name="scale_column"), name="groups")
    rows = b.op("Reshape", rows, b.ints(0, 0, -1), name="padded")
    rows = b.op("Slice", rows, b.ints(0), b.ints(table.inputs), b.ints(2), name="rows")
    return [dense.scaled(b, rows, ir.DataType.FLOAT, call, "scaled")]


def _dequantize(b: Builder, call: Call) -> Values:
    """Write nothing: whoever takes the weight reads its codes. What did not would find no such value."""
    del call
    return [ir.Value(name=b.prefix)]


RULES = {"Linear": _linear, "Logits": _logits, "Embed": _embed, "Dequantize": _dequantize}
