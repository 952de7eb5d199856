"""A device of NumPy memory: addresses, streams that do nothing until waited for, kernels, recordings.

Fresh memory is not zero, every access is checked against what is allocated, and a recording does again what
was recorded at the addresses of then: so what is stale, moved, overlapping or out of bounds fails.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mla_runtime.backends import kernels
from mla_runtime.errors import BackendError, CapacityError

GAP = 1 << 20
STALE = 0xFF  # a NaN, -1, or the lowest id but one

Op = Callable[[], None]


class FakeDevice:
    """`fail_at` names the synchronisation at which the device reports an error."""

    name = "a fake GPU"
    card = "sm86"

    def __init__(self, memory: int = 1 << 31) -> None:
        self.memory = memory
        self.used = self.pinned_bytes = 0
        self.blocks: dict[int, np.ndarray] = {}
        self._next = GAP
        self.streams: list[FakeStream] = []
        self.closed = False
        self.synchronisations = 0
        self.fail_at = 0
        self.dead: str | None = None

    def enter(self) -> None:
        assert not self.closed

    def free_memory(self) -> int:
        return self.memory - self.used

    def allocate(self, nbytes: int, what: str) -> int:
        if nbytes > self.free_memory():
            raise CapacityError(f"{what} take {nbytes:,} bytes")
        address, self._next = self._next, -(-(self._next + nbytes + GAP) // 256) * 256
        self.blocks[address] = np.full(nbytes, STALE, dtype=np.uint8)
        self.used += nbytes
        return address

    def free(self, address: int) -> None:
        self.used -= len(self.blocks.pop(address))

    def pinned(self, nbytes: int) -> np.ndarray:
        self.pinned_bytes += nbytes
        return np.full(nbytes, STALE, dtype=np.uint8)

    def free_pinned(self, memory: np.ndarray) -> None:
        self.pinned_bytes -= len(memory)

    def stream(self) -> FakeStream:
        self.streams.append(FakeStream(self))
        return self.streams[-1]

    def close(self) -> None:
        assert not self.blocks
        assert not self.pinned_bytes
        self.closed = True

    def read(self, address: int, nbytes: int) -> np.ndarray:
        return self.view(address, nbytes).copy()

    def write(self, address: int, raw: np.ndarray) -> None:
        self.view(address, len(raw))[:] = raw

    def later(self, handle: int, op: Op) -> None:
        """Queue what a kernel of someone else's would do."""
        next(stream for stream in self.streams if stream.handle == handle).do(op)

    def view(self, address: int, nbytes: int, dtype: Any = np.uint8) -> np.ndarray:
        """The memory there; fails unless all of it was allocated as one."""
        starts = sorted(self.blocks)
        place = bisect.bisect_right(starts, address) - 1
        assert place >= 0, f"nothing is allocated at {address}"
        offset = address - starts[place]
        block = self.blocks[starts[place]]
        assert offset + nbytes <= len(block), f"{nbytes} bytes at {address} leave their allocation"
        return block[offset : offset + nbytes].view(dtype)


class FakeStream:
    """Queues, and does all of it when waited for."""

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.handle = len(device.streams) + 1
        self.queued: list[Op] = []
        self.recording: list[Op] | None = None
        self.captured = self.replayed = 0
        self.live: list[list[Op]] = []
        self.closed = False

    def do(self, op: Op) -> None:
        assert not self.closed
        if self.device.dead is not None:
            raise BackendError(self.device.dead)
        (self.queued if self.recording is None else self.recording).append(op)

    def zero(self, address: int, nbytes: int) -> None:
        self.do(lambda: self.device.view(address, nbytes).fill(0))

    def copy_in(self, address: int, memory: np.ndarray) -> None:
        raw = memory.reshape(-1).view(np.uint8)
        self.do(lambda: np.copyto(self.device.view(address, len(raw)), raw))

    def copy_out(self, memory: np.ndarray, address: int) -> None:
        self.do(lambda: np.copyto(memory, self.device.view(address, memory.nbytes)))

    def copy(self, to: int, source: int, nbytes: int) -> None:
        assert to + nbytes <= source or source + nbytes <= to, "a copy overlaps itself"
        self.do(lambda: np.copyto(self.device.view(to, nbytes), self.device.view(source, nbytes)))

    def launch(self, name: str, grid: tuple[int, int], args: Sequence[tuple[int, Any]]) -> None:
        assert name in kernels.NAMES
        values = [value for value, _ in args]
        self.do(lambda: KERNELS[name](self.device, grid, *values))

    def begin_capture(self) -> None:
        assert self.recording is None
        self.recording = []

    def end_capture(self) -> list[Op]:
        assert self.recording is not None
        graph, self.recording = self.recording, None
        self.captured += 1
        self.live.append(graph)
        return graph

    def replay(self, graph: list[Op]) -> None:
        self.replayed += 1
        for op in graph:
            self.do(op)

    def forget(self, graph: list[Op]) -> None:
        self.live.remove(graph)

    def synchronise(self) -> None:
        assert self.recording is None, "waited while recording"
        self.device.synchronisations += 1
        if self.device.synchronisations == self.device.fail_at:
            self.queued.clear()
            raise BackendError("CUDA: cuStreamSynchronize: the device failed")
        queued, self.queued = self.queued, []
        for op in queued:
            op()

    def close(self) -> None:
        assert not self.live
        self.closed = True


def append(
    device: FakeDevice, grid: tuple[int, int], table: int, past: int, counts: int, width: int, stride: int
) -> None:
    batch = grid[0] // width
    lengths = device.view(past, 8 * batch, np.int64)
    news = device.view(counts, 8 * batch, np.int64)
    for cache, fresh, size in device.view(table, kernels.TABLE_ENTRY * grid[1], np.int64).reshape(-1, 3):
        for b in range(batch):
            for s in range(min(width, int(news[b]))):
                row = int(lengths[b]) + s
                if row < stride:
                    source = device.view(int(fresh) + (b * width + s) * int(size), int(size))
                    device.view(int(cache) + (b * stride + row) * int(size), int(size))[:] = source


def keys_of(logits: np.ndarray) -> np.ndarray:
    bits = np.where(logits == 0, np.float32(0), logits).astype(np.float32).view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    return (ordered << np.uint64(32)) | (np.uint64(0xFFFFFFFF) - np.arange(logits.shape[-1], dtype=np.uint64))


def keep_best(keys: np.ndarray, blocks: int, count: int) -> np.ndarray:
    padded = np.zeros(blocks * kernels.WINDOW, dtype=np.uint64)
    padded[: len(keys)] = keys
    windows = np.sort(padded.reshape(blocks, kernels.WINDOW), axis=1)[:, ::-1]
    return windows[:, :count].reshape(-1)


def best(
    device: FakeDevice, grid: tuple[int, int], logits: int, vocab: int, kept: int, count: int, bad: int
) -> None:
    blocks, batch = grid
    assert blocks * kernels.WINDOW >= vocab
    for b in range(batch):
        row = device.view(logits + 4 * b * vocab, 4 * vocab, np.float32)
        if not np.isfinite(row).all():
            device.view(bad + 4 * b, 4, np.int32)[:] = 1
        target = device.view(kept + 8 * b * blocks * count, 8 * blocks * count, np.uint64)
        target[:] = keep_best(keys_of(row), blocks, count)


def merge(device: FakeDevice, grid: tuple[int, int], found: int, number: int, kept: int, count: int) -> None:
    blocks, batch = grid
    assert blocks * kernels.WINDOW >= number
    for b in range(batch):
        keys = device.view(found + 8 * b * number, 8 * number, np.uint64)
        target = device.view(kept + 8 * b * blocks * count, 8 * blocks * count, np.uint64)
        target[:] = keep_best(keys, blocks, count)


def decode(device: FakeDevice, grid: tuple[int, int], keys: int, count: int, ids: int, logits: int) -> None:
    number = grid[1] * count
    found = device.view(keys, 8 * number, np.uint64)
    device.view(ids, 8 * number, np.int64)[:] = 0xFFFFFFFF - (found & np.uint64(0xFFFFFFFF)).astype(np.int64)
    bits = (found >> np.uint64(32)).astype(np.uint32)
    plain = np.where(bits >> 31, bits & np.uint32(0x7FFFFFFF), ~bits)
    device.view(logits, 4 * number, np.float32)[:] = plain.astype(np.uint32).view(np.float32)


KERNELS: dict[str, Callable[..., None]] = {"append": append, "best": best, "merge": merge, "decode": decode}
