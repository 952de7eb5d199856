"""What a linear layer is fed with, as second moments: all that calibration needs to know of a text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mla_runtime.errors import ExportError

# Added to the diagonal as a share of its mean, so that what the text never excites stays near its own value.
_DAMPING = 0.01


@dataclass(frozen=True, slots=True)
class Curvature:
    """How the squared error of a layer's outputs grows with errors of its weights, the same for each row.

    `hessian` [in, in], damped; `factor` [in, in], upper triangular U with UᵀU = hessian⁻¹.
    """

    hessian: Tensor
    factor: Tensor


class Statistics:
    """Second moments of a layer's inputs, summed over tokens in one matrix [in, in] of float32.

    Layers that are fed with the same rows share one; so do the experts of a layer for their gate and up.
    """

    def __init__(self, inputs: int) -> None:
        self.inputs, self.tokens = inputs, 0
        self._sum = torch.zeros(inputs, inputs)
        self._fourth = 0.0  # Σ |row|⁴, which tells how far the sum is off
        self._curvature: Curvature | None = None

    def add(self, activations: Tensor) -> None:
        """Add rows [..., in] of any float type."""
        rows = activations.reshape(-1, self.inputs).float()
        self._sum.addmm_(rows.T, rows)
        self._fourth += float(rows.square().sum(1).double().square().sum())
        self.tokens += len(rows)
        self._curvature = None

    def curvature(self, name: str = "weight") -> Curvature:
        """Give the curvature, worked out once.

        The moments of few tokens are drawn towards the identity as far as their own scatter says (Ledoit and
        Wolf, A well-conditioned estimator for large-dimensional covariance matrices, 2004); weights whose
        inputs were never seen are rounded as without calibration. Raises ExportError, naming `name`, where
        activations were not finite.
        """
        if self._curvature is None:
            mean = float(self._sum.diagonal().mean()) / max(1, self.tokens)
            if not math.isfinite(mean):
                raise ExportError(f"{name}: the calibration text makes activations that are not finite")
            hessian = torch.eye(self.inputs)
            if mean > 0:  # in units of the mean, nothing overflows
                moment = self._sum / (self.tokens * mean)
                hessian = torch.lerp(moment, hessian, self._shrinkage(moment, mean))
            hessian.diagonal().add_(_DAMPING)
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
            self._curvature = Curvature(hessian, torch.linalg.cholesky(inverse, upper=True))
        return self._curvature

    def _shrinkage(self, moment: Tensor, mean: float) -> float:
        """Give the share of the identity in the estimate: their scatter over their distance from it."""
        if self.tokens < 2:
            return 1.0
        square = float(moment.square().sum())
        scatter = (self._fourth / self.tokens / mean**2 - square) / (self.tokens - 1)
        distance = square - self.inputs  # |M - I|², since the trace of M is that of the identity
        return min(1.0, max(0.0, scatter) / distance) if distance > 0 else 1.0
