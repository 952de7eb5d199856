"""Choosing the next token from logits."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mla_runtime.errors import InputError
from mla_runtime.top import MOST, Ids, Logits, best_places


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. The default, temperature 0, takes the best one (ties: the lowest id).

    `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 are off. They apply in this order:
    repetition penalty (Keskar et al. 2019, arXiv 1909.05858, section 4.1) on the ids seen so far,
    temperature, top-k, top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024), as in transformers.
    The same `seed` gives the same tokens; None takes a fresh one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        checks = (
            ("temperature", "a finite number of at least 0", 0 <= self.temperature < math.inf),
            ("top_k", "an integer of at least 0 (0: off)", type(self.top_k) is int and self.top_k >= 0),
            ("top_p", "in (0, 1]", 0 < self.top_p <= 1),
            ("min_p", "in [0, 1]", 0 <= self.min_p <= 1),
            ("repetition_penalty", "a finite number above 0", 0 < self.repetition_penalty < math.inf),
            ("seed", "None or an integer of at least 0", self.seed is None or self.seed >= 0),
        )
        for name, meaning, holds in checks:
            if not holds:
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be {meaning}")


class Sampler:
    """One sequence's chooser: the parameters and their random state."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def needs(self, vocab: int) -> int | None:
        """Give how many of the best logits are enough to choose from, or None for all `vocab` of them."""
        s = self.sampling
        if s.repetition_penalty != 1.0:
            return None
        if s.temperature == 0:
            return 1
        return s.top_k if 0 < s.top_k < min(vocab, MOST + 1) else None

    def pick(self, logits: Logits, seen: Collection[int] = (), ids: Ids | None = None) -> int:
        """Choose an id from `logits` [V], float32; `seen` are the ids that the penalty acts on.

        With `ids`, `logits` are those of at least `needs` best ids only, best first.
        """
        s = self.sampling
        if s.repetition_penalty != 1.0 and seen:
            logits = penalised(logits, seen, s.repetition_penalty)
        if s.temperature == 0:
            best = int(logits.argmax())
            return best if ids is None else int(ids[best])
        ids, probabilities = candidates(logits, s, ids)
        cumulative = np.cumsum(probabilities)
        # side="right" steps over candidates of probability 0, which the draw 0.0 would otherwise meet.
        place = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(ids[min(int(place), len(ids) - 1)])


def penalised(logits: Logits, seen: Collection[int], penalty: float) -> Logits:
    """Give a copy where `seen` ids lose: positive logits divided by `penalty`, others multiplied by it."""
    result = logits.copy()
    ids = np.fromiter(set(seen), dtype=np.int64)
    values = result[ids]
    result[ids] = np.where(values > 0, values / penalty, values * penalty)
    return result


def candidates(
    logits: Logits, sampling: Sampling, ids: Ids | None = None
) -> tuple[Ids, npt.NDArray[np.float64]]:
    """Give the ids that may be drawn and their probabilities (float64, sum 1).

    `ids` are those of `logits`, best first; None: all of the vocabulary in order. Best first where top-k
    or top-p ordered them; ties go to the lower id, so that a cut is definite.
    """
    if ids is None:
        ids = np.arange(len(logits))
    if 0 < sampling.top_k < len(logits):
        places = best_places(logits, sampling.top_k)
        ids, logits = ids[places], logits[places]
    best = float(logits.max())
    # Divided after the subtraction: a tiny temperature must not overflow the best logit itself.
    weights = np.exp((logits.astype(np.float64) - best) / sampling.temperature)
    probabilities = weights / weights.sum()
    if sampling.top_p < 1:
        # All ids below this probability together hold less than 1 - top_p: none of them can be needed.
        needed = probabilities >= (1 - sampling.top_p) / len(probabilities)
        ids, probabilities = ids[needed], probabilities[needed]
        order = np.lexsort((ids, -probabilities))
        ids, probabilities = ids[order], probabilities[order]
        keep = int(np.searchsorted(np.cumsum(probabilities), sampling.top_p, side="left")) + 1
        ids, probabilities = ids[:keep], probabilities[:keep]
    if sampling.min_p > 0:
        likely = probabilities >= sampling.min_p * probabilities.max()
        ids, probabilities = ids[likely], probabilities[likely]
    return ids, probabilities / probabilities.sum()
