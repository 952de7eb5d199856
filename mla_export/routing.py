"""How close a gate came to choosing other experts: the margin that tells a flip from an error.

Two right computations that round differently may route a token to different experts where two scores nearly
tie; everything after that token then differs by more than rounding. Such rows are told apart, not hidden.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from mla_graphs.geometry import Moe

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Mask: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"


def _gap(scores: Array, count: int) -> Array:
    """Distance of the last chosen score to the first that was not, a row: [S]."""
    if count >= scores.shape[-1]:
        return np.full(len(scores), np.inf)
    ranked = -np.sort(-scores, axis=-1)
    return ranked[:, count - 1] - ranked[:, count]


def margins(router_logits: Array, moe: Moe, correction: Array | None) -> Array:
    """Give the margin [S] of each token's choice, in the gate's scores, from router logits [S, E].

    The scores are those that choose (DeepSeek-V3, arXiv 2412.19437, equation 16; DeepSeek-V2's groups,
    arXiv 2405.04434, section 2.2): the smaller of the margin among groups and the margin among experts.
    """
    if moe.scoring == "softmax":
        shifted = np.exp(router_logits - router_logits.max(axis=-1, keepdims=True))
        scores = shifted / shifted.sum(axis=-1, keepdims=True)
    else:
        scores = 1.0 / (1.0 + np.exp(-router_logits))
    if correction is not None:
        scores = scores + correction
    if moe.group_score is None:
        return _gap(scores, moe.num_experts_per_tok)
    grouped = scores.reshape(len(scores), moe.n_group, -1)  # [S, G, E/G]
    best = np.sort(grouped, axis=-1)
    group_scores = best[..., -1] if moe.group_score == "max" else best[..., -2:].sum(axis=-1)
    kept = np.argsort(-group_scores, axis=-1, kind="stable")[:, : moe.topk_group]
    allowed = np.zeros(group_scores.shape, dtype=bool)
    np.put_along_axis(allowed, kept, True, axis=-1)
    within = np.where(allowed[..., None], grouped, -np.inf).reshape(scores.shape)
    return np.minimum(_gap(group_scores, moe.topk_group), _gap(within, moe.num_experts_per_tok))


def near_ties(yardstick: Array, peer: Array, moe: Moe, correction: Array | None, factor: float) -> Mask:
    """Tell which tokens [S] could be routed otherwise by an error of `factor` times the peer's own.

    `yardstick` and `peer` [S, E] are router logits of one gate in float64 and in the bundle's precision. A
    score moves by at most half of what its logit moves (a sigmoid's slope is at most 1/4, a softmax share's
    1/2), so a difference of two scores, or of two sums of two, moves by no more than the logits do.
    """
    noise = np.abs(peer - yardstick).max(axis=-1)
    close: Mask = margins(yardstick, moe, correction) <= factor * noise
    return close
