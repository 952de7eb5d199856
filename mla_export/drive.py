"""Drive a bundle over prompts in every way it can be run, and keep the logits.

All ways must give the same numbers: the prompt at once, in pieces, token by token, and rows of different
lengths in one batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from mla_export import progress
from mla_runtime import Model

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

BATCH_STEPS = 8  # enough to see rows of a batch mix; the long run is a prompt's own
TOKEN_BY_TOKEN = 32  # prompts up to this length are also fed through the step graph alone


@dataclass(frozen=True, slots=True)
class Way:
    """One way of running prompt `prompt`: logits [n, V] at positions `at` of its teacher-forced row."""

    name: str
    prompt: int
    at: tuple[int, ...]
    logits: Array


@dataclass(frozen=True, slots=True)
class Drive:
    """All that was run: `tokens` are the greedy ids after each prompt, `rows` prompt and tokens together."""

    prompts: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    ways: tuple[Way, ...]

    @property
    def rows(self) -> list[list[int]]:
        """What a reference must be forced through to give the logits at every position that was run."""
        return [[*prompt, *tokens[:-1]] for prompt, tokens in zip(self.prompts, self.tokens, strict=True)]


def drive(model: Model, prompts: Sequence[Sequence[int]], steps: int) -> Drive:
    """Run every prompt and `steps` greedy steps, then again in pieces, token by token, as one batch."""
    ways: list[Way] = []
    tokens: list[tuple[int, ...]] = []
    with progress.task("bundle, prompt by prompt", len(prompts)) as advance:
        for index, prompt in enumerate(prompts):
            found = _greedy(model, prompt, steps)
            tokens.append(tuple(int(row.argmax()) for row in found))
            last = len(prompt) - 1
            ways.append(Way("prompt", index, (last,), found[:1]))
            if steps:
                ways.append(Way("steps", index, tuple(range(last + 1, last + 1 + steps)), found[1:]))
            if len(prompt) > 1:
                ways.append(Way("prompt in pieces", index, (last,), _in_pieces(model, prompt)))
                few = prompt[:TOKEN_BY_TOKEN]
                ways.append(Way("token by token", index, tuple(range(len(few))), _token_by_token(model, few)))
            advance(1)
    if len(prompts) > 1:
        ways += _batch(model, prompts, tokens, min(steps, BATCH_STEPS))
    return Drive(tuple(map(tuple, prompts)), tuple(tokens), tuple(ways))


def _greedy(model: Model, prompt: Sequence[int], steps: int) -> Array:
    """Logits [1 + steps, V]: after the prompt, and after each greedy token."""
    with model.session(max_context=len(prompt) + steps) as session:
        logits = [session.prefill([prompt])[0].copy()]
        for _ in range(steps):
            logits.append(session.step([int(logits[-1].argmax())])[0].copy())
    return np.stack(logits)


def _in_pieces(model: Model, prompt: Sequence[int]) -> Array:
    """Logits [1, V] after the prompt, given in three uneven pieces (two of a prompt of two ids)."""
    cuts = sorted({0, max(1, len(prompt) // 3), max(1, len(prompt) - 2), len(prompt)})
    with model.session(max_context=len(prompt)) as session:
        for start, stop in itertools.pairwise(cuts):
            logits = session.prefill([prompt[start:stop]])
    return logits.copy()


def _token_by_token(model: Model, prompt: Sequence[int]) -> Array:
    """Logits [n, V] at every id of the prompt, all but the first through the step graph."""
    with model.session(max_context=len(prompt)) as session:
        logits = [session.prefill([prompt[:1]])[0].copy()]
        logits += [session.step([token])[0].copy() for token in prompt[1:]]
    return np.stack(logits)


def _batch(
    model: Model, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], steps: int
) -> list[Way]:
    """All prompts as rows of one batch, then the tokens that each chose alone; the last row pauses a step."""
    at: list[list[int]] = [[len(prompt) - 1] for prompt in prompts]
    longest = max(map(len, prompts)) + steps
    with model.session(batch=len(prompts), max_context=longest) as session:
        found = [[row.copy()] for row in session.prefill(prompts)]
        for step in range(steps):
            active = [b for b in range(len(prompts)) if b + 1 < len(prompts) or step != 1]
            fed = [tokens[b][len(at[b]) - 1] if b in active else None for b in range(len(prompts))]
            logits = session.step(fed)
            for b in active:
                at[b].append(at[b][-1] + 1)
                found[b].append(logits[b].copy())
    return [Way("ragged batch", b, tuple(at[b]), np.stack(rows)) for b, rows in enumerate(found)]
