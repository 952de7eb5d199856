"""Who decides how a matrix is rounded while weights are written, and how much that changed each of them."""

from __future__ import annotations

import math
from typing import Protocol

import onnx_ir as ir
import torch
from torch import Tensor

from mla_export.layout import Parameter
from mla_export.quantize import Quantized, quantize_blocks

_SCALES = {ir.DataType.FLOAT: torch.float32, ir.DataType.FLOAT16: torch.float16}
# Weights that are compared at once: they stay in a core's cache.
_CHUNK = 1 << 17


class Quantiser(Protocol):
    """Rounds matrices to codes."""

    def __call__(self, parameter: Parameter, matrix: Tensor, expert: int | None) -> Quantized:
        """Round `matrix` [out, in] of a parameter in codes; `expert` is its place in a stack, or None."""
        ...


def scale_dtype(parameter: Parameter) -> torch.dtype:
    """Give the type that a parameter's scales are stored in."""
    return _SCALES[parameter.dtype]


def searched(parameter: Parameter, matrix: Tensor, expert: int | None) -> Quantized:
    """Round to the nearest codes under scales of least squared error."""
    del expert
    storage = parameter.storage
    assert storage is not None  # noqa: S101 - a quantiser is asked for codes only
    return quantize_blocks(
        matrix,
        storage.bits,
        storage.group(parameter.matrix.inputs),
        scale_dtype=scale_dtype(parameter),
        positive=storage.positive(parameter.matrix),
        name=parameter.name,
    )


Sums = tuple[float, float]


class WeightErrors:
    """What rounding changed: of each parameter in codes, the RMS error as a share of the RMS weight."""

    def __init__(self) -> None:
        self._sums: dict[str, Sums] = {}

    def watch(self, quantiser: Quantiser) -> Quantiser:
        """Give a quantiser that does the same and adds up its errors here."""

        def watched(parameter: Parameter, matrix: Tensor, expert: int | None) -> Quantized:
            found = quantiser(parameter, matrix, expert)
            self._add(parameter.name, matrix, found)
            return found

        return watched

    def sums(self, name: str) -> Sums | None:
        """Give the squared errors and the squared weights of a parameter, summed; None for one in floats."""
        return self._sums.get(name)

    def restore(self, name: str, sums: Sums) -> None:
        """Take over what an earlier run found for a parameter."""
        self._sums[name] = sums

    @property
    def by_parameter(self) -> dict[str, float]:
        """Give each parameter's relative error."""
        return {name: _share(*sums) for name, sums in self._sums.items()}

    @property
    def overall(self) -> float:
        """Give the relative error of all together."""
        errors, sizes = ([sums[i] for sums in self._sums.values()] for i in (0, 1))
        return _share(sum(errors), sum(sizes))

    def _add(self, name: str, matrix: Tensor, found: Quantized) -> None:
        error, size = self._sums.get(name, (0.0, 0.0))
        rows = max(1, _CHUNK // found.codes.shape[1])
        for start in range(0, len(matrix), rows):
            part = slice(start, start + rows)
            here = Quantized(found.codes[part], found.scales[part], found.bits, found.group, found.inputs)
            weights = matrix[part].float()
            size += float(weights.square().sum())
            error += float((here.dequantize() - weights).square().sum())
        self._sums[name] = (error, size)


def _share(error: float, size: float) -> float:
    return math.sqrt(error / size) if size else 0.0
