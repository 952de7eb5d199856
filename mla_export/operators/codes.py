"""Numbers stored as codes: rows of a cache in 8 bits, and matrices in blocks of 4 or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from mla_export.operators.arithmetic import Arithmetic, Call

_LARGEST_CODE = 127
# In float16 a sum over codes, which are up to 127 times what they stand for, may overflow: queries are made
# smaller by this there and probabilities larger. A power of two, so that no result is rounded otherwise.
_FLOAT16_FACTOR = 16.0


@dataclass(frozen=True, slots=True)
class Stored:
    """Rows [B,T,·] as a cache stores them: floats, or codes of 8 bits with their scales [B,T]."""

    rows: Tensor
    scale: Tensor | None

    @classmethod
    def of(cls, call: Call, rows: int, scale: int) -> Stored:
        """Take rows and, where there is one, their scale from the inputs of an operator."""
        if call.optional(scale) is None:
            return cls(call.real(rows), None)
        codes = call.given(rows)
        zero = 128 if codes.dtype == torch.uint8 else 0
        return cls((codes.to(torch.int16) - zero).to(call.arithmetic.real), call.wide(scale))

    def factor(self, arithmetic: Arithmetic) -> float:
        """Give by how much queries are made smaller before they meet these rows."""
        return _FLOAT16_FACTOR if self.scale is not None and arithmetic.real == torch.float16 else 1.0

    def scores(self, query: Tensor, scale: float, arithmetic: Arithmetic) -> Tensor:
        """Give scale · (query [B,H,S,·] · rows) as [B,H,S,T], in `wide` where rows have scales."""
        factor = self.factor(arithmetic)
        query = query * arithmetic.number(scale / factor)
        found = arithmetic.matmul(query, self.rows.mT[:, None])
        if self.scale is None:
            return found
        return found.to(arithmetic.wide) * (self.scale * factor)[:, None, None]

    def context(self, probabilities: Tensor, visible: Tensor, arithmetic: Arithmetic) -> Tensor:
        """Give the sum of the rows by probabilities [B,H,S,T] as [B,H,S,·]."""
        rows = self.rows[:, None]
        if self.scale is None:
            return arithmetic.mix(probabilities, rows, visible)
        factor = self.factor(arithmetic)
        part = (probabilities * (self.scale * factor)[:, None, None]).masked_fill(~visible, 0)
        found = arithmetic.mix(part.to(arithmetic.real), rows, visible)
        return found * arithmetic.number(1 / factor)

    def values(self, arithmetic: Arithmetic) -> Tensor:
        """Write the rows out as [B,T,·]."""
        if self.scale is None:
            return self.rows
        return (self.rows.to(arithmetic.wide) * self.scale[..., None]).to(arithmetic.real)


def _quantize_rows(call: Call) -> list[Tensor]:
    x = call.real(0).to(call.arithmetic.wide)
    # the smallest normal float32 for a row of zeros, so that nothing is divided by zero
    scale = (x.abs().amax(-1) / _LARGEST_CODE).clamp_min(torch.finfo(torch.float32).tiny)  # [B,S]
    codes = torch.round(x / scale[..., None]).clamp(-_LARGEST_CODE, _LARGEST_CODE).to(torch.int16)
    if call.node.outputs[0].dtype == ir.DataType.UINT8:
        return [(codes + 128).to(torch.uint8), scale]
    return [codes.to(torch.int8), scale]


def _dequantize(call: Call) -> list[Tensor]:
    codes, scales = call.given(0), call.wide(1)
    if call.integer("bits") == 4:
        codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)  # the first in the low half
    centre = 2 ** (call.integer("bits") - 1)
    values = (codes.to(call.arithmetic.wide) - centre) * scales[..., None]  # [..., out, groups, group]
    weight = values.flatten(-2)[..., : call.integer("inputs")].to(call.arithmetic.real)
    return [weight if call.integer("table") else weight.mT]


def _dequantize_channels(call: Call) -> list[Tensor]:
    codes, scales = call.given(0).to(call.arithmetic.wide), call.wide(1)
    weight = (codes * (scales[:, None] if call.integer("rows") else scales)).to(call.arithmetic.real)
    return [weight if call.integer("table") == call.integer("rows") else weight.mT]


def _dequantize_groups(call: Call) -> list[Tensor]:
    codes, scales = call.given(0), call.wide(1)
    if codes.dim() == 3:  # two to a byte
        high = codes >> 4
        codes = torch.cat((codes - 16 * high - 8, high), dim=1)
    spread = scales.repeat_interleave(call.integer("group"), dim=-2)
    weight = (codes.to(call.arithmetic.wide) * spread).to(call.arithmetic.real)
    return [weight.mT if call.integer("table") else weight]


RULES = {
    "QuantizeRows": _quantize_rows,
    "Dequantize": _dequantize,
    "DequantizeChannels": _dequantize_channels,
    "DequantizeGroups": _dequantize_groups,
}
