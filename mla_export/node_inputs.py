"""A node of a graph and what it is fed with, for all that compute nodes in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from torch import Tensor


@dataclass(frozen=True, slots=True)
class NodeInputs:
    """A node and its inputs (None: absent)."""

    node: ir.Node
    inputs: Sequence[Tensor | None]

    def given(self, index: int) -> Tensor:
        """Give an input as it came; raises ValueError where it is absent."""
        found = self.optional(index)
        if found is None:
            raise ValueError(f"{self.node.name}: input {index} of {self.node.op_type} is absent")
        return found

    def optional(self, index: int) -> Tensor | None:
        """Give an input as it came, or None."""
        return self.inputs[index] if index < len(self.inputs) else None
