"""What was found at each position of a text, and the figures that sum it up."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from mla_export.judge import log_softmax

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

# where the table by position begins a row
POSITIONS = (0, 16, 64, 256, 1024)


@dataclass(frozen=True, slots=True)
class Figures:
    """A bundle beside its checkpoint over `tokens` positions from `first` to `last` of their windows.

    `kl_*` are of KL(checkpoint in fp32 || bundle), in nats: the mean, and what 99 % and 99.9 % of the
    positions stay within. `same_top` is the share of positions with the same most likely token.
    """

    first: int
    last: int
    tokens: int
    perplexity: float
    reference_perplexity: float
    kl_mean: float
    kl_99: float
    kl_999: float
    same_top: float


class Tally:
    """What was found at each position: [n] arrays, to be joined."""

    def __init__(self) -> None:
        self._found: list[Array] = []

    def add(self, logits: Array, want: Array, targets: Array, at: range) -> None:
        """Compare logits [n, V] with log probabilities, at positions `at` that foretell `targets` [n]."""
        got = log_softmax(logits)
        kl = (np.exp(want) * (want - got)).sum(axis=-1)
        rows = np.arange(len(at))
        same = got.argmax(axis=-1) == want.argmax(axis=-1)
        self._found.append(np.stack([np.array(at), kl, got[rows, targets], want[rows, targets], same]))

    @property
    def kl(self) -> Array:
        """KL(checkpoint in fp32 || what was measured) at each position, in nats: [n]."""
        return np.concatenate([found[1] for found in self._found])

    def figures(self) -> tuple[Figures, ...]:
        """Give the figures of all positions, and of each stretch of `POSITIONS` that has any."""
        found = np.concatenate(self._found, axis=1)
        last = int(found[0].max())
        bounds = [
            (first, min(after - 1, last)) for first, after in itertools.pairwise((*POSITIONS, last + 1))
        ]
        stretches = [(0, last), *((first, end) for first, end in bounds if first <= last)]
        return tuple(_figures(found, first, end) for first, end in stretches)


def _figures(found: Array, first: int, last: int) -> Figures:
    position = found[0]
    _, kl, got, want, same = found[:, (position >= first) & (position <= last)]
    return Figures(
        first=first,
        last=last,
        tokens=len(kl),
        perplexity=math.exp(-got.mean()),
        reference_perplexity=math.exp(-want.mean()),
        kl_mean=float(kl.mean()),
        kl_99=float(np.quantile(kl, 0.99)),
        kl_999=float(np.quantile(kl, 0.999)),
        same_top=float(same.mean()),
    )
