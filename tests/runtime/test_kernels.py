"""The kernels compile for every card, with no GPU; the fake device's kernels do what they say."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest

from mla_runtime.backends import kernels
from mla_runtime.backends.nvrtc import compile_cubin
from mla_runtime.errors import BackendError
from mla_runtime.top import top_of
from tests.runtime.fake_device import FakeDevice, best, decode, merge


@pytest.fixture(scope="module", autouse=True)
def nvrtc() -> None:
    if "CI" not in os.environ:  # there a missing package must not pass for kernels that compile
        pytest.importorskip("cuda.bindings.nvrtc", reason="not installed: pip install mla-export[rtx]")
        try:
            compile_cubin("", "sm86")
        except BackendError as cause:
            if "does not load" in str(cause):
                pytest.skip(str(cause))


@pytest.mark.parametrize("card", ["sm75", "sm86", "sm87", "sm89", "sm90", "sm120"])
def test_kernels_compile(card: str) -> None:
    cubin = compile_cubin(kernels.SOURCE, card)
    assert cubin[:4] == b"\x7fELF"
    for name in kernels.NAMES:
        assert name.encode() in cubin


def test_names_are_those_in_the_source() -> None:
    assert tuple(re.findall(r"__global__ void (\w+)\(", kernels.SOURCE)) == kernels.NAMES


def test_source_that_does_not_compile_is_told_with_the_log() -> None:
    with pytest.raises(BackendError, match=r"does not compile the kernels for sm86: mla_runtime\.cu\(1\)"):
        compile_cubin("nonsense", "sm86")


def test_a_card_that_nvrtc_does_not_know_is_told() -> None:
    with pytest.raises(BackendError, match=r"sm19: .*gpu-architecture"):
        compile_cubin(kernels.SOURCE, "sm19")


@pytest.mark.parametrize(("vocab", "count"), [(61, 61), (2048, 1), (2049, 3), (40_000, 1000), (40_000, 1)])
def test_sorting_windows_finds_the_best(vocab: int, count: int) -> None:
    """The way the kernels go, in NumPy: the same windows, keys and rounds as `DeviceSteps` queues."""
    device = FakeDevice()
    logits = np.random.default_rng(0).integers(-300, 300, (2, vocab)).astype(np.float32) / 8
    logits[0, :5] = [-0.0, 0.0, 3e38, -3e38, 1e-45]
    want, _ = top_of(logits, count)
    blocks = kernels.windows(vocab)
    size = 8 * 2 * blocks * count
    given, one, other, bad, ids, found = (
        device.allocate(n, "") for n in (logits.nbytes, size, size, 8, 16 * count, 8 * count)
    )
    device.view(given, logits.nbytes, np.float32)[:] = logits.reshape(-1)
    best(device, (blocks, 2), given, vocab, one, count, bad)
    while blocks > 1:
        number, blocks = blocks * count, kernels.windows(blocks * count)
        merge(device, (blocks, 2), one, number, other, count)
        one, other = other, one
    decode(device, (1, 2), one, count, ids, found)
    assert np.array_equal(device.view(ids, 16 * count, np.int64).reshape(2, count), want.ids)
    assert np.array_equal(device.view(found, 8 * count, np.float32).reshape(2, count), want.logits)
