"""Errors of a layer's rows, and what they may be.

Where a side computes in floats the RMS over all tokens is judged, but for those behind a router near tie.
Where its rows or weights are quantised it is the median token's: its gates choose otherwise now and then,
which moves a token by more than all rounding, and the peer's do at other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from mla_export.compare.result import LayerError, Rows
from mla_export.judge import ratio

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

KINDS: tuple[Rows, ...] = ("latent", "rope", "block")
# rounding of the numbers themselves, below which no peer's error need be looked at
FLOOR = 1e-6


@dataclass(frozen=True, slots=True)
class Seen:
    """Rows [S, ·] of one kind of one layer, a prompt each; `prompts` are how many tokens each prompt has."""

    layer: int
    rows: Rows
    prompts: Sequence[int]
    want: Sequence[Array]
    got: Sequence[Array]


def layer_errors(
    seen: Seen, behind_tie: Sequence[Array], *, median: bool, allowed: float | Sequence[Array], factor: float
) -> list[LayerError]:
    """Measure the rows of the prompt and those of the steps.

    `behind_tie` [S] a prompt marks tokens that are left out where any others remain. `allowed` is a share of
    the reference's size, or the rows of the peer [S, ·] a prompt, of whose error `factor` times is allowed.
    """
    found = []
    for phase, at in (("prompt", False), ("step", True)):
        tokens = [
            (np.arange(len(want)) >= prompt) == at
            for want, prompt in zip(seen.want, seen.prompts, strict=True)
        ]
        if not any(mask.any() for mask in tokens):
            continue
        clean = [mask & ~tie for mask, tie in zip(tokens, behind_tie, strict=True)]
        judged = clean if any(mask.any() for mask in clean) and not median else tokens
        size = _size(seen.want, judged)
        if isinstance(allowed, float):
            limit = allowed
        else:
            peer = _statistic(_token_errors(allowed, seen.want), judged, median)
            limit = max(FLOOR, factor * ratio(peer, size))
        errors = _token_errors(seen.got, seen.want)
        worst = _worst(errors, judged)
        found.append(
            LayerError(
                layer=seen.layer,
                rows=seen.rows,
                phase=phase,  # type: ignore[arg-type] # one of the two above
                tokens=sum(int(mask.sum()) for mask in tokens),
                rms=_statistic(errors, tokens, False),
                max_abs=max(
                    float(np.abs(got[mask] - want[mask]).max(initial=0.0))
                    for got, want, mask in zip(seen.got, seen.want, tokens, strict=True)
                ),
                relative=ratio(_statistic(errors, judged, median), size),
                cosine=_cosine(seen, tokens),
                allowed=limit,
                prompt=worst[0],
                position=worst[1],
            )
        )
    return found


def first_parted(errors: Sequence[LayerError]) -> LayerError | None:
    """Give the first rows beyond what is allowed: by layer, then as it makes them, prompts before steps."""
    order = sorted(errors, key=lambda e: (e.layer, KINDS.index(e.rows), ("prompt", "step").index(e.phase)))
    return next((error for error in order if error.parted), None)


def _token_errors(got: Sequence[Array], want: Sequence[Array]) -> list[Array]:
    """Give each token's RMS error [S], a prompt; what is not finite is infinitely far."""
    found = []
    for a, b in zip(got, want, strict=True):
        square = np.mean((a.astype(np.float64) - b) ** 2, axis=-1)
        found.append(np.sqrt(np.where(np.isfinite(square), square, np.inf)))
    return found


def _statistic(errors: Sequence[Array], masks: Sequence[Array], median: bool) -> float:
    joined = np.concatenate([e[mask] for e, mask in zip(errors, masks, strict=True)])
    return float(np.median(joined) if median else np.sqrt(np.mean(joined**2)))


def _size(want: Sequence[Array], masks: Sequence[Array]) -> float:
    joined = np.concatenate([np.mean(w[mask] ** 2, axis=-1) for w, mask in zip(want, masks, strict=True)])
    return float(np.sqrt(joined.mean()))


def _worst(errors: Sequence[Array], masks: Sequence[Array]) -> tuple[int, int]:
    """Give prompt and position of the token that is furthest off."""
    at = [int(np.where(mask, e, -1.0).argmax()) for e, mask in zip(errors, masks, strict=True)]
    tops = [np.where(mask, e, -1.0).max() for e, mask in zip(errors, masks, strict=True)]
    prompt = int(np.argmax(tops))
    return prompt, at[prompt]


def _cosine(seen: Seen, masks: Sequence[Array]) -> float:
    dot = got2 = want2 = 0.0
    for got, want, mask in zip(seen.got, seen.want, masks, strict=True):
        a, b = got[mask].astype(np.float64), want[mask]
        dot += float((a * b).sum())
        got2 += float((a * a).sum())
        want2 += float((b * b).sum())
    return dot / max(float(np.sqrt(got2 * want2)), float(np.finfo(np.float64).tiny))
