"""Codes that make a layer's outputs, not its weights, come out right on the text it was calibrated with.

Minimises tr (W - Q) H (W - Q)ᵀ, H being the second moments of the layer's inputs. Two steps over the inputs:
GPTQ (Frantar et al., arXiv 2210.17323, algorithm 1) rounds input by input and lets the inputs to come make
good for each error; then coordinate descent (Behdin et al., QuantEase, arXiv 2309.01885) gives every code,
all others fixed, its best value, which never increases the error. Rows are independent of each other.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mla_export.quantize.blocks import Quantized, grouped, limits, reciprocal, search_scales
from mla_export.quantize.statistics import Curvature, Statistics
from mla_graphs.storage import Bits

# Rows at a time: bounds the memory, and keeps a block of inputs in a core's cache.
_ROWS = 4096
# Inputs whose errors are spread among themselves at once; the rest follows in one product.
_BLOCK = 128


def quantize_calibrated(
    weight: Tensor,
    bits: Bits,
    group: int,
    statistics: Statistics,
    *,
    scale_dtype: torch.dtype = torch.float32,
    positive: bool = False,
    name: str = "weight",
) -> Quantized:
    """Quantise a weight [out, in] for inputs like those that `statistics` has seen.

    `group` divides 128, or is all inputs; `positive` is of scales, as in `search_scales`.

    Scales are searched group by group as in `quantize_blocks`, on the weights as they then stand, with each
    input weighed by its second moment. Works on `_ROWS` rows at a time, which it needs four times in float32.

    Raises ExportError, naming `name`, as `quantize_blocks` does, and for activations that are not finite.
    """
    out, inputs = weight.shape
    curvature = statistics.curvature(name)
    groups = -(-inputs // group)
    codes = torch.zeros(out, groups * group, dtype=torch.int8)
    scales = torch.empty(out, groups, dtype=scale_dtype)
    for start in range(0, out, _ROWS):
        rows = slice(start, start + _ROWS)
        target = weight[rows].T.float().contiguous()  # [in, rows]: an input's weights lie together
        work = _Columns(target, bits, group, scale_dtype, name, positive=positive)
        work.feed_forward(curvature)
        work.descend(curvature)
        codes[rows, :inputs] = work.codes.T.to(torch.int8)
        scales[rows] = work.scales.T
    return Quantized(codes, scales, bits, group, inputs)


class _Columns:
    """Some rows of a weight, transposed to [in, rows], on their way to codes and scales.

    `codes` [in, rows] are whole numbers held in float32; `scales` [groups, rows].
    """

    def __init__(
        self,
        target: Tensor,
        bits: Bits,
        group: int,
        scale_dtype: torch.dtype,
        name: str,
        *,
        positive: bool,
    ) -> None:
        self.target, self.bits, self.group, self.name = target, bits, group, name
        self.positive = positive
        self.inputs, rows = target.shape
        self.codes = torch.empty_like(target)
        self.scales = torch.empty(-(-self.inputs // group), rows, dtype=scale_dtype)

    def feed_forward(self, curvature: Curvature) -> None:
        """Round input after input; the error of each is spread over those to come (GPTQ)."""
        low, high = limits(self.bits)
        factor, importance = curvature.factor, curvature.hessian.diagonal()
        pivots = factor.diagonal().tolist()
        left = self.target.clone()
        for first, last in self._blocks():
            errors = torch.empty_like(left[first:last])
            for j in range(first, last):
                if j % self.group == 0:
                    ahead = slice(j, min(j + self.group, self.inputs))
                    scale, inverse = self._search(left[ahead], importance[ahead], j // self.group)
                code = torch.mul(left[j], inverse, out=self.codes[j]).round_().clamp_(low, high)
                error = torch.sub(left[j], code * scale, out=errors[j - first]).div_(pivots[j])
                left[j + 1 : last].addr_(factor[j, j + 1 : last], error, alpha=-1)
            left[last:].addmm_(factor[first:last, last:].T, errors, alpha=-1)

    def descend(self, curvature: Curvature) -> None:
        """Give every code in turn its best value with all others as they are."""
        low, high = limits(self.bits)
        hessian = curvature.hessian
        curvatures = hessian.diagonal().tolist()
        wide = self.scales.float()
        inverses = reciprocal(wide)
        # how much the squared error falls (half the slope) as each weight grows
        pull = hessian @ (self.target - self.codes * wide.repeat_interleave(self.group, 0)[: self.inputs])
        for first, last in self._blocks():
            steps = torch.empty_like(pull[first:last])
            for j in range(first, last):
                scale, inverse = wide[j // self.group], inverses[j // self.group]
                best = (pull[j] / curvatures[j]).mul_(inverse).add_(self.codes[j]).round_().clamp_(low, high)
                step = torch.sub(best, self.codes[j], out=steps[j - first]).mul_(scale)
                self.codes[j] = best
                pull[j + 1 : last].addr_(hessian[j, j + 1 : last], step, alpha=-1)
            pull[last:].addmm_(hessian[last:, first:last], steps, alpha=-1)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        for first in range(0, self.inputs, _BLOCK):
            yield first, min(first + _BLOCK, self.inputs)

    def _search(self, weights: Tensor, importance: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Find the scales [rows] of a group's `weights` [group, rows]; give them and their reciprocals."""
        values, weighing = grouped(weights.T, self.group), grouped(importance[None], self.group)
        self.scales[index] = search_scales(
            values, self.bits, weighing, self.scales.dtype, self.name, positive=self.positive
        )[:, 0]
        wide = self.scales[index].float()
        return wide, reciprocal(wide)
