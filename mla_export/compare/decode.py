"""One side's decode: the forced tokens, its own greedy ones, and what each layer gave on the way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from mla_export import progress
from mla_export.compare.result import Rows
from mla_runtime import Model
from mla_runtime.bundle import Bundle

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Layers: TypeAlias = "list[list[Array]]"  # [prompt][layer], each [S, ·] in floats


@dataclass(slots=True)
class Decoded:
    """What a side computed, prompt by prompt.

    `logits` [1 + steps, V] after the prompt and after each forced token; `tokens` are its own greedy ones, as
    many. `layers` has what could be seen of the rows of each kind.
    """

    logits: list[Array]
    tokens: list[list[int]]
    layers: dict[Rows, Layers] = field(default_factory=dict)
    seconds: float = 0.0


def decode(
    model: Model, prompts: Sequence[Sequence[int]], forced: Sequence[Sequence[int]] | None, steps: int
) -> Decoded:
    """Decode `forced` tokens after every prompt (None: its own greedy ones), then greedy ones of its own.

    Rows of the cache are read as the backend left them.
    """
    found = Decoded([], [])
    seen: list[dict[Rows, list[Array]]] = []
    start = time.monotonic()
    with progress.task(f"{model.backend.name}, prompt by prompt", len(prompts)) as advance:
        for index, prompt in enumerate(prompts):
            given = None if forced is None else forced[index]
            logits, rows = forced_logits(model, prompt, given, steps)
            found.logits.append(logits)
            seen.append(_cached(model.bundle, rows))
            own = logits.argmax(axis=-1).tolist()
            if given is not None and own[:-1] != list(given):
                own = _greedy(model, prompt, steps)
            found.tokens.append(own)
            advance(1)
    found.layers = {kind: [rows[kind] for rows in seen] for kind in seen[0]}
    found.seconds = time.monotonic() - start
    return found


def forced_logits(
    model: Model, prompt: Sequence[int], given: Sequence[int] | None, steps: int
) -> tuple[Array, dict[str, Array]]:
    """Give logits [1 + steps, V] after a prompt and each given token (None: greedy ones), and the cache."""
    with model.session(max_context=len(prompt) + steps) as session:
        logits = [session.prefill([prompt])[0].copy()]
        for step in range(steps):
            token = int(logits[-1].argmax()) if given is None else given[step]
            logits.append(session.step([token])[0].copy())
        return np.stack(logits), session.rows()


def _greedy(model: Model, prompt: Sequence[int], steps: int) -> list[int]:
    with model.session(max_context=len(prompt) + steps) as session:
        tokens = [int(session.prefill([prompt])[0].argmax())]
        for _ in range(steps):
            tokens.append(int(session.step(tokens[-1:])[0].argmax()))
    return tokens


def _cached(bundle: Bundle, rows: dict[str, Array]) -> dict[Rows, list[Array]]:
    """Give latent rows and rotary keys of each layer in floats; nothing of a cache of keys and values."""
    found: dict[Rows, list[Array]] = {}
    scales = {(t.layer, t.holds): rows[t.past] for t in bundle.cache}
    for tensor in bundle.cache:
        if tensor.holds not in ("latent", "rope"):
            continue
        values = rows[tensor.past]
        if values.dtype.itemsize == 1:
            zero = 128 if values.dtype == np.uint8 else 0
            scale = scales[tensor.layer, f"{tensor.holds}_scale"]
            values = (values.astype(np.float32) - zero) * scale[:, None]
        kind: Rows = "latent" if tensor.holds == "latent" else "rope"
        found.setdefault(kind, []).append(values)
    return found
