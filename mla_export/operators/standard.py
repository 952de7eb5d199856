"""The few standard ONNX nodes that tracing a block leaves beside the `mla::` operators."""

from __future__ import annotations

import torch
from torch import Tensor

from mla_export.operators.arithmetic import Call


def _constant(call: Call) -> list[Tensor]:
    return [torch.from_numpy(call.node.attributes["value"].as_tensor().numpy().copy())]


def _value(call: Call, index: int) -> Tensor:
    """Give an input, activations in their type."""
    x = call.given(index)
    return x.to(call.arithmetic.real) if x.is_floating_point() else x


def _unsqueeze(call: Call) -> list[Tensor]:
    x, axes = _value(call, 0), call.given(1).tolist()
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return [x]


def _squeeze(call: Call) -> list[Tensor]:
    return [_value(call, 0).squeeze(call.given(1).tolist())]


def _concat(call: Call) -> list[Tensor]:
    return [torch.cat([_value(call, i) for i in range(len(call.inputs))], dim=call.integer("axis"))]


RULES = {"Constant": _constant, "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Concat": _concat}
