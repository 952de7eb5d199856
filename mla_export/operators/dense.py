"""Everything that is neither attention nor routing: lookups, norms, matmuls, reshapes."""

from __future__ import annotations

import torch
from torch import Tensor

from mla_export.operators.arithmetic import Arithmetic, Call


def scaled(call: Call, x: Tensor) -> Tensor:
    """Multiply x by the operator's scale, unless it is one."""
    scale = call.number("scale")
    return x if scale == 1.0 else x * call.arithmetic.number(scale)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(first half) · second half, over the last axis."""
    gate, up = gate_up.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def _embed(call: Call) -> list[Tensor]:
    return [scaled(call, call.real(1)[call.given(0)])]


def _rotary_rows(call: Call) -> list[Tensor]:
    positions = call.given(0)
    return [call.wide(table)[positions].unsqueeze(1) for table in (1, 2)]  # [B,1,S,R/2]


def _rms_norm(call: Call) -> list[Tensor]:
    x = call.real(0).to(call.arithmetic.wide)
    root = torch.sqrt(x.square().mean(-1, keepdim=True) + call.number("epsilon"))
    return [(x / root).to(call.arithmetic.real) * call.real(1)]


def _linear(call: Call) -> list[Tensor]:
    y = call.arithmetic.matmul(call.real(0), call.real(1))
    return [y if call.optional(2) is None else y + call.real(2)]


def _split(call: Call) -> list[Tensor]:
    return list(torch.split(call.real(0), call.integers("sizes"), dim=-1))


def _split_heads(call: Call) -> list[Tensor]:
    return [_head_rows(call)[0].transpose(1, 2)]


def _merge_heads(call: Call) -> list[Tensor]:
    return [call.real(0).transpose(1, 2).flatten(2)]


def _head_rows(call: Call) -> list[Tensor]:
    x = call.real(0)
    return [x.reshape(*x.shape[:-1], call.integer("heads"), -1)]


def _rotate(call: Call) -> list[Tensor]:
    a, b = call.real(0).to(call.arithmetic.wide).chunk(2, dim=-1)
    cos, sin = call.wide(1), call.wide(2)
    return [torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(call.arithmetic.real)]


def _head_linear(call: Call) -> list[Tensor]:
    return [call.arithmetic.matmul(call.real(0), call.real(1))]


def _swiglu(call: Call) -> list[Tensor]:
    return [swiglu(call.real(0))]


def _residual(call: Call) -> list[Tensor]:
    return [call.real(0) + scaled(call, call.real(1))]


def _rows(call: Call) -> list[Tensor]:
    return [call.real(0).reshape(-1, call.integer("width"))]


def _unrows(call: Call) -> list[Tensor]:
    return [call.real(0).reshape(call.given(1).shape)]


def _select_rows(call: Call) -> list[Tensor]:
    return [_rows(call)[0][call.given(1)]]


def _logits(call: Call) -> list[Tensor]:
    arithmetic: Arithmetic = call.arithmetic
    return [arithmetic.matmul(scaled(call, call.real(0)), call.real(1).T).to(arithmetic.wide)]


RULES = {
    "Embed": _embed,
    "RotaryRows": _rotary_rows,
    "RMSNorm": _rms_norm,
    "Linear": _linear,
    "Split": _split,
    "SplitHeads": _split_heads,
    "MergeHeads": _merge_heads,
    "HeadRows": _head_rows,
    "Rotate": _rotate,
    "HeadLinear": _head_linear,
    "SwiGLU": _swiglu,
    "Residual": _residual,
    "Rows": _rows,
    "Unrows": _unrows,
    "SelectRows": _select_rows,
    "Logits": _logits,
}
