"""Products with weights in blocks, by `MatMulNBits`; weights in floats as in `portable`."""

from __future__ import annotations

import onnx_ir as ir

from mla_graphs.lowering.builder import BlockWeight, Builder, Call
from mla_graphs.lowering.portable import dense

Values = list[ir.Value]

# Activations are rounded to int8 too, a scale for each block of a row. Level 0 is many times slower.
ACCURACY_LEVEL = 4


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


def _linear(b: Builder, call: Call) -> Values:
    weight = call.blocks(1)
    if weight is None:
        return dense.RULES["Linear"](b, call)
    x, _, *bias = call.inputs
    return [product(b, x, weight, bias[0] if bias else None)]


def _logits(b: Builder, call: Call) -> Values:
    table = call.blocks(1)
    if table is None:
        return dense.RULES["Logits"](b, call)
    return [product(b, dense.scaled(b, call.inputs[0], call.dtype(), call, "scaled"), table)]


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
