"""Rotary tables in float64, for every kind of position scaling that a Geometry can hold.

Sources: RoFormer (arXiv 2104.09864, section 3.4), YaRN (arXiv 2309.00071, section 3.2), LongRoPE
(arXiv 2402.13753, section 3.1); constants as in transformers' `modeling_rope_utils.py`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mla_graphs.geometry import LinearScaling, LongRope, Rotary, Yarn

Array = NDArray[np.float64]


def inverse_frequencies(rotary: Rotary, dim: int) -> Array:
    """Give the angle a position turns each of the `dim` / 2 pairs by, in radians: [dim/2]."""
    plain = rotary.theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)  # [dim/2]
    match rotary.scaling:
        case None:
            return plain
        case LinearScaling(factor):
            return plain / factor
        case LongRope(factors):
            return plain / np.asarray(factors, dtype=np.float64)
        case Yarn() as yarn:
            interpolated = _ramp(yarn, rotary.theta, dim)  # [dim/2]
            return plain / yarn.factor * interpolated + plain * (1.0 - interpolated)


def attention_factor(rotary: Rotary) -> float:
    """Give the factor on cos and sin; the softmax scale's mscale² is not in it."""
    return rotary.scaling.attention_factor if isinstance(rotary.scaling, Yarn | LongRope) else 1.0


def rotary_tables(rotary: Rotary, dim: int, positions: int) -> tuple[Array, Array]:
    """Give cos and sin of positions 0 … `positions` - 1, times the attention factor: [positions, dim/2]."""
    angles = np.arange(positions, dtype=np.float64)[:, None] * inverse_frequencies(rotary, dim)
    factor = attention_factor(rotary)
    return np.cos(angles) * factor, np.sin(angles) * factor


def _ramp(yarn: Yarn, theta: float, dim: int) -> Array:
    """Give each pair's share of interpolation: 0 for fast pairs, 1 for slow ones: [dim/2]."""

    def pair_with(rotations: float) -> float:
        # the pair that turns so many times within the original context, as a real number
        wavelength = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return dim * math.log(wavelength) / (2 * math.log(theta))

    low, high = pair_with(yarn.beta_fast), pair_with(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    # bounded by dim - 1, not dim / 2 - 1: so do the checkpoints' own code and transformers
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    return np.clip((np.arange(dim // 2, dtype=np.float64) - low) / (high - low), 0.0, 1.0)
