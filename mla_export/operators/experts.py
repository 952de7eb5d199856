"""DeepSeek's gate and the routed experts (V2 section 2.2, V3 section 2.1.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from mla_export.operators.arithmetic import Call
from mla_export.operators.dense import swiglu


def _route(call: Call) -> list[Tensor]:
    logits = call.real(0).to(call.arithmetic.wide) @ call.wide(1)  # [N,E]
    scores = torch.sigmoid(logits) if call.text("scoring") == "sigmoid" else torch.softmax(logits, dim=-1)
    choice = scores if call.optional(2) is None else scores + call.wide(2)
    if call.integer("groups"):
        choice = _limited(call, choice)
    ids = _top(choice, call.integer("top_k"))
    weights = scores.gather(1, ids)  # [N,K]
    if call.integer("normalize"):
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)  # the guard of DeepSeek's own code
    return [ids, weights * call.number("scaling")]


def _limited(call: Call, choice: Tensor) -> Tensor:
    """Leave of choice [N,E] the best groups, by their best expert or the sum of their best two."""
    grouped = choice.reshape(len(choice), call.integer("groups"), -1)  # [N,G,E/G]
    best = 1 if call.text("group_score") == "max" else 2
    ranks = torch.sort(grouped, dim=-1, descending=True).values[..., :best].sum(-1)
    closed = torch.ones_like(ranks, dtype=torch.bool)
    closed.scatter_(1, _top(ranks, call.integer("top_groups")), False)
    return grouped.masked_fill(closed[..., None], -torch.inf).flatten(1)


def _top(scores: Tensor, count: int) -> Tensor:
    """Give the indices of the largest of each row, ties to the lowest."""
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices[:, :count]


def _experts(call: Call) -> list[Tensor]:
    arithmetic = call.arithmetic
    x, ids, counts = call.real(0), call.given(1), call.given(3)
    weights = call.wide(2).to(arithmetic.real)  # [N,K]
    gate_up, down = call.given(4), call.given(5)
    parts = torch.zeros(*ids.shape, x.shape[1], dtype=arithmetic.real)  # [N,K,hidden]
    taken = ids.masked_fill(~counts[:, None], -1)  # a row that does not count goes to no expert
    for expert in sorted({*taken.flatten().tolist()} - {-1}):
        tokens, ranks = (taken == expert).nonzero(as_tuple=True)
        hidden = swiglu(arithmetic.matmul(x[tokens], gate_up[expert].to(arithmetic.real)))
        found = arithmetic.matmul(hidden, down[expert].to(arithmetic.real))
        parts[tokens, ranks] = found * weights[tokens, ranks, None]
    return [arithmetic.sum(parts, 1)]


RULES = {"Route": _route, "Experts": _experts}
