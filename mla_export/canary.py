"""Recording the canary: a few ids and the logits that a bundle gives for them when it is made.

It shows later that a backend on another machine computes what the exporter's did; that the exporter's
was right is what `verify --checkpoint` shows. The ids are fixed beforehand, so that the layers can be run
one after another.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mla_export.layerwise import Call, Layerwise
from mla_runtime.manifest import Canary

PROMPT_TOKENS = 8
STEPS = 4
TOP = 5


def token_ids(count: int, vocab_size: int) -> list[int]:
    """Give ids from all over the vocabulary, always the same."""
    return [(7919 * i + 17) % vocab_size for i in range(count)]


def record(model: Layerwise, chunk: int) -> Canary:
    """Run a prompt through the prompt graph's layers, `chunk` ids at once, and steps through the step's."""
    g = model.plan.geometry
    ids = token_ids(min(PROMPT_TOKENS + STEPS, g.max_context), g.vocab_size)
    prompt, steps = ids[:PROMPT_TOKENS], ids[PROMPT_TOKENS:]
    starts = range(0, len(prompt), chunk)
    calls = [Call("prompt", prompt[start : start + chunk], start) for start in starts]
    calls += [Call("step", [token], len(prompt) + i) for i, token in enumerate(steps)]
    logits = model.logits(calls)[len(starts) - 1 :]
    return Canary(tuple(prompt), tuple(steps), tuple(map(_top, logits)))


def _top(logits: npt.NDArray[np.float32]) -> tuple[tuple[int, float], ...]:
    order = np.argsort(-logits, kind="stable")[:TOP]
    return tuple((int(i), float(logits[i])) for i in order)
