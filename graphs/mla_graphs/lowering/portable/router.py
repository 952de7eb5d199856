"""DeepSeek's gate: which experts a token goes to, and with which weights."""

from __future__ import annotations

import onnx_ir as ir

from mla_graphs.lowering.builder import Builder, Call

Values = list[ir.Value]

_LOWEST = -3.0e38
_FLOAT = ir.DataType.FLOAT


def _route(b: Builder, call: Call) -> Values:
    x, weight, *bias = call.inputs
    top_k = call.integer("top_k")
    logits = b.op("MatMul", b.float32(x, call.dtype(), "float32"), weight, name="logits")
    if call.text("scoring") == "sigmoid":
        scores = b.op("Sigmoid", logits, name="scores")
    else:
        scores = b.op("Softmax", logits, axis=-1, name="scores")
    choice = b.op("Add", scores, bias[0], name="choice") if bias else scores  # [N,E]
    if call.integer("groups"):
        choice = _limit_groups(b, call, choice)
    _, ids = b.ops("TopK", choice, b.ints(top_k), axis=1, names=("chosen", "expert_ids"))
    weights = b.op("GatherElements", scores, ids, axis=1, name="chosen_scores")  # [N,K]
    if call.integer("normalize"):
        total = b.op("ReduceSum", weights, b.ints(1), keepdims=1, name="total")
        total = b.op("Add", total, b.number(1e-20, _FLOAT), name="total_guarded")
        weights = b.op("Div", weights, total, name="normalized")
    scaling = call.number("scaling")
    return [ids, b.op("Mul", weights, b.number(scaling, _FLOAT), name="expert_weights")]


def _limit_groups(b: Builder, call: Call, choice: ir.Value) -> ir.Value:
    groups, experts = call.integer("groups"), call.integer("experts")
    grouped = b.op("Reshape", choice, b.ints(-1, groups, experts // groups), name="grouped")  # [N,G,E/G]
    if call.text("group_score") == "max":
        ranks = b.op("ReduceMax", grouped, b.ints(2), keepdims=0, name="group_scores")
    else:
        best, _ = b.ops("TopK", grouped, b.ints(2), axis=2, names=("group_best", "group_best_ids"))
        ranks = b.op("ReduceSum", best, b.ints(2), keepdims=0, name="group_scores")
    top_groups = b.ints(call.integer("top_groups"))
    _, ids = b.ops("TopK", ranks, top_groups, axis=1, names=("group_chosen", "group_ids"))
    # The open groups by comparison instead of a scatter: [N,top,1] = [G], any over the chosen.
    hits = b.op(
        "Equal", b.op("Unsqueeze", ids, b.ints(2), name="group_row"), b.ints(*range(groups)), name="hits"
    )
    counts = b.op("Cast", hits, to=ir.DataType.INT64, name="hits_int")
    open_ = b.op("ReduceMax", counts, b.ints(1), keepdims=0, name="open_int")
    open_ = b.op("Cast", open_, to=ir.DataType.BOOL, name="open")  # [N,G]
    open_ = b.op("Unsqueeze", open_, b.ints(2), name="open_row")
    kept = b.op("Where", open_, grouped, b.number(_LOWEST, _FLOAT), name="kept")
    return b.op("Reshape", kept, b.ints(-1, experts), name="limited")


RULES = {"Route": _route}
