"""The baseline that tiny-mla has to beat: byte n-grams with interpolated modified Kneser-Ney smoothing.

Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (1998), section 3. A byte
n-gram with n <= 8 is one 64-bit number, so that every table is a sorted NumPy array.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Grams = NDArray[np.uint64]


def grams(text: NDArray[np.uint8], order: int) -> Grams:
    """Pack each byte, in the lowest 8 bits, with the `order - 1` before it (zeros at the start) above it."""
    packed = np.zeros(len(text), np.uint64)
    for distance in range(order):
        packed[distance:] |= text[: len(text) - distance].astype(np.uint64) << np.uint64(8 * distance)
    return packed


@dataclass(frozen=True, slots=True)
class Level:
    """One order: the n-grams seen, their discounted shares, and what each context leaves to backing off."""

    seen: Grams
    share: NDArray[np.float64]
    contexts: Grams
    backoff: NDArray[np.float64]


def level(seen: Grams, counts: NDArray[np.int64]) -> Level:
    """Build a table, its discounts D1, D2, D3+ from the counts of counts (Chen and Goodman, eq. 26)."""
    n = [max(1, int((counts == k).sum())) for k in range(1, 5)]
    y = n[0] / (n[0] + 2 * n[1])
    discounts = np.array([0.0] + [max(0.0, k - (k + 1) * y * n[k] / n[k - 1]) for k in (1, 2, 3)])
    discount = discounts[np.minimum(counts, 3)]
    contexts, index = np.unique(seen >> np.uint64(8), return_inverse=True)
    totals = np.bincount(index, weights=counts)
    backoff = np.bincount(index, weights=discount) / totals
    return Level(seen, (counts - discount) / totals[index], contexts, backoff)


def train(text: bytes, order: int) -> list[Level]:
    """Build levels 1 to `order`. Below the top, an n-gram counts the distinct bytes seen before it."""
    if not 2 <= order <= 8:
        raise ValueError(f"order is {order}; a 64-bit number holds 2 to 8 bytes")
    seen, counts = np.unique(grams(np.frombuffer(text, np.uint8), order), return_counts=True)
    levels = [level(seen, counts)]
    for shorter in range(order - 1, 0, -1):
        mask = np.uint64((1 << 8 * shorter) - 1)
        seen, counts = np.unique(seen & mask, return_counts=True)
        levels.append(level(seen, counts))
    return levels[::-1]


def lookup(keys: Grams, values: NDArray[np.float64], wanted: Grams, missing: float) -> NDArray[np.float64]:
    """Find the value of each wanted key, or `missing`."""
    index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[index] == wanted, values[index], missing)


def bits_per_byte(levels: list[Level], text: bytes) -> float:
    """Average -log2 p(byte | the bytes before it), interpolated from the uniform distribution upwards."""
    data = np.frombuffer(text, np.uint8)
    probability = np.full(len(data), 1 / 256)
    for order, table in enumerate(levels, start=1):
        gram = grams(data, order)
        given_away = lookup(table.contexts, table.backoff, gram >> np.uint64(8), missing=1.0)
        probability = lookup(table.seen, table.share, gram, missing=0.0) + given_away * probability
    return float(-np.log(probability).mean() / math.log(2))
