"""The rows of a session's cache on a device: allocated once for all it may hold, and zeroed.

One sequence: T shown is a rung of its buffer, whose first rows are the same at every T, so nothing ever
moves. Several sequences: T is the stride between them, so a longer T moves all but the first apart, in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mla_runtime.backends.base import Call
from mla_runtime.backends.cuda import Bytes, Stream
from mla_runtime.backends.stand_in import stand_in
from mla_runtime.cache import rung
from mla_runtime.errors import BackendError
from mla_runtime.manifest import CacheTensor

Array = npt.NDArray[Any]


class DeviceCache:
    """Cache tensors at `addresses`, each with room for `batch` × `max_rows` rows, already zero."""

    def __init__(
        self,
        stream: Stream,
        tensors: Sequence[CacheTensor],
        addresses: Sequence[int],
        batch: int,
        max_rows: int,
    ) -> None:
        self._stream = stream
        self._tensors = list(zip(tensors, addresses, strict=True))
        self._batch = batch
        self._max_rows = max_rows
        self._stride = max_rows if batch == 1 else rung(1, max_rows)
        self._moving = False

    def show(self, rows: int) -> int:
        """Make room for `rows` rows of every sequence; gives T, at least that."""
        if self._moving:
            raise BackendError("the cache was being moved when it was interrupted; open another session")
        wanted = rung(rows, self._max_rows)
        if self._batch == 1:
            return wanted
        if wanted > self._stride:
            self._moving = True
            self._widen(wanted)
            self._moving = False
        return self._stride

    def wipe(self, call: Call) -> None:
        """Zero what `call` may have appended."""
        for index, (past, count) in enumerate(zip(call.past_lengths, call.new_lengths, strict=True)):
            end = min(int(past + count), self._stride)
            if end > past and not self._moving:
                for tensor, address in self._tensors:
                    self._stream.zero(
                        self._row(tensor, address, index, int(past)), int(end - past) * tensor.row_bytes
                    )

    def rows(self, sequence: int, count: int, pinned: Bytes) -> dict[str, Array]:
        """Copy rows out, by way of the memory `pinned`."""
        found = {}
        for tensor, address in self._tensors:
            rows = np.empty((count, *tensor.row), dtype=tensor.dtype)
            raw = rows.reshape(-1).view(np.uint8)
            start = self._row(tensor, address, sequence, 0)
            for place in range(0, len(raw), len(pinned)):
                part = raw[place : place + len(pinned)]
                self._stream.copy_out(pinned[: len(part)], start + place)
                self._stream.synchronise()
                part[:] = pinned[: len(part)]
            found[tensor.past] = rows
        return found

    def fill(self, rows: int, pinned: Bytes) -> None:
        """Write `rows` rows of random numbers in each sequence, by way of the memory `pinned`."""
        self.show(rows)
        random = np.random.default_rng(0)
        for tensor, address in self._tensors:
            count = max(1, min(rows, 64, len(pinned) // tensor.row_bytes))
            numbers = stand_in(random, (count, *tensor.row), np.dtype(tensor.dtype))
            raw = np.ascontiguousarray(numbers).reshape(-1).view(np.uint8)
            pinned[: len(raw)] = raw
            for index in range(self._batch if rows else 0):
                start = self._row(tensor, address, index, 0)
                self._stream.copy_in(start, pinned[: len(raw)])
                self._repeat(start, len(raw), rows * tensor.row_bytes)
            self._stream.synchronise()

    def _repeat(self, start: int, have: int, nbytes: int) -> None:
        """Repeat the first `have` bytes up to `nbytes`, twice as many with each copy."""
        while have < nbytes:
            more = min(have, nbytes - have)
            self._stream.copy(start + have, start, more)
            have += more

    def _row(self, tensor: CacheTensor, address: int, sequence: int, row: int) -> int:
        return address + (sequence * self._stride + row) * tensor.row_bytes

    def _widen(self, stride: int) -> None:
        """Move the sequences apart, the last one first, and zero the rows between them."""
        old = self._stride
        for tensor, address in self._tensors:
            size = tensor.row_bytes
            for index in range(self._batch - 1, 0, -1):
                self._move(address + index * old * size, index * (stride - old) * size, old * size)
            for index in range(self._batch):
                self._stream.zero(address + (index * stride + old) * size, (stride - old) * size)
        self._stride = stride

    def _move(self, source: int, by: int, nbytes: int) -> None:
        """Move bytes up by `by`, the last first and no more than that at once: no copy overlaps itself."""
        end = nbytes
        while end > 0:
            part = min(by, end)
            end -= part
            self._stream.copy(source + end + by, source + end, part)
