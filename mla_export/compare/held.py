"""What goes through a reference, and what of it a side is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from mla_export.compare.decode import Decoded
from mla_export.compare.result import Gate, LayerError
from mla_export.judge import Budget

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


@dataclass(slots=True)
class Held:
    """What a side's decode is judged by.

    `want` and `own` [1 + steps, V] a prompt are the reference's logits after the forced tokens and after the
    side's own; `tie` and `own_tie` [1 + steps] mark those behind a near tie of a router. `peer` has the
    peer's logits like `want`, None where there is no peer.
    """

    gate: Gate
    budget: Budget
    want: list[Array]
    tie: list[Array]
    own: list[Array]
    own_tie: list[Array]
    peer: list[Array] | None = None
    layers: list[LayerError] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Rowed:
    """Rows that go through a reference, each once: the forced row of every prompt first, then sides' own."""

    prompts: Sequence[Sequence[int]]
    forced: Sequence[Sequence[int]]
    rows: list[list[int]]
    own: list[list[int]]  # [side][prompt]: which row it is

    @classmethod
    def of(
        cls, prompts: Sequence[Sequence[int]], forced: Sequence[Sequence[int]], sides: Sequence[Decoded]
    ) -> Rowed:
        """Put the rows together."""
        rows = [[*prompt, *tokens] for prompt, tokens in zip(prompts, forced, strict=True)]
        own = []
        for side in sides:
            at = []
            for prompt, tokens in zip(prompts, side.tokens, strict=True):
                row = [*prompt, *tokens[:-1]]
                if row not in rows:
                    rows.append(row)
                at.append(rows.index(row))
            own.append(at)
        return cls(prompts, forced, rows, own)

    @property
    def steps(self) -> int:
        """How many tokens are forced."""
        return len(self.forced[0])

    def keep(self) -> list[list[int]]:
        """Give the positions of each row at which logits are compared: its last 1 + steps."""
        return [list(range(len(row) - 1 - self.steps, len(row))) for row in self.rows]
