"""Codes and scales of groups of weights, each group's scale searched for the least squared error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mla_graphs.storage import Bits
from mla_runtime.errors import ExportError

# Shares of a group's largest value that are tried as the end of its range; what is beyond is clipped. For
# bell-shaped weights in 4 bits the best is near 0.95 in groups of 32 and near 0.85 in groups of 128.
_SHARES: dict[Bits, tuple[float, ...]] = {4: (1.0, 0.92, 0.84), 8: (1.0,)}
# Weights that are worked on at once: they and what is made of them stay in a core's cache.
_CHUNK = 1 << 16
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True)
class Quantized:
    """A weight [out, in] as codes and scales: value = code · the scale of its group.

    `codes` int8 [out, groups · group], -8 … 7 or -128 … 127, zero beyond `inputs`; `scales` [out, groups], of
    either sign unless they were asked to be positive.
    """

    codes: Tensor
    scales: Tensor
    bits: Bits
    group: int
    inputs: int

    def dequantize(self) -> Tensor:
        """Give the values [out, in] in float32."""
        out, groups = self.scales.shape
        codes = self.codes.reshape(out, groups, self.group)
        return (codes * self.scales.float()[..., None]).reshape(out, -1)[:, : self.inputs]


def limits(bits: Bits) -> tuple[int, int]:
    """Give the lowest and the highest code."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def quantize_blocks(
    weight: Tensor,
    bits: Bits,
    group: int,
    *,
    scale_dtype: torch.dtype = torch.float32,
    positive: bool = False,
    name: str = "weight",
) -> Quantized:
    """Round a weight [out, in] to the nearest codes under the scales of least squared error.

    The scales are rounded to `scale_dtype` before the codes are taken. The last group is padded with zeros.
    `positive`: as `search_scales` says.

    Raises ExportError, naming `name`, for a weight that is not finite, and for scales beyond `scale_dtype`.
    """
    out, inputs = weight.shape
    groups = -(-inputs // group)
    codes = torch.empty(out, groups * group, dtype=torch.int8)
    scales = torch.empty(out, groups, dtype=scale_dtype)
    rows = min(out, max(1, _CHUNK // (groups * group)))
    padded = torch.zeros(rows, groups * group)
    for start in range(0, out, rows):
        part = weight[start : start + rows]
        padded[: len(part), :inputs] = part
        values = padded[: len(part)].view(len(part), groups, group)
        found = search_scales(values, bits, None, scale_dtype, name, positive=positive)
        scales[start : start + rows] = found
        codes[start : start + rows] = round_to(values, found, bits).view(len(part), -1)
    return Quantized(codes, scales, bits, group, inputs)


def grouped(values: Tensor, group: int) -> Tensor:
    """Divide [rows, in] into groups: float32 [rows, groups, group], the last padded with zeros."""
    rows, inputs = values.shape
    padded = torch.nn.functional.pad(values.float(), (0, -inputs % group))
    return padded.view(rows, -1, group)


def search_scales(
    values: Tensor,
    bits: Bits,
    importance: Tensor | None,
    scale_dtype: torch.dtype,
    name: str,
    *,
    positive: bool = False,
) -> Tensor:
    """Give the scale of each group of `values` [rows, groups, group], in `scale_dtype`: [rows, groups].

    The range's extra code is used: the value of largest magnitude goes to the lowest code, so that a scale is
    negative where that value is positive (as in llama.cpp's Q4_0; a fifth less squared error than ±7). From
    there the range is narrowed step by step; the codes of each step get their scale of least squares, which
    reduces the squared error by (Σ value · code)² / Σ code². `importance`, not negative, weighs the squared
    errors; it broadcasts to `values`.

    A group below the smallest normal number gets a scale of zero. Where scales have to be `positive`, as
    TensorRT wants of `DequantizeLinear`, the lowest code is for values below zero alone (a tenth more squared
    error in 4 bits), and no scale is zero. Raises as `quantize_blocks` does.
    """
    low, high = limits(bits)
    largest, smallest = values.amax(-1), values.amin(-1)
    if positive:
        unit = torch.maximum(largest / high, smallest / low)
    else:
        unit = torch.where(largest > -smallest, largest, smallest) / low
    if not unit.isfinite().all():
        raise ExportError(f"{name}: holds values that are not finite; the checkpoint is damaged")
    unit.masked_fill_(unit.abs() < _TINY, 0.0)
    # in units of the widest scale no sum can overflow: all values are low … -low
    values = values * reciprocal(unit)[..., None]
    reduced = torch.full_like(unit, -1.0)
    ratio = torch.ones_like(unit)
    for share in _SHARES[bits]:
        codes = (values * (1.0 / share)).round_().clamp_(low, high)
        weighed = codes if importance is None else codes * importance
        along = (values * weighed).sum(-1)
        least_squares = along / codes.mul_(weighed).sum(-1)
        reduction = along.mul_(least_squares)
        better = reduction > reduced  # never where all codes are zero: not a number
        reduced = torch.where(better, reduction, reduced)
        ratio = torch.where(better, least_squares, ratio)
    scales = (unit * ratio).to(scale_dtype)
    if not scales.isfinite().all():
        kind, widest = torch.finfo(scale_dtype), (unit * ratio).abs().max().item()
        raise ExportError(f"{name}: a scale is {widest:.4g}, above the {kind.max:.4g} of {kind.dtype}")
    return scales.masked_fill_(scales == 0, torch.finfo(scale_dtype).tiny) if positive else scales


def reciprocal(scales: Tensor) -> Tensor:
    """Give 1 / scale in float32, and zero where a scale is zero or too small to have one."""
    wide = scales.float()
    return wide.reciprocal().masked_fill_(wide.abs() < _TINY, 0.0)


def round_to(values: Tensor, scales: Tensor, bits: Bits) -> Tensor:
    """Give the nearest codes, int8, of values [..., group] under scales [...]; zero where a scale is."""
    return (values * reciprocal(scales)[..., None]).round_().clamp_(*limits(bits)).to(torch.int8)
