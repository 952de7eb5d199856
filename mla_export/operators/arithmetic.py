"""The precisions that operators are computed in, and one call of an operator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mla_export.node_inputs import NodeInputs
from mla_export.rounding import Precision


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What activations are kept in (`real`), and what sums, norms, rotations and gates are computed in.

    In torch an elementwise operator on 16-bit tensors is computed in float32 and rounded once, as a device
    does it, so only matmuls and sums need care: they go through `wide`.
    """

    real: torch.dtype
    wide: torch.dtype

    @classmethod
    def of(cls, precision: Precision) -> Arithmetic:
        """Give the arithmetic of a precision."""
        wide = torch.float64 if precision == "float64" else torch.float32
        return cls(getattr(torch, precision), wide)

    def number(self, value: float) -> Tensor:
        """Give a constant, rounded as it stands in a graph of this type."""
        return torch.tensor(value, dtype=self.real)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply matrices; products are summed in `wide` and the sums rounded."""
        return torch.matmul(a.to(self.wide), b.to(self.wide)).to(self.real)

    def mix(self, probabilities: Tensor, rows: Tensor, visible: Tensor) -> Tensor:
        """Sum rows [B,1|H,T,·] by probabilities [B,H,S,T], which are zero where visible [B,1,S,T] is false.

        A row that is not finite spoils the queries that see it, and no other: 0 · NaN would be NaN.
        """
        broken = ~rows.isfinite().all(-1)  # [B,1|H,T]
        found = self.matmul(probabilities, rows.masked_fill(broken[..., None], 0))
        spoiled = (visible & broken[:, :, None]).any(-1, keepdim=True)
        return found.masked_fill(spoiled, torch.nan)

    def sum(self, x: Tensor, axis: int) -> Tensor:
        """Sum along an axis in `wide` and round."""
        return x.to(self.wide).sum(axis).to(self.real)

    def softmax(self, scores: Tensor, visible: Tensor) -> Tensor:
        """Give probabilities in `wide`, zero where a row is not visible, and for a query that sees none."""
        scores = scores.to(self.wide).masked_fill(~visible, -torch.inf)
        found = torch.softmax(scores, dim=-1)
        return torch.where(visible.any(-1, keepdim=True), found, torch.zeros_like(found))


@dataclass(frozen=True, slots=True)
class Call(NodeInputs):
    """One operator to compute: its node, its inputs (None: absent), and the arithmetic to do it in."""

    arithmetic: Arithmetic

    def real(self, index: int) -> Tensor:
        """Give an input of the type that activations have."""
        return self.given(index).to(self.arithmetic.real)

    def wide(self, index: int) -> Tensor:
        """Give an input that is float32 in every graph."""
        return self.given(index).to(self.arithmetic.wide)

    def integer(self, name: str) -> int:
        """Give an integer attribute."""
        return self.node.attributes[name].as_int()

    def integers(self, name: str) -> list[int]:
        """Give an attribute of several integers."""
        return list(self.node.attributes[name].as_ints())

    def number(self, name: str) -> float:
        """Give a float attribute."""
        return self.node.attributes[name].as_float()

    def text(self, name: str) -> str:
        """Give a string attribute."""
        return self.node.attributes[name].as_string()
