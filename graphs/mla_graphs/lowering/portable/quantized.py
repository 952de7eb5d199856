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
    if weight is not None:
        x, _, *bias = call.inputs
        call = dataclasses.replace(call, inputs=[x, weight.matrix(b, "weight"), *bias])
    return dense.RULES["Linear"](b, call)


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
