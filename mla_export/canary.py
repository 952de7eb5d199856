"""Recording the canary: a few ids and the logits that a bundle gave for them when it was made.

It shows later that a backend on another machine computes what the exporter's did; that the exporter's
was right is what `verify --checkpoint` shows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mla_runtime.manifest import Canary
from mla_runtime.model import Model

PROMPT_TOKENS = 8
STEPS = 4
TOP = 5


def record(model: Model) -> Canary:
    """Run a prompt through the prompt graph and greedy steps through the step graph."""
    info = model.bundle.manifest.model
    prompt = [(7919 * i + 17) % info.vocab_size for i in range(min(PROMPT_TOKENS, info.max_context))]
    with model.session(max_context=min(info.max_context, len(prompt) + STEPS)) as session:
        top = [_top(session.prefill([prompt])[0])]
        for _ in range(min(STEPS, info.max_context - len(prompt))):
            top.append(_top(session.step([top[-1][0][0]])[0]))
    return Canary(tuple(prompt), tuple(top))


def _top(logits: npt.NDArray[np.float32]) -> tuple[tuple[int, float], ...]:
    order = np.argsort(-logits, kind="stable")[:TOP]
    return tuple((int(i), float(logits[i])) for i in order)
