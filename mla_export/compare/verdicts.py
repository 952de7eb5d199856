"""A side's numbers: errors of its logits by step, greedy tokens, the first layer that parts, its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mla_export.compare.decode import Decoded
from mla_export.compare.held import Array, Held
from mla_export.compare.layers import first_parted
from mla_export.compare.result import Bulk, Drift, Side, SideVerdict, Step
from mla_export.judge import Comparison, Greedy, compare, divergence, errors, greedy, ratio
from mla_runtime.wording import counted

KL_FACTOR = 4.0  # KL grows with the square of an error: twice the peer's
FEWEST_TOKENS = 16  # of a prompt of which the median says something


def judged(side: Side, decoded: Decoded, held: Held, prompts: Sequence[Sequence[int]]) -> Side:
    """Fill in what `side` computed and how it stands against the reference."""
    got, want = np.concatenate(decoded.logits), np.concatenate(held.want)
    logits = compare("forced tokens", got, want, held.budget, np.concatenate(held.tie))
    bulk = _bulk(decoded, held)
    limit = 2 * _largest(logits, want, held)  # both of two logits may be off by so much
    tokens = tuple(_greedy(i, prompts[i], decoded, held, limit) for i in range(len(prompts)))
    parted = first_parted(held.layers)
    verdicts = {logits.verdict, *(one.verdict for one in tokens)}
    verdict: SideVerdict = "ambiguous" if "ambiguous" in verdicts else "pass"
    if "fail" in verdicts or parted is not None or (bulk is not None and bulk.parted):
        verdict = "fail"
    finite = bool(np.isfinite(got).all())
    return replace(
        side,
        verdict=verdict,
        gate=held.gate,
        logits=logits,
        bulk=bulk,
        steps=_steps(decoded, held, prompts) if finite else (),
        drift=_drift(decoded, held) if finite else None,
        kl=tuple(map(float, divergence(got, want))) if finite else (),
        layers=tuple(held.layers),
        parted=parted,
        greedy=tokens,
        seconds=decoded.seconds,
    )


def _bulk(decoded: Decoded, held: Held) -> Bulk | None:
    """Hold most tokens' KL, and each prompt's median token, to the peer's, where the gate is the median's."""
    got, want = np.concatenate(decoded.logits), np.concatenate(held.want)
    if held.peer is None or held.budget.judges != "median" or not np.isfinite(got).all():
        return None
    peer = _most(divergence(np.concatenate(held.peer), want))
    found = Bulk(_most(divergence(got, want)), KL_FACTOR * peer, None, None, None)
    if len(held.want[0]) < FEWEST_TOKENS:
        return found
    medians = [
        (_median(side, want), held.budget.factor * _median(peer, want))
        for side, want, peer in zip(decoded.logits, held.want, held.peer, strict=True)
    ]
    worst = max(range(len(medians)), key=lambda i: ratio(*medians[i]))
    return replace(found, prompt=worst, prompt_rms=medians[worst][0], prompt_allowed=medians[worst][1])


def _median(got: Array, want: Array) -> float:
    """Give the RMS error of the median token of logits [n, V]."""
    return float(np.median(np.sqrt(np.mean((got.astype(np.float64) - want) ** 2, axis=-1))))


def _most(kl: Array) -> float:
    """Give the mean of all but the twentieth that is largest: single routing flips are not rounding."""
    kept = np.sort(kl)[: max(1, len(kl) - len(kl) // 20)]
    return float(kept.mean())


def _largest(logits: Comparison, want: Array, held: Held) -> float:
    """Give the largest error that makes a near tie: what was measured, but no more than the peer's own."""
    if held.peer is None:
        return logits.errors.max_abs
    peer = float(np.abs(np.concatenate(held.peer) - want).max())
    return min(logits.errors.max_abs, max(peer, held.budget.max_abs))


def _greedy(index: int, prompt: Sequence[int], decoded: Decoded, held: Held, limit: float) -> Greedy:
    name = f"{index + 1}: {counted(len(prompt), 'token')}"
    return greedy(name, decoded.tokens[index], held.own[index], limit, held.own_tie[index])


def _steps(decoded: Decoded, held: Held, prompts: Sequence[Sequence[int]]) -> tuple[Step, ...]:
    lengths = [len(prompt) for prompt in prompts]
    found = []
    for step in range(len(held.want[0])):
        got = np.stack([logits[step] for logits in decoded.logits])
        e = errors(got, np.stack([logits[step] for logits in held.want]))
        position = float(np.mean(lengths)) - 1 + step
        found.append(Step(step, position, e.max_abs, e.rms, e.cosine, e.kl, e.rank))
    return tuple(found)


def _drift(decoded: Decoded, held: Held) -> Drift:
    pairs = zip(decoded.logits, held.want, strict=True)
    square = np.mean([np.mean((got - want) ** 2, axis=-1) for got, want in pairs], axis=0)  # [1 + steps]
    quarter = max(1, (len(square) - 1) // 4)
    return Drift(_root(square[1 : 1 + quarter]), _root(square[-quarter:]))


def _root(square: Array) -> float:
    return float(np.sqrt(square.mean()))
