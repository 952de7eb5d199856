"""Nodes that make no new numbers: shapes, places, choices, comparisons. Inputs come as they are stored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mla_export.emulate.call import Call, Rule


def _compare(function: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    return lambda call: [function(call.given(0), call.given(1))]


def _constant(call: Call) -> list[Tensor]:
    return [torch.from_numpy(call.node.attributes["value"].as_tensor().numpy().copy())]


def _shape(call: Call) -> list[Tensor]:
    sizes = list(call.given(0).shape)
    return [torch.tensor(sizes[call.integer("start", 0) : call.integer("end", len(sizes))])]


def _reshape(call: Call) -> list[Tensor]:
    x = call.given(0)
    return [x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(call.numbers(1))])]


def _transpose(call: Call) -> list[Tensor]:
    return [call.given(0).permute(*call.node.attributes["perm"].as_ints())]


def _unsqueeze(call: Call) -> list[Tensor]:
    x, axes = call.given(0), call.numbers(1)
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return [x]


def _squeeze(call: Call) -> list[Tensor]:
    x = call.given(0)
    return [x.squeeze() if call.optional(1) is None else x.squeeze(call.numbers(1))]


def _expand(call: Call) -> list[Tensor]:
    x = call.given(0)
    return [x.expand(np.broadcast_shapes(tuple(x.shape), tuple(call.numbers(1))))]


def _concat(call: Call) -> list[Tensor]:
    return [torch.cat([call.given(i) for i in range(len(call.inputs))], dim=call.integer("axis", 0))]


def _split(call: Call) -> list[Tensor]:
    x, axis = call.given(0), call.integer("axis", 0)
    if call.optional(1) is not None:
        return list(torch.split(x, call.numbers(1), dim=axis))
    count = call.integer("num_outputs", len(call.node.outputs))
    return list(torch.split(x, -(-x.shape[axis] // count), dim=axis))


def _slice(call: Call) -> list[Tensor]:
    x, starts, ends = call.given(0), call.numbers(1), call.numbers(2)
    axes = list(range(len(starts))) if call.optional(3) is None else call.numbers(3)
    steps = [1] * len(starts) if call.optional(4) is None else call.numbers(4)
    cut = [slice(None)] * x.dim()
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[axis] = slice(start, end, step)
    return [x[tuple(cut)]]


def _gather(call: Call) -> list[Tensor]:
    x, ids, axis = call.given(0), call.given(1).to(torch.int64), call.integer("axis", 0)
    axis %= x.dim()
    ids = torch.where(ids < 0, ids + x.shape[axis], ids)
    found = x.index_select(axis, ids.reshape(-1))
    return [found.reshape((*x.shape[:axis], *ids.shape, *x.shape[axis + 1 :]))]


def _gather_elements(call: Call) -> list[Tensor]:
    return [call.given(0).gather(call.integer("axis", 0), call.given(1))]


def _scatter_nd(call: Call) -> list[Tensor]:
    places = call.given(1).unbind(-1)
    return [call.given(0).clone().index_put(places, call.given(2))]


def _top_k(call: Call) -> list[Tensor]:
    """Give the largest and their places, ties to the lowest."""
    axis, (count,) = call.integer("axis", -1), call.numbers(1)
    values, places = torch.sort(call.given(0), dim=axis, descending=True, stable=True)
    return [values.narrow(axis, 0, count), places.narrow(axis, 0, count)]


def _cum_sum(call: Call) -> list[Tensor]:
    (axis,) = call.numbers(1)
    return [call.given(0).cumsum(axis)]


def _range(call: Call) -> list[Tensor]:
    start, limit, delta = (int(call.given(i)) for i in range(3))
    return [torch.arange(start, limit, delta)]


def _where(call: Call) -> list[Tensor]:
    return [torch.where(call.given(0), call.given(1), call.given(2))]


RULES: dict[str, Rule] = {
    "And": _compare(torch.logical_and),
    "Equal": _compare(torch.eq),
    "Less": _compare(torch.lt),
    "LessOrEqual": _compare(torch.le),
    "Concat": _concat,
    "Constant": _constant,
    "CumSum": _cum_sum,
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Range": _range,
    "Reshape": _reshape,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
