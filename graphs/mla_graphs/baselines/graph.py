"""The two graphs of a kind of attention: the layer with its projections, and what reads the cache, alone."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from mla_graphs.baselines import projections
from mla_graphs.baselines.shape import Attention
from mla_graphs.baselines.writer import Writer
from mla_graphs.contract import TensorSpec

_FLOAT = ir.DataType.FLOAT
_BOOL = ir.DataType.BOOL
_INT64 = ir.DataType.INT64


def queries(attention: Attention) -> tuple[TensorSpec, ...]:
    """Give what the projections make and attention takes: queries, and new rows not yet stored (float32)."""
    a, s = attention, attention.shape
    heads = s.num_attention_heads
    if a.kind == "mla":
        query = {"q_latent": s.kv_lora_rank, "q_rope": s.qk_rope_head_dim}
    else:
        query = {"query": a.key_dim}
    new = [TensorSpec(name, "float32", ("B", heads, "S", width)) for name, width in query.items()]
    batch = a.rows[0].past.shape[0]
    return (*new, *(TensorSpec(name, "float32", (batch, "S", width)) for name, width in a.widths.items()))


def core(attention: Attention) -> ir.Model:
    """Give attention alone: from queries and new rows to `context` [B,H,S,·].

    New rows are stored as the cache does before they are attended to, but do not come back.

    Inputs: those of `queries`; `position_ids` int64 [B,S], of which the shape counts; `past_lengths` and
    `new_lengths` int64 [B]; the cache. Rows beyond the lengths are masked by selection.
    """
    w = Writer()
    made = {spec.name: w.input(spec.name, spec.dtype, spec.shape) for spec in queries(attention)}
    context, _ = _attend(w, attention, made, w.input("position_ids", "int64", ("B", "S")))
    shape = ("B", attention.shape.num_attention_heads, "S", _context_width(attention))
    return w.model([(TensorSpec("context", "float32", shape), context)])


def layer(attention: Attention) -> ir.Model:
    """Give the layer: from `hidden` [B,S,hidden], normed already, to `output` [B,S,hidden] and new rows.

    Other inputs as in `core`. The graph's weights have no values yet; they are named as in a bundle's layer
    where they are the same ones, with `rotary.cos` and `rotary.sin` [positions,R/2] beside them.
    """
    w = Writer()
    hidden = w.input("hidden", "float32", ("B", "S", attention.shape.hidden_size))
    positions = w.input("position_ids", "int64", ("B", "S"))
    made = projections.incoming(w, attention, hidden, positions)
    context, stored = _attend(w, attention, made, positions)
    output = projections.outgoing(w, attention, context)
    spec = TensorSpec("output", "float32", ("B", "S", attention.shape.hidden_size))
    return w.model([(spec, output), *((row.present, stored[row.name]) for row in attention.rows)])


def _context_width(attention: Attention) -> int:
    return attention.shape.kv_lora_rank if attention.kind == "mla" else attention.shape.v_head_dim


def _attend(
    w: Writer, attention: Attention, made: Mapping[str, ir.Value], positions: ir.Value
) -> tuple[ir.Value, dict[str, ir.Value]]:
    """Store the new rows as the cache does, and attend to them as they are stored."""
    a, heads = attention, attention.shape.num_attention_heads
    lengths = [w.input(f"{name}_lengths", "int64", ("B",)) for name in ("past", "new")]
    past = {row.name: w.input(row.past.name, row.past.dtype, row.past.shape) for row in a.rows}
    new = _stored(w, a, made)
    visible, _, split, fold, unfold = w.ops(
        "Visibility",
        [positions, *lengths, past[a.rows[0].name]],
        [
            (_BOOL, ("B", 1, "S", "T + S")),
            (_BOOL, ("B*S",)),
            (_INT64, (1,)),
            (_INT64, (3,)),
            (_INT64, (4,)),
        ],
        "visibility",
        heads=heads,
    )
    first, second = a.widths
    shape = ("B", heads, "S", _context_width(a))
    rows = [past[first], past[second], new[first], new[second]]
    scale = a.softmax_scale
    if a.kind == "mla":
        query = [made["q_latent"], made["q_rope"]]
        scales = [x[f"{name}_scale"] for name in a.widths if a.scaled(name) for x in (past, new)]
        inputs = [*query, *rows, visible, split, fold, unfold, *scales]
        return w.op("LatentAttention", inputs, shape, "core", scale=scale, heads=heads), new
    scales = [x[f"{name}_scale"] for x in (past, new) for name in a.widths if a.scaled(name)]
    inputs = [made["query"], *rows, visible, split, *scales]
    return w.op("GroupedAttention", inputs, shape, "core", scale=scale, groups=a.groups), new


def _stored(w: Writer, attention: Attention, made: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
    """Give the new rows, and the scales of those that are codes."""
    found: dict[str, ir.Value] = {}
    batch = attention.rows[0].past.shape[0]
    codes = {"int8": ir.DataType.INT8, "uint8": ir.DataType.UINT8}[attention.codes]
    for name, width in attention.widths.items():
        if attention.scaled(name):
            results = [(codes, (batch, "S", width)), (_FLOAT, (batch, "S"))]
            found[name], found[f"{name}_scale"] = w.ops("QuantizeRows", [made[name]], results, f"{name}_int8")
        else:
            found[name] = made[name]
    return found
