"""Compare a bundle's logits and tokens with a reference, within a budget that is computed, not guessed.

The budget is the error of a peer: the plain, unabsorbed model in the bundle's own precision, held against the
same float64 yardstick. A bundle may have a stated multiple of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Verdict = Literal["pass", "ambiguous", "fail", "skipped"]
Judged = Literal["largest", "rms", "median"]

# rows behind a router near tie may miss the budget, but their next-token distribution may not move by more
MAX_KL_BEHIND_TIE = 1e-2
# by Pinsker's inequality such a distribution prefers no token that was this much less likely
MAX_LOSS_BEHIND_TIE = math.sqrt(2 * MAX_KL_BEHIND_TIE)


@dataclass(frozen=True, slots=True)
class Errors:
    """How far logits are from the wanted ones, over `rows` positions.

    `max_abs` and `rms` in logits; `cosine` the lowest of any row; `kl` the mean Kullback-Leibler divergence
    from the wanted distribution, in nats; `rank` the worst place of the wanted top token (1: always first).
    """

    rows: int
    max_abs: float
    rms: float
    cosine: float
    kl: float
    rank: int


@dataclass(frozen=True, slots=True)
class Budget:
    """What a bundle may err, in logits: `factor` times the `peer`'s largest and RMS error.

    `judges` says by which error of a bundle: the largest and the RMS error; the RMS error alone (in fp16 the
    largest says little); or the median of the rows' own (where numbers are quantised a routing choice that
    falls the other way moves its row by more than all rounding, and the bundle's choices are not the peer's).
    """

    factor: float
    max_abs: float
    rms: float
    judges: Judged
    peer: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """One way of running the bundle against the yardstick.

    `would_pass` is the smallest factor on the peer's error that would have passed. `behind_ties` counts the
    rows that missed the budget behind a router near tie.
    """

    name: str
    errors: Errors
    would_pass: float
    behind_ties: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Greedy:
    """Greedy tokens of one prompt against the reference's at the same history.

    `margin` is the widest gap, in the yardstick's logits, by which a differing token lost; up to `limit`
    (both logits off by all that the budget allows) the two are a near tie. `behind_ties` counts the tokens
    that lost by more, behind a router near tie.
    """

    name: str
    steps: int
    agreed: int
    first_difference: int | None
    margin: float | None
    limit: float
    behind_ties: int
    verdict: Verdict


def log_softmax(logits: Array) -> Array:
    """Give log probabilities of logits [..., V], in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))  # type: ignore[no-any-return]


def ratio(value: float, limit: float) -> float:
    """Give value / limit, where a limit of 0 allows 0 and nothing else."""
    if limit > 0.0:
        return value / limit
    return 0.0 if value == 0.0 else math.inf


def divergence(got: Array, want: Array) -> Array:
    """Give KL(want || got) of the distributions of logits [N, V], a row: [N], in nats."""
    p = log_softmax(want)
    return (np.exp(p) * (p - log_softmax(got))).sum(axis=-1)  # type: ignore[no-any-return]


def errors(got: Array, want: Array) -> Errors:
    """Measure logits [N, V] against the wanted ones."""
    got, want = got.astype(np.float64), want.astype(np.float64)
    difference = got - want
    norms = np.linalg.norm(got, axis=-1) * np.linalg.norm(want, axis=-1)
    cosine = (got * want).sum(axis=-1) / np.maximum(norms, np.finfo(np.float64).tiny)
    top = np.take_along_axis(got, want.argmax(axis=-1)[:, None], axis=-1)
    return Errors(
        rows=len(got),
        max_abs=float(np.abs(difference).max()),
        rms=float(np.sqrt(np.mean(difference**2))),
        cosine=float(cosine.min()),
        kl=float(divergence(got, want).mean()),
        rank=int((got > top).sum(axis=-1).max()) + 1,
    )


def budget(peer: Array, want: Array, factor: float, name: str, judges: Judged) -> Budget:
    """Compute the budget from a peer's logits [N, V], on rows where it took the yardstick's experts."""
    found = errors(peer, want)
    if judges == "median":
        difference = np.abs(peer.astype(np.float64) - want)
        largest, rms = float(np.median(difference.max(axis=-1))), _median_rms(difference)
    else:
        largest, rms = found.max_abs, found.rms
    return Budget(factor, factor * largest, factor * rms, judges, name)


def _median_rms(difference: Array) -> float:
    """Give the median of the rows' RMS errors; differences are [N, V]."""
    return float(np.median(np.sqrt(np.mean(difference**2, axis=-1))))


def compare(name: str, got: Array, want: Array, allowed: Budget, behind_tie: Array) -> Comparison:
    """Judge logits [N, V] against the yardstick's.

    Every row must be within the budget. A row that is not, but comes behind a router near tie (`behind_tie`
    [N]) and keeps its distribution (KL at most `MAX_KL_BEHIND_TIE`), makes the verdict ambiguous; when more
    than half of the rows are like that nothing was shown, and the verdict is fail.
    """
    if not np.isfinite(got).all():
        nothing = Errors(len(got), np.inf, np.inf, -1.0, np.inf, got.shape[-1])
        return Comparison(name, nothing, np.inf, 0, "fail")
    found = errors(got, want)
    difference = np.abs(got.astype(np.float64) - want)
    outside = (difference.max(axis=-1) > allowed.max_abs) & (allowed.judges == "largest")
    excused = outside & behind_tie & (divergence(got, want) <= MAX_KL_BEHIND_TIE)
    judged = difference[~excused]
    if not len(judged):
        share = np.inf
    elif allowed.judges == "median":
        share = ratio(_median_rms(judged), allowed.rms)
    else:
        share = ratio(float(np.sqrt(np.mean(judged**2))), allowed.rms)
    if allowed.judges == "largest" and len(judged):
        share = max(share, ratio(float(judged.max()), allowed.max_abs))
    verdict: Verdict = "ambiguous" if excused.any() else "pass"
    if share > 1.0 or 2 * excused.sum() > len(got):
        verdict = "fail"
    return Comparison(name, found, share * allowed.factor, int(excused.sum()), verdict)


def greedy(name: str, tokens: Sequence[int], want: Array, limit: float, behind_tie: Array) -> Greedy:
    """Judge the tokens that a bundle chose against the yardstick's logits [n, V] at the same histories.

    A token that lost by more than `limit` is wrong, unless it comes behind a router near tie (`behind_tie`
    [n]) and the yardstick gives it at most `MAX_LOSS_BEHIND_TIE` less probability than its own choice. When
    more than half of the tokens are like that nothing was shown, and the verdict is fail.
    """
    chosen = np.asarray(tokens)[:, None]
    lost = want.max(axis=-1) - np.take_along_axis(want, chosen, axis=-1)[:, 0]
    # ties go to the lowest id: a token of equal logit and higher id differs by a margin of 0
    differs = chosen[:, 0] != want.argmax(axis=-1)
    probability = np.exp(log_softmax(want))
    less_likely = probability.max(axis=-1) - np.take_along_axis(probability, chosen, axis=-1)[:, 0]
    beyond = differs & (lost > limit)
    excused = beyond & behind_tie & (less_likely <= MAX_LOSS_BEHIND_TIE)
    verdict: Verdict = "ambiguous" if differs.any() else "pass"
    if (beyond & ~excused).any() or 2 * excused.sum() > len(chosen):
        verdict = "fail"
    return Greedy(
        name,
        len(chosen),
        agreed=int((~differs).sum()),
        first_difference=int(differs.argmax()) if differs.any() else None,
        margin=float(lost[differs].max()) if differs.any() else None,
        limit=limit,
        behind_ties=int(excused.sum()),
        verdict=verdict,
    )
