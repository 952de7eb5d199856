"""Kernels, copies and recordings on a device against NumPy."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from mla_runtime.backends import kernels
from mla_runtime.backends.device_cache import DeviceCache
from mla_runtime.manifest import CacheTensor
from mla_runtime.top import top_of

POINTER, NUMBER = ctypes.c_void_p, ctypes.c_longlong


def put(device: Any, array: np.ndarray) -> int:
    address = device.allocate(array.nbytes, "a test")
    device.write(address, np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return int(address)


def get(device: Any, address: int, like: np.ndarray) -> np.ndarray:
    found = device.read(address, like.nbytes)
    return np.asarray(found).view(like.dtype).reshape(like.shape)


@dataclass
class Appending:
    """Cache tensors with rows of several sizes, new rows for them, and what should come of it."""

    caches: list[np.ndarray]
    news: list[np.ndarray]
    past: np.ndarray
    counts: np.ndarray

    @classmethod
    def make(cls, batch: int, width: int, stride: int) -> Appending:
        random = np.random.default_rng(batch)
        sizes = (1024, 128, 64, 12, 4, 7, 1)  # multiples of 16, of 4, and odd ones
        return cls(
            [random.integers(0, 255, (batch, stride, size), dtype=np.uint8) for size in sizes],
            [random.integers(0, 255, (batch, width, size), dtype=np.uint8) for size in sizes],
            random.integers(0, stride - width, batch),
            np.array([width, 0, 1, max(1, width - 1)] * batch)[:batch],
        )

    def expected(self) -> list[np.ndarray]:
        found = [cache.copy() for cache in self.caches]
        for cache, new in zip(found, self.news, strict=True):
            for b, (past, count) in enumerate(zip(self.past, self.counts, strict=True)):
                cache[b, past : past + count] = new[b, :count]
        return found


@pytest.mark.parametrize(("batch", "width", "stride"), [(1, 1, 256), (4, 1, 384), (3, 16, 64), (1, 512, 640)])
def test_append_puts_the_rows_that_count_behind_those_that_are_there(
    device: Any, batch: int, width: int, stride: int
) -> None:
    work = Appending.make(batch, width, stride)
    caches = [put(device, cache) for cache in work.caches]
    news = [put(device, new) for new in work.news]
    sizes = [cache.shape[-1] for cache in work.caches]
    table = put(device, np.array(list(zip(caches, news, sizes, strict=True)), dtype=np.int64))
    past, counts = put(device, work.past.astype(np.int64)), put(device, work.counts.astype(np.int64))
    stream = device.stream()
    pointers = tuple((address, POINTER) for address in (table, past, counts))
    stream.launch("append", (batch * width, len(sizes)), (*pointers, (width, NUMBER), (stride, NUMBER)))
    stream.synchronise()
    for address, cache, want in zip(caches, work.caches, work.expected(), strict=True):
        assert np.array_equal(get(device, address, cache), want)


def choose(device: Any, stream: Any, logits: np.ndarray, count: int) -> tuple[int, int, int]:
    """Queue what a step does to choose; gives where ids, logits and flags will be."""
    batch, vocab = logits.shape
    blocks = kernels.windows(vocab)
    keys = [device.allocate(8 * batch * blocks * count, "keys") for _ in range(2)]
    ids, found, bad = (device.allocate(size * batch * count, "answer") for size in (8, 4, 4))
    given = put(device, logits)
    stream.zero(bad, 4 * batch)
    tail = ((count, NUMBER), (bad, POINTER))
    stream.launch("best", (blocks, batch), ((given, POINTER), (vocab, NUMBER), (keys[0], POINTER), *tail))
    while blocks > 1:
        number, blocks = blocks * count, kernels.windows(blocks * count)
        given_keys = ((keys[0], POINTER), (number, NUMBER))
        stream.launch("merge", (blocks, batch), (*given_keys, (keys[1], POINTER), (count, NUMBER)))
        keys.reverse()
    stream.launch(
        "decode", (1, batch), ((keys[0], POINTER), (count, NUMBER), (ids, POINTER), (found, POINTER))
    )
    return ids, found, bad


@pytest.mark.parametrize("vocab", [61, 2048, 2049, 32_000, 163_840])
@pytest.mark.parametrize("count", [1, 5, 50, 1024])
def test_the_best_logits_are_those_of_numpy(device: Any, vocab: int, count: int) -> None:
    count = min(count, vocab)
    random = np.random.default_rng(vocab)
    logits = random.integers(-200, 200, (3, vocab)).astype(np.float32) / 16  # many ties
    logits[1] = random.standard_normal(vocab, dtype=np.float32) * 1e-38  # subnormal ones among them
    logits[2, ::3] = -0.0
    want, _ = top_of(logits, count)
    stream = device.stream()
    ids, found, bad = choose(device, stream, logits, count)
    stream.synchronise()
    assert np.array_equal(get(device, ids, want.ids), want.ids)
    assert np.array_equal(get(device, found, want.logits), want.logits)
    assert not get(device, bad, np.zeros(3, np.int32)).any()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_found_anywhere(device: Any, poison: float) -> None:
    logits = np.zeros((2, 40_000), dtype=np.float32)
    logits[1, 39_999] = poison
    stream = device.stream()
    _, _, bad = choose(device, stream, logits, 1)
    stream.synchronise()
    assert get(device, bad, np.zeros(2, np.int32)).tolist() == [0, 1]


def test_a_recording_reads_what_changes_from_the_device(device: Any) -> None:
    cache = np.zeros((1, 64, 16), dtype=np.uint8)
    new = np.ones((1, 1, 16), dtype=np.uint8)
    at, source = put(device, cache), put(device, new)
    table = put(device, np.array([[at, source, 16]], dtype=np.int64))
    numbers = device.pinned(16).view(np.int64)
    past = device.allocate(256, "lengths")
    stream = device.stream()
    stream.begin_capture()
    stream.copy_in(past, numbers)
    pointers = ((table, POINTER), (past, POINTER), (past + 8, POINTER))
    stream.launch("append", (1, 1), (*pointers, (1, NUMBER), (64, NUMBER)))
    graph = stream.end_capture()
    for row in (3, 9):
        numbers[:] = (row, 1)
        stream.replay(graph)
        stream.synchronise()
    cache[0, [3, 9]] = 1
    assert np.array_equal(get(device, at, cache), cache)
    stream.forget(graph)


@pytest.mark.parametrize("batch", [2, 5])
def test_sequences_move_apart_in_place(device: Any, batch: int) -> None:
    tensors = [
        CacheTensor(0, "append", "latent", f"past.{width}", f"present.{width}", dtype, row, "")
        for width, (dtype, row) in enumerate([("float16", (24,)), ("int8", (7,)), ("float32", ())])
    ]
    stream = device.stream()
    most = 1000
    addresses = [device.allocate(batch * most * tensor.row_bytes, "rows") for tensor in tensors]
    for tensor, address in zip(tensors, addresses, strict=True):
        stream.zero(address, batch * most * tensor.row_bytes)
    cache = DeviceCache(stream, tensors, addresses, batch, most)
    staging = device.pinned(1 << 12)
    cache.fill(256, staging)
    before = [cache.rows(index, 256, staging) for index in range(batch)]
    for rows, shown in ((257, 384), (600, 768), (1000, 1000)):
        assert cache.show(rows) == shown
        for index in range(batch):
            found = cache.rows(index, shown, staging)
            for name, old in before[index].items():
                assert np.array_equal(found[name][:256], old)
                assert not found[name][256:].any()
