"""Routed experts: gathered in a step, in tiles over a prompt."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mla_graphs.lowering.builder import Builder, Call
from mla_graphs.lowering.portable import codes
from mla_graphs.lowering.portable.codes import Experts
from mla_graphs.lowering.portable.dense import swiglu

Values = list[ir.Value]

# Rows of one expert that go through it together. A tile reads its expert's weights once: larger tiles
# read less and compute more padding.
TILE = 32


def gathered(b: Builder, call: Call) -> Values:
    """Read the weights of the chosen experts only: right for a few tokens. No control flow."""
    x, ids, weights, counts, *_ = call.inputs
    gate_up, down = codes.experts(call, 4), codes.experts(call, 5)
    dtype = call.dtype()
    weights = kept_weights(b, weights, counts, dtype)  # [N,K]
    rows = b.op("Unsqueeze", x, b.ints(1, 2), name="rows")  # [N,1,1,hidden]
    chosen = gate_up.chosen(b, ids, 2, "gate_up_chosen")  # [N,K,hidden,2I]
    hidden = swiglu(b, b.op("MatMul", rows, chosen, name="gate_up_product"))  # [N,K,1,I]
    chosen = down.chosen(b, ids, 2, "down_chosen")  # [N,K,I,hidden]
    outputs = b.op("MatMul", hidden, chosen, name="down_product")  # [N,K,1,hidden]
    weights = b.op("Unsqueeze", weights, b.ints(2, 3), name="weights_row")
    return [b.op("ReduceSum", b.op("Mul", outputs, weights, name="weighted"), b.ints(1, 2), keepdims=0)]


def tiled(b: Builder, call: Call) -> Values:
    """Run experts one by one over their own tokens, in tiles of `TILE` rows.

    Assignments are laid out by expert, each expert padded to whole tiles; a loop takes a tile through
    its expert. Shapes inside the loop are static and nothing is scattered into a carried tensor, which
    is what both ONNX Runtime and TensorRT do well. It runs over as many tiles as there can be at most, those
    that stay empty included: their number follows from shapes alone. Of one that follows from the choice
    of experts TensorRT-RTX 1.7 builds one layer and not three, and a device would have to wait for it.
    """
    x, ids, weights, counts, *_ = call.inputs
    dtype = call.dtype()
    top_k = call.integer("top_k")
    weights = kept_weights(b, weights, counts, dtype)
    slots, tokens, tile_experts, tiles = _layout(b, call, ids, counts)
    # A row of zeros stands in for the padding of a tile.
    hidden = call.size(0, 1)
    zero = b.op("Expand", b.number(0.0, dtype), b.ints(1, hidden), name="zero")
    padded = b.op("Concat", x, zero, axis=0, name="padded")  # [N+1,hidden]
    body = _tile_body(b, padded, tokens, tile_experts, codes.experts(call, 4), codes.experts(call, 5))
    outputs = b.op("Loop", tiles, None, body=body, name="loop")
    flat = b.op("Reshape", outputs, b.ints(-1, hidden), name="tile_rows")
    own = b.op("Gather", flat, slots, axis=0, name="own_rows")  # [N·K,hidden]
    own = b.op("Reshape", own, b.ints(-1, top_k, hidden), name="own")
    weights = b.op("Unsqueeze", weights, b.ints(2), name="weights_row")
    return [b.op("ReduceSum", b.op("Mul", own, weights, name="weighted"), b.ints(1), keepdims=0, name="sum")]


def kept_weights(b: Builder, weights: ir.Value, counts: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Give the experts' weights [N,K], zero for rows that do not count."""
    row = b.op("Unsqueeze", counts, b.ints(1), name="counts_row")
    kept = b.op("Where", row, weights, b.number(0.0, ir.DataType.FLOAT), name="weights_kept")
    return b.cast(kept, dtype, "weights")


def _layout(b: Builder, call: Call, ids: ir.Value, counts: ir.Value) -> tuple[ir.Value, ...]:
    """Give each assignment's slot [N·K], each slot's token [tiles,TILE], each tile's expert, the tiles."""
    experts, top_k = call.integer("experts"), call.integer("top_k")
    int64 = ir.DataType.INT64
    row = b.op("Unsqueeze", counts, b.ints(1), name="counts_column")
    # Padding goes to an expert past the last, which has no tiles.
    real = b.op("Where", row, ids, b.index(experts), name="real_ids")
    flat = b.op("Reshape", real, b.ints(-1), name="flat_ids")  # [N·K]
    column = b.op("Unsqueeze", flat, b.ints(1), name="id_column")
    hits = b.op("Equal", column, b.ints(*range(experts + 1)), name="hits")
    hits = b.op("Cast", hits, to=int64, name="one_hot")  # [N·K,E+1]
    running = b.op("CumSum", hits, b.index(0), name="running")
    rank = b.op("GatherElements", running, column, axis=1, name="rank")
    rank = b.op("Sub", b.op("Squeeze", rank, b.ints(1), name="rank_flat"), b.index(1), name="rank_in_expert")
    load = b.op("ReduceSum", hits, b.ints(0), keepdims=0, name="load")
    load = b.op("Slice", load, b.ints(0), b.ints(experts), b.ints(0), name="load_real")  # [E]
    used = b.op("Div", b.op("Add", load, b.index(TILE - 1), name="load_up"), b.index(TILE), name="tiles_each")
    ends = b.op("CumSum", used, b.index(0), name="tile_ends")  # [E]
    starts = b.op("Mul", b.op("Sub", ends, used, name="tile_starts"), b.index(TILE), name="starts")
    # The most tiles there can be, from shapes alone: all assignments in whole tiles, and one begun an expert.
    assignments = b.op("Shape", flat, name="assignments")  # [1]
    begun = b.op("Min", assignments, b.ints(experts), name="begun")
    whole = b.op("Div", assignments, b.ints(TILE), name="whole")
    most = b.op("Add", whole, begun, name="most_tiles")  # [1]
    size = b.op("Mul", most, b.ints(TILE), name="slot_count")
    # Slot `size` takes the padding.
    starts = b.op("Concat", starts, size, axis=0, name="starts_padded")  # [E+1]
    is_real = b.op("Less", flat, b.index(experts), name="is_real")
    rank = b.op("Where", is_real, rank, b.index(0), name="rank_real")
    slots = b.op("Add", b.op("Gather", starts, flat, axis=0, name="own_start"), rank, name="slots")
    token = b.op("Range", b.index(0), b.op("Squeeze", assignments, name="nk"), b.index(1), name="assignment")
    token = b.op("Div", token, b.index(top_k), name="token")
    empty = b.op("Shape", ids, start=0, end=1, name="zero_row")  # [1]: N, the row of zeros
    filled = b.op("Expand", empty, b.op("Add", size, b.ints(1), name="slot_count_padded"), name="slots_empty")
    filled = b.op(
        "ScatterND", filled, b.op("Unsqueeze", slots, b.ints(1), name="slot_column"), token, name="filled"
    )
    filled = b.op("Slice", filled, b.ints(0), size, b.ints(0), name="filled_real")
    tokens = b.op("Reshape", filled, b.ints(-1, TILE), name="tokens")  # [most,TILE]
    tile = b.op("Range", b.index(0), b.op("Squeeze", most, name="most"), b.index(1), name="tile")
    passed = b.op("LessOrEqual", ends, b.op("Unsqueeze", tile, b.ints(1), name="tile_column"), name="passed")
    passed = b.op("Cast", passed, to=int64, name="passed_int")
    owner = b.op("ReduceSum", passed, b.ints(1), keepdims=0, name="owner")
    owner = b.op("Min", owner, b.index(experts - 1), name="tile_experts")  # [most]
    picked = b.op("Where", is_real, slots, b.index(0), name="picked")
    return picked, tokens, owner, b.op("Squeeze", most, name="tiles")


def _tile_body(
    b: Builder, x: ir.Value, tokens: ir.Value, owners: ir.Value, gate_up: Experts, down: Experts
) -> ir.Graph:
    inner = b.inner("body")
    tile = ir.val(f"{inner.prefix}.tile", ir.DataType.INT64, [])
    go = ir.val(f"{inner.prefix}.go", ir.DataType.BOOL, [])
    expert = inner.op("Gather", owners, tile, axis=0, name="expert")
    rows = inner.op("Gather", x, inner.op("Gather", tokens, tile, axis=0, name="tokens"), axis=0, name="rows")
    matrix = gate_up.chosen(inner, expert, 0, "gate_up_of")
    hidden = inner.op("MatMul", rows, matrix, name="gate_up_product")
    hidden = swiglu(inner, hidden)
    matrix = down.chosen(inner, expert, 0, "down_of")
    output = inner.op("MatMul", hidden, matrix, name="down_product")
    # TensorRT wants a loop with a trip count alone, and then does not know the condition passed in.
    go_on = inner.op("Constant", value=ir.tensor(np.array(True)), name="go_on")
    return ir.Graph([tile, go], [go_on, output], nodes=inner.nodes, name=inner.prefix)
