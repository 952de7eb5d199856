"""Prompts to verify with when nobody gives any: a few texts, or seeded ids where there is no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mla_runtime.bundle import Bundle
from mla_runtime.errors import CapacityError
from mla_runtime.text import Text
from mla_runtime.wording import counted

TEXTS = (
    "The capital of France is",
    "def read_lines(path):\n    with open(path) as file:\n",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of",
    "Die Würde des Menschen ist unantastbar. 人人生而自由,在尊严和权利上一律平等。 3 × 17 = 51, 51 ÷ 17 =",
)
LENGTHS = (1, 7, 32, 48)


class Reader(Protocol):
    """What knows a bundle and reads text with its tokenizer: a model, or what computes one otherwise."""

    @property
    def bundle(self) -> Bundle:
        """The bundle."""

    @property
    def text(self) -> Text | None:
        """Its tokenizer, or None where it works on ids alone."""


def default_prompts(model: Reader, steps: int) -> list[list[int]]:
    """Give rows of ids, the last of them longer than the prompt graph's chunk where the context allows it.

    Every row leaves room for `steps` tokens; a context with no room gives rows of one id.
    """
    bundle = model.bundle
    vocab, room = bundle.model.vocab_size, max(1, bundle.model.max_context - steps)
    if model.text is not None:
        rows = [model.text.encode(text) for text in TEXTS]
    else:
        rng = np.random.default_rng(0)
        rows = [rng.integers(0, vocab, length).tolist() for length in LENGTHS]
    rows = [row[:room] for row in rows if row]
    beyond = min(room, bundle.chunk + bundle.chunk // 4)
    if beyond > max(map(len, rows)):
        ids = [token for row in rows for token in row]
        rows.append((ids * (beyond // len(ids) + 1))[:beyond])
    return rows


def check_room(prompts: Sequence[Sequence[int]], steps: int, context: int) -> None:
    """Raise CapacityError where a prompt and `steps` tokens after it pass a context."""
    longest = max(map(len, prompts))
    if longest + steps > context:
        raise CapacityError(
            f"a prompt of {counted(longest, 'token')} and {counted(steps, 'step')} pass the bundle's "
            f"context of {context}; give fewer steps or shorter prompts"
        )
