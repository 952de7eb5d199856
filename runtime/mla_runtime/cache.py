"""How many rows of a cache count, and how large its buffers should be. Holds no tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mla_runtime.errors import CapacityError
from mla_runtime.wording import counted

Int64 = npt.NDArray[np.int64]
_STEP = 64
_FIRST_RUNG = 256


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


def rung(rows: int, limit: int) -> int:
    """Give the rows to show on a device so that `rows` fit: 256, 384, 512, 768, 1024, …, at most `limit`.

    Each of them is a recording of its own, and kernels compiled for its shapes: two for every doubling are
    17 up to 65,536 rows, where `bucket` has 28. No more than a third of the rows shown are empty, which
    costs reading them; the first ones are where weights are nearly all that a step reads.
    """
    size = _FIRST_RUNG
    while size < rows:
        # a power of two is followed by one and a half of it, and that by the next power
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return min(size, limit)


def rungs(limit: int) -> list[int]:
    """List what `rung` gives for all rows up to `limit`."""
    found = [rung(1, limit)]
    while found[-1] < limit:
        found.append(rung(found[-1] + 1, limit))
    return found
