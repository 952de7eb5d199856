"""Weights in codes as standard operators read them: whole matrices, or some out of a stack of experts.

Matrices come by `DequantizeLinear`, which TensorRT joins with the product. A stack is gathered first, so that
experts which nobody chose are neither read nor written out: `DequantizeLinear` takes no scales that change
with the data there, and INT4 cannot be gathered, so these are a few exact operations on floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from mla_graphs.lowering.builder import Builder, Call

# A byte of a stack in 4 bits: 16 · the code of the second half, plus the code of the first half and 8.
_NIBBLE = 16.0
_OFFSET = 8.0


class Experts(Protocol):
    """A matrix an expert."""

    def chosen(self, b: Builder, ids: ir.Value, rank: int, name: str) -> ir.Value:
        """Give the matrices [..., in, out] of the experts `ids`, which have `rank` axes."""
        ...


class Weight(Experts, Protocol):
    """A weight in codes: one matrix, or a stack of them."""

    def matrix(self, b: Builder, name: str) -> ir.Value:
        """Give the matrix [in, out] in floats; [out, in] where its codes lie as rows."""
        ...


@dataclass(frozen=True, slots=True)
class FloatStack:
    """A stack [E, in, out] in floats."""

    stack: ir.Value

    def chosen(self, b: Builder, ids: ir.Value, rank: int, name: str) -> ir.Value:
        """Gather them."""
        del rank
        return b.op("Gather", self.stack, ids, axis=0, name=name)


@dataclass(frozen=True, slots=True)
class ChannelWeight:
    """int8 codes with a scale an output, in `dtype`; `rows`: codes are [out, in]."""

    codes: ir.Value
    scales: ir.Value
    dtype: ir.DataType
    rows: bool

    def matrix(self, b: Builder, name: str) -> ir.Value:
        """Write [in, out], or rows [out, in]."""
        return b.op("DequantizeLinear", self.codes, self.scales, axis=0 if self.rows else 1, name=name)

    def chosen(self, b: Builder, ids: ir.Value, rank: int, name: str) -> ir.Value:
        """Gather codes and scales, and multiply."""
        del rank
        codes = b.op("Gather", self.codes, ids, axis=0, name=f"{name}_codes")  # [..., in, out]
        scales = b.op("Gather", self.scales, ids, axis=0, name=f"{name}_scales")  # [..., 1, out]
        return b.op("Mul", b.op("Cast", codes, to=self.dtype, name=f"{name}_floats"), scales, name=name)


@dataclass(frozen=True, slots=True)
class GroupWeight:
    """Codes of 4 bits, a scale for each `group` of inputs, in `dtype`: int4, or of a stack bytes of two."""

    codes: ir.Value
    scales: ir.Value
    dtype: ir.DataType
    group: int

    def matrix(self, b: Builder, name: str) -> ir.Value:
        """Write [in, out]."""
        return b.op("DequantizeLinear", self.codes, self.scales, axis=0, block_size=self.group, name=name)

    def chosen(self, b: Builder, ids: ir.Value, rank: int, name: str) -> ir.Value:
        """Gather bytes and scales, take the bytes apart, and multiply group by group."""
        groups, out = self._scale_shape()
        kept = [0] * rank
        packed = b.op("Gather", self.codes, ids, axis=0, name=f"{name}_bytes")  # [..., in / 2, out]
        floats = b.op("Cast", packed, to=self.dtype, name=f"{name}_floats")
        high = b.op("Mul", floats, b.number(1 / _NIBBLE, self.dtype), name=f"{name}_ratio")
        high = b.op("Floor", high, name=f"{name}_second")
        raised = b.op("Mul", high, b.number(_NIBBLE, self.dtype), name=f"{name}_raised")
        raised = b.op("Add", raised, b.number(_OFFSET, self.dtype), name=f"{name}_offset")
        low = b.op("Sub", floats, raised, name=f"{name}_first")
        codes = b.op("Concat", low, high, axis=rank, name=f"{name}_codes")  # [..., in, out]
        codes = b.op("Reshape", codes, b.ints(*kept, groups, self.group, out), name=f"{name}_groups")
        scales = b.op("Gather", self.scales, ids, axis=0, name=f"{name}_scales")  # [..., groups, out]
        scales = b.op("Unsqueeze", scales, b.ints(rank + 1), name=f"{name}_scale_rows")
        values = b.op("Mul", codes, scales, name=f"{name}_values")
        return b.op("Reshape", values, b.ints(*kept, groups * self.group, out), name=name)

    def _scale_shape(self) -> tuple[int, int]:
        shape = self.scales.shape
        sizes = () if shape is None else tuple(shape[-2:])
        match sizes:
            case (int(groups), int(out)):
                return groups, out
        raise ValueError(f"{self.scales.name} has no shape")


def weight(call: Call, index: int) -> Weight | None:
    """Give an input of an operator that is stored in codes; None for one in floats."""
    if found := call.codes(index, "DequantizeChannels"):
        node, codes, scales = found
        return ChannelWeight(codes, scales, call.dtype(index), bool(node.attributes["rows"].as_int()))
    if found := call.codes(index, "DequantizeGroups"):
        node, codes, scales = found
        return GroupWeight(codes, scales, call.dtype(index), node.attributes["group"].as_int())
    return None


def experts(call: Call, index: int) -> Experts:
    """Give an input of an operator that is a stack, in codes or in floats."""
    return weight(call, index) or FloatStack(call.inputs[index])
