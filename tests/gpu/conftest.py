"""The device that a test runs on: memory of NumPy's, which needs nothing, and a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mla_runtime.backends.cuda import Device
from mla_runtime.errors import BackendError
from tests.runtime.fake_device import FakeDevice
from tests.runtime.rig import make_bundles


class ReadableDevice(Device):
    """A GPU whose memory is read and written by address, as a stand-in for an engine does."""

    def read(self, address: int, nbytes: int) -> np.ndarray:
        memory, stream = self.pinned(nbytes), self.stream()
        stream.copy_out(memory, address)
        stream.synchronise()
        found = memory.copy()
        stream.close()
        self.free_pinned(memory)
        return found

    def write(self, address: int, raw: np.ndarray) -> None:
        memory, stream = self.pinned(len(raw)), self.stream()
        memory[:] = raw
        stream.copy_in(address, memory)
        stream.synchronise()
        stream.close()
        self.free_pinned(memory)

    def later(self, handle: int, op: Callable[[], None]) -> None:
        """Do it once the stream has come this far: nothing of it can be recorded."""
        self.driver.call("cuStreamSynchronize", handle)
        op()


def gpu() -> ReadableDevice:
    """The GPU at hand; skips where there is none."""
    try:
        return ReadableDevice("tensorrt-rtx")
    except BackendError as cause:
        pytest.skip(str(cause))


@pytest.fixture(params=["numpy", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Any:
    return FakeDevice() if request.param == "numpy" else gpu()


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_bundles(tmp_path_factory.mktemp("bundles"))
