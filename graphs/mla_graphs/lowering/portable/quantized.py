"""Products with weights in codes, and rows of an embedding in codes; weights in floats as in `dense`."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from mla_graphs.lowering.builder import Builder, Call
from mla_graphs.lowering.portable import codes, dense
from mla_graphs.lowering.portable.codes import ChannelWeight

Values = list[ir.Value]


def _linear(b: Builder, call: Call) -> Values:
    weight = codes.weight(call, 1)
    if weight is None:
        return dense.RULES["Linear"](b, call)
    x, _, *bias = call.inputs
    matrix = weight.matrix(b, "weight")
    if not isinstance(weight, ChannelWeight):
        return dense.RULES["Linear"](b, dataclasses.replace(call, inputs=[x, matrix, *bias]))
    # beside x of three axes TensorRT 1.7 copies codes that are inputs before it multiplies with them
    rows = b.op("Reshape", x, b.ints(-1, call.size(1, 0)), name="rows")
    found = b.op("MatMul", rows, matrix, name="product")
    if bias:
        found = b.op("Add", found, bias[0], name="biased")
    shape = b.op("Concat", b.op("Shape", x, end=-1, name="leading"), b.ints(-1), axis=0, name="shape")
    return [b.op("Reshape", found, shape)]


def _logits(b: Builder, call: Call) -> Values:
    table = codes.weight(call, 1)
    if table is None:
        return dense.RULES["Logits"](b, call)
    rows = isinstance(table, ChannelWeight) and table.rows  # the embedding's own
    return dense.logits(b, call, table.matrix(b, "weight"), rows=rows)


def _embed(b: Builder, call: Call) -> Values:
    table = codes.weight(call, 1)
    if table is None:
        return dense.RULES["Embed"](b, call)
    if not isinstance(table, ChannelWeight) or not table.rows:
        raise ValueError(f"{call.node.name}: its table is not stored in rows")
    ids = call.inputs[0]
    rows = b.op("Gather", table.codes, ids, axis=0, name="codes")  # [B,S,hidden]
    rows = b.op("Cast", rows, to=table.dtype, name="floats")
    scales = b.op("Gather", table.scales, ids, axis=0, name="scales")  # [B,S]
    scales = b.op("Unsqueeze", scales, b.ints(2), name="scale_column")
    return [dense.scaled(b, b.op("Mul", rows, scales), table.dtype, call, "scaled")]


def _nothing(b: Builder, call: Call) -> Values:
    """Write nothing: whoever takes the weight reads its codes. What did not would find no such value."""
    del call
    return [ir.Value(name=b.prefix)]


RULES = {
    "Linear": _linear,
    "Logits": _logits,
    "Embed": _embed,
    "DequantizeChannels": _nothing,
    "DequantizeGroups": _nothing,
}
