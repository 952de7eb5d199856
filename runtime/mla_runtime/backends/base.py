"""What a session asks of a backend.

A backend loads a bundle's graphs and may serve many sessions; a `CacheBuffers` belongs to one session.
The buffers live where the backend computes. A step has two phases so that it can be taken again:
`run` computes logits and leaves the new rows pending, `keep` makes them rows of the cache. Until the
session moves its lengths the rows do not count, wherever they were written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mla_runtime.manifest import Phase
from mla_runtime.top import Finite, Top

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Call:
    """One run of a graph: the inputs of the contract but for the cache, which the buffers hold.

    `input_ids` and `position_ids` are [B, S], `past_lengths` and `new_lengths` [B], `logit_rows` [N]
    with 1 <= N <= B. Values are checked; padding ids are 0 and padding positions are in range.
    """

    phase: Phase
    input_ids: Int64
    position_ids: Int64
    past_lengths: Int64
    new_lengths: Int64
    logit_rows: Int64


class CacheBuffers(Protocol):
    """The cache of one session: buffers for B sequences of up to `max_rows` rows."""

    @property
    def nbytes(self) -> int:
        """Bytes that the buffers may take; memory that was never written may not be resident yet."""

    def run(self, call: Call) -> Float32:
        """Compute logits [N, V], the caller's to keep; the new rows are pending.

        Makes room for them first. Raises `BackendError` when the graph fails and `CapacityError`
        when memory is short; rows below `past_lengths` are as they were in either case.
        """

    def top(self, call: Call, count: int) -> tuple[Top, Finite]:
        """As `run`, but give the `count` best logits of each row, and which rows are finite throughout [N].

        Where the backend computes elsewhere, these are all that comes back.
        """

    def keep(self, call: Call) -> None:
        """Put the pending rows of `call` at `past_lengths` of each sequence."""

    def wipe(self, call: Call) -> None:
        """Zero what a failed `call` may have written, so that unused rows stay finite."""

    def rows(self, sequence: int, count: int) -> dict[str, npt.NDArray[Any]]:
        """Copy the first `count` rows [count, *row] of a sequence out, by the name of their `past` input."""

    def fill(self, rows: int) -> None:
        """Write `rows` rows of small random numbers in each sequence: a stand-in cache to measure with."""

    def close(self) -> None:
        """Free the buffers."""


class Backend(Protocol):
    """A bundle loaded by an inference engine; shareable among threads."""

    @property
    def name(self) -> str:
        """Name as people type it, such as `ort:cpu`."""

    @property
    def chunk(self) -> int:
        """The most new tokens of a sequence that a call of the prompt graph may have."""

    def width(self, phase: Phase, new: int) -> int:
        """Give the S to pad `new` tokens to: `new` itself, or a bucket where shapes must repeat."""

    def buffers(self, batch: int, max_rows: int) -> CacheBuffers:
        """Make the cache of a session of `batch` sequences."""

    def close(self) -> None:
        """Free graphs and weights."""
