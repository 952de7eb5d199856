"""The forms in which a matrix is stored in codes: what is written for it, and the operator that reads it.

`Blocks` is what ONNX Runtime's own operators take. `Channels` and `Groups` are what the standard
`DequantizeLinear` takes, laid out so that TensorRT joins it with the product, and a stack of experts so that
one of them can be gathered.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, Protocol

Bits = Literal[4, 8]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A parameter [in, out], a stack of them [E, in, out], or a `table` [out, in] (embedding and head)."""

    shape: tuple[int, ...]
    table: bool = False

    @property
    def inputs(self) -> int:
        """How many inputs an output has: what groups divide."""
        return self.shape[-1] if self.table else self.shape[-2]

    @property
    def outputs(self) -> tuple[int, ...]:
        """Give the shape without its inputs: [..., out]."""
        return self.shape[:-1] if self.table else (*self.shape[:-2], self.shape[-1])

    @property
    def stack(self) -> tuple[int, ...]:
        """Give [E] of a stack, nothing otherwise."""
        return self.outputs[:-1]


@dataclass(frozen=True, slots=True)
class Codes:
    """Type and shape of a tensor of codes; two of `int4` share a byte, the first in its low half."""

    dtype: Literal["uint8", "int8", "int4"]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes without padding."""
        return -(-prod(self.shape) // 2) if self.dtype == "int4" else prod(self.shape)


class Storage(Protocol):
    """One form: bits a code, and the `mla::` operator that makes the matrix of codes and scales."""

    @property
    def bits(self) -> Bits:
        """Bits of a code."""
        ...

    @property
    def operator(self) -> str:
        """Name of the operator."""
        ...

    def group(self, inputs: int) -> int:
        """Give how many inputs of an output share a scale."""
        ...

    def positive(self, matrix: Matrix) -> bool:
        """Tell whether scales have to be above zero."""
        ...

    def codes(self, matrix: Matrix) -> Codes:
        """Give what the codes are written as."""
        ...

    def scales(self, matrix: Matrix) -> tuple[int, ...]:
        """Give the shape of the scales, which are floats."""
        ...

    def attributes(self, matrix: Matrix) -> dict[str, int]:
        """Give the operator's attributes, but for its name."""
        ...


@dataclass(frozen=True, slots=True)
class Blocks:
    """Codes of 4 or 8 bits in blocks of `size` inputs, output by output; the last of an output is padded.

    `fine`: a target that rounds what the matrix is multiplied with to 8 bits keeps 16 of it.
    """

    bits: Bits
    size: int
    fine: bool = False
    operator: Literal["Dequantize"] = "Dequantize"

    def group(self, inputs: int) -> int:
        """Give the size of a block."""
        del inputs
        return self.size

    def positive(self, matrix: Matrix) -> bool:
        """No."""
        del matrix
        return False

    def codes(self, matrix: Matrix) -> Codes:
        """uint8 [..., out, groups, size · bits / 8]."""
        return Codes("uint8", (*self.scales(matrix), self.size * self.bits // 8))

    def scales(self, matrix: Matrix) -> tuple[int, ...]:
        """[..., out, groups]."""
        return (*matrix.outputs, -(-matrix.inputs // self.size))

    def attributes(self, matrix: Matrix) -> dict[str, int]:
        """Give bits, block, inputs, and whether the matrix is a table."""
        return {
            "bits": self.bits,
            "group": self.size,
            "inputs": matrix.inputs,
            "table": int(matrix.table),
            "fine": int(self.fine),
        }


@dataclass(frozen=True, slots=True)
class Channels:
    """Codes of 8 bits, a scale an output. `rows`: they lie output by output, to be looked up as a table."""

    rows: bool = False
    bits: Literal[8] = 8
    operator: Literal["DequantizeChannels"] = "DequantizeChannels"

    def group(self, inputs: int) -> int:
        """Give all inputs."""
        return inputs

    def positive(self, matrix: Matrix) -> bool:
        """As TensorRT wants of `DequantizeLinear`, which a stack does not come by."""
        return not matrix.stack

    def codes(self, matrix: Matrix) -> Codes:
        """int8 [..., in, out], as rows [out, in]."""
        *stack, out = matrix.outputs
        return Codes("int8", (out, matrix.inputs) if self.rows else (*stack, matrix.inputs, out))

    def scales(self, matrix: Matrix) -> tuple[int, ...]:
        """[out], of a stack [E, 1, out]."""
        *stack, out = matrix.outputs
        return (*stack, 1, out) if stack else (out,)

    def attributes(self, matrix: Matrix) -> dict[str, int]:
        """Give whether codes lie as rows, and whether the matrix is a table."""
        return {"rows": int(self.rows), "table": int(matrix.table)}


@dataclass(frozen=True, slots=True)
class Groups:
    """Codes of 4 bits in groups of `size` inputs, which divide the inputs; of a stack as bytes of two."""

    size: int
    bits: Literal[4] = 4
    operator: Literal["DequantizeGroups"] = "DequantizeGroups"

    def group(self, inputs: int) -> int:
        """Give the size of a group."""
        del inputs
        return self.size

    def positive(self, matrix: Matrix) -> bool:
        """As TensorRT wants of `DequantizeLinear`, which a stack does not come by."""
        return not matrix.stack

    def codes(self, matrix: Matrix) -> Codes:
        """int4 [in, out]; of a stack int8 [E, in / 2, out]."""
        *stack, out = matrix.outputs
        if stack:
            return Codes("int8", (*stack, matrix.inputs // 2, out))
        return Codes("int4", (matrix.inputs, out))

    def scales(self, matrix: Matrix) -> tuple[int, ...]:
        """[..., groups, out]."""
        *stack, out = matrix.outputs
        return (*stack, matrix.inputs // self.size, out)

    def attributes(self, matrix: Matrix) -> dict[str, int]:
        """Give the group, and whether the matrix is a table."""
        return {"group": self.size, "table": int(matrix.table)}
