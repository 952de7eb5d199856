"""A side's numbers: errors of its logits by step, greedy tokens, the first layer that parts, its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mla_export.compare.decode import Decoded
from mla_export.compare.held import Array, Held
from mla_export.compare.layers import first_parted
from mla_export.compare.result import Drift, Side, SideVerdict, Step
from mla_export.judge import Greedy, compare, divergence, errors, greedy
from mla_runtime.wording import counted


def judged(side: Side, decoded: Decoded, held: Held, prompts: Sequence[Sequence[int]]) -> Side:
    """Fill in what `side` computed and how it stands against the reference."""
    got, want = np.concatenate(decoded.logits), np.concatenate(held.want)
    logits = compare("forced tokens", got, want, held.budget, np.concatenate(held.tie))
    limit = 2 * logits.errors.max_abs  # both of two logits may be off by the largest error that was measured
    tokens = tuple(_greedy(i, prompts[i], decoded, held, limit) for i in range(len(prompts)))
    parted = first_parted(held.layers)
    verdicts = {logits.verdict, *(one.verdict for one in tokens)}
    verdict: SideVerdict = "ambiguous" if "ambiguous" in verdicts else "pass"
    if "fail" in verdicts or parted is not None:
        verdict = "fail"
    finite = bool(np.isfinite(got).all())
    return replace(
        side,
        verdict=verdict,
        gate=held.gate,
        logits=logits,
        steps=_steps(decoded, held, prompts) if finite else (),
        drift=_drift(decoded, held) if finite else None,
        kl=tuple(map(float, divergence(got, want))) if finite else (),
        layers=tuple(held.layers),
        parted=parted,
        greedy=tokens,
        seconds=decoded.seconds,
    )


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
