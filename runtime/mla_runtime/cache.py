"""How many rows of a cache count, and how large its buffers should be. Holds no tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mla_runtime.errors import CapacityError
from mla_runtime.wording import counted

Int64 = npt.NDArray[np.int64]
_STEP = 64


class Lengths:
    """The valid rows of each sequence of a batch. They never pass `limit`: the cache does not wrap.

    Lengths move only through `commit`, as the last act of a step that succeeded.
    """

    def __init__(self, batch: int, limit: int) -> None:
        self.limit = limit
        self._rows = np.zeros(batch, dtype=np.int64)

    @property
    def rows(self) -> Int64:
        """A copy of the lengths, int64 [B]."""
        return self._rows.copy()

    def check_room(self, new: Sequence[int]) -> None:
        """Raise `CapacityError` if `new[b]` more rows do not fit in sequence b, for any b."""
        for index, (have, more) in enumerate(zip(self._rows.tolist(), new, strict=True)):
            if have + more > self.limit:
                msg = (
                    f"sequence {index}: {counted(have, 'row')} in the cache and {more} "
                    f"new pass the {counted(self.limit, 'row')} "
                )
                raise CapacityError(
                    msg + "of this session; shorten the prompt or open it with a larger max_context"
                )

    def commit(self, rows: Int64) -> None:
        """Make `rows` the lengths, in one assignment, so that no half of a batch moves alone."""
        self._rows = rows.copy()


def bucket(rows: int, limit: int) -> int:
    """Give the rows to allocate so that `rows` fit: 64 × 1.25^k, rounded up to 64, at most `limit`.

    Moving the rows of a cache that grows costs 5 row copies a row over its life; no more than a
    fifth of the rows shown are empty once a cache is past its first few buckets.
    """
    size = _STEP
    while size < rows:
        size = -(-(size * 5 // 4) // _STEP) * _STEP
    return min(size, limit)
