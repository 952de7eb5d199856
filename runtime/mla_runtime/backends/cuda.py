"""What a backend does with a CUDA device: memory, copies, kernels and graphs, by cuda-python's driver API.

Every call that fails is one error that names it. The driver is loaded when a `Device` is made, not before.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mla_runtime.backends import kernels
from mla_runtime.backends.nvrtc import compile_cubin
from mla_runtime.errors import BackendError, CapacityError

Bytes = npt.NDArray[np.uint8]
# A kernel's argument: its value and its type in C.
Argument = tuple[int, Any]


class Driver:
    """The driver API: calls by name, whose failures are errors."""

    def __init__(self, needed_by: str) -> None:
        try:
            from cuda.bindings import driver
        except ImportError as cause:
            extra = needed_by.removeprefix("tensorrt-")
            msg = f"backend {needed_by}: cuda-bindings is not installed ({cause}); install it with: "
            raise BackendError(f"{msg}pip install 'mla-export[{extra}]'") from cause
        self.api = driver
        instead = "; run it where there is an NVIDIA GPU"
        if needed_by != "tensorrt":
            instead = "; build for a named card with: mla-export build BUNDLE --for sm89"
        try:
            self.call("cuInit", 0)
        except RuntimeError as cause:  # what the bindings raise where there is no driver to load
            raise BackendError(f"backend {needed_by}: no CUDA driver is here{instead}") from cause
        except BackendError as cause:
            raise BackendError(f"backend {needed_by}: no GPU is here ({cause}){instead}") from cause

    def call(self, name: str, *args: Any) -> Any:
        """Call a function of the driver; give what it returns, or None. Raises `BackendError`."""
        status, *found = getattr(self.api, name)(*args)
        if status != self.api.CUresult.CUDA_SUCCESS:
            said = self.api.cuGetErrorString(status)[1]
            text = said.decode() if isinstance(said, bytes) else str(status)
            if status == self.api.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
                raise CapacityError(f"CUDA: {name}: {text}")
            raise BackendError(f"CUDA: {name}: {text}")
        return found[0] if len(found) == 1 else tuple(found) or None


class Device:
    """One GPU, through its primary context, which TensorRT uses too."""

    def __init__(self, needed_by: str, ordinal: int = 0) -> None:
        self.driver = Driver(needed_by)
        call, api = self.driver.call, self.driver.api
        if ordinal >= (count := call("cuDeviceGetCount")):
            raise BackendError(f"backend {needed_by}: GPU {ordinal} was asked for; the driver has {count}")
        self._handle = call("cuDeviceGet", ordinal)
        self.name = call("cuDeviceGetName", 128, self._handle).rstrip(b"\0").decode()
        kinds = api.CUdevice_attribute
        major = self._attribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
        minor = self._attribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        self.card = f"sm{major}{minor}"
        self._shares_memory = bool(self._attribute(kinds.CU_DEVICE_ATTRIBUTE_INTEGRATED))
        self._context = call("cuDevicePrimaryCtxRetain", self._handle)
        self.enter()
        cubin = np.frombuffer(compile_cubin(kernels.SOURCE, self.card), dtype=np.uint8)
        self._module = call("cuModuleLoadData", cubin.ctypes.data)
        self.functions = {
            name: call("cuModuleGetFunction", self._module, name.encode()) for name in kernels.NAMES
        }

    def enter(self) -> None:
        """Make this the calling thread's device; every thread does so before it uses what is here."""
        self.driver.call("cuCtxSetCurrent", self._context)

    def free_memory(self) -> int:
        """Give the bytes that can be allocated."""
        free, _ = self.driver.call("cuMemGetInfo")
        if self._shares_memory:
            # A Jetson's driver counts what the system holds as a cache of files as taken.
            free = max(free, _available_memory())
        return int(free)

    def allocate(self, nbytes: int, what: str) -> int:
        """Allocate device memory, 256-byte aligned; gives its address. Raises `CapacityError`."""
        try:
            return int(self.driver.call("cuMemAlloc", nbytes))
        except CapacityError as cause:
            free = self.free_memory()
            msg = f"{what} take {nbytes:,} bytes of {self.name}'s memory, where {free:,} are free"
            raise CapacityError(f"{msg}; close other programs on it, or use a smaller max_context") from cause

    def free(self, address: int) -> None:
        """Free what `allocate` gave."""
        self.driver.call("cuMemFree", address)

    def pinned(self, nbytes: int) -> Bytes:
        """Allocate host memory that the device copies from and to without the processor."""
        address = int(self.driver.call("cuMemHostAlloc", nbytes, 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def free_pinned(self, memory: Bytes) -> None:
        """Free what `pinned` gave; no array over it may be used again."""
        self.driver.call("cuMemFreeHost", memory.ctypes.data)

    def stream(self) -> Stream:
        """Make a stream."""
        return Stream(self)

    def close(self) -> None:
        """Give the context back; TensorRT may hold it too."""
        self.driver.call("cuModuleUnload", self._module)
        self.driver.call("cuDevicePrimaryCtxRelease", self._handle)

    def _attribute(self, kind: Any) -> int:
        return int(self.driver.call("cuDeviceGetAttribute", kind, self._handle))


class Stream:
    """Work in order: everything here is queued, and done when `synchronise` returns."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._driver = device.driver
        kind = self._driver.api.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._stream = self._driver.call("cuStreamCreate", kind)
        self.handle = int(self._stream)

    def zero(self, address: int, nbytes: int) -> None:
        """Zero device memory."""
        if nbytes:
            self._driver.call("cuMemsetD8Async", address, 0, nbytes, self._stream)

    def copy_in(self, address: int, memory: npt.NDArray[Any]) -> None:
        """Copy pinned memory to the device; it must stay as it is until that is done."""
        self._driver.call("cuMemcpyHtoDAsync", address, memory.ctypes.data, memory.nbytes, self._stream)

    def copy_out(self, memory: npt.NDArray[Any], address: int) -> None:
        """Copy from the device to pinned memory."""
        self._driver.call("cuMemcpyDtoHAsync", memory.ctypes.data, address, memory.nbytes, self._stream)

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Copy within the device; the two places must not overlap."""
        self._driver.call("cuMemcpyDtoDAsync", to, source, nbytes, self._stream)

    def launch(self, name: str, grid: tuple[int, int], args: Sequence[Argument]) -> None:
        """Run a kernel of `kernels` with a grid of blocks."""
        values = (tuple(value for value, _ in args), tuple(kind for _, kind in args))
        shape = (*grid, 1, kernels.THREADS, 1, 1)
        self._driver.call("cuLaunchKernel", self._device.functions[name], *shape, 0, self._stream, values, 0)

    def begin_capture(self) -> None:
        """Record what follows instead of doing it."""
        # Others' allocations in other threads have nothing to do with what is recorded here.
        mode = self._driver.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._driver.call("cuStreamBeginCapture", self._stream, mode)

    def end_capture(self) -> Any:
        """End recording; gives what `replay` does again."""
        graph = self._driver.call("cuStreamEndCapture", self._stream)
        try:
            return self._driver.call("cuGraphInstantiate", graph, 0)
        finally:
            self._driver.call("cuGraphDestroy", graph)

    def replay(self, graph: Any) -> None:
        """Do all that was recorded, at the addresses of then."""
        self._driver.call("cuGraphLaunch", graph, self._stream)

    def forget(self, graph: Any) -> None:
        """Free a recording."""
        self._driver.call("cuGraphExecDestroy", graph)

    def synchronise(self) -> None:
        """Wait until all that was queued is done."""
        self._driver.call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Free the stream."""
        self._driver.call("cuStreamDestroy", self._stream)


def _available_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Give what Linux would make room for, in bytes; 0 where it does not tell."""
    if not meminfo.exists():
        return 0
    lines = (line.split() for line in meminfo.read_text().splitlines())
    return next((int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:"), 0)
