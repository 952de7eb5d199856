"""Whether one way of rounding is better than another: the same positions of the same text, in pairs.

How hard a token is to keep differs far more from token to token than from method to method; the differences
at each position are free of that. Their mean's interval is a bootstrap's (Efron, 1979), by blocks of
neighbouring positions (Carlstein, The use of subseries values, 1986), since one error moves several tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

# Neighbours that are drawn together. On the trained sample no correlation is left beyond a few tokens.
BLOCK = 64
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """By how much the first of two costs more than the second, in the mean, and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def better(self) -> bool:
        """Whether the first costs less, chance aside: the whole interval is below zero."""
        return self.high < 0.0


def paired_bootstrap(first: Array, second: Array, *, samples: int = 10_000, seed: int = 0) -> Difference:
    """Compare what two methods cost at the same positions [n], in the order of the text.

    Raises ValueError for positions that are no pairs, or too few to draw from: less than two blocks.
    """
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"costs of {first.shape} and {second.shape} positions are not in pairs")
    count = len(first) // BLOCK
    if count < 2:
        raise ValueError(f"{len(first)} positions are less than two blocks of {BLOCK}")
    difference = first.astype(np.float64) - second
    blocks = np.array_split(difference, count)  # each takes its share of what is behind the last whole one
    sums, sizes = np.array([block.sum() for block in blocks]), np.array([len(block) for block in blocks])
    drawn = np.random.default_rng(seed).integers(0, count, (samples, count))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Difference(float(difference.mean()), float(low), float(high))
