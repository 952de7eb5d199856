"""One node to compute: its inputs and attributes, by what ONNX says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir
import torch
from torch import Tensor

from mla_export.node_inputs import NodeInputs

Rule: TypeAlias = "Callable[[Call], list[Tensor]]"

# int4 is unpacked when it is read
DTYPES = {
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}


@dataclass(frozen=True, slots=True)
class Call(NodeInputs):
    """A node to compute; what it does not say is what ONNX says."""

    def numbers(self, index: int) -> list[int]:
        """Give an input that is a list of whole numbers, or one of them."""
        return [int(i) for i in self.given(index).reshape(-1)]

    def integer(self, name: str, default: int) -> int:
        """Give an integer attribute."""
        found = self.node.attributes.get(name)
        return default if found is None else found.as_int()

    def number(self, name: str, default: float) -> float:
        """Give a float attribute."""
        found = self.node.attributes.get(name)
        return default if found is None else found.as_float()
