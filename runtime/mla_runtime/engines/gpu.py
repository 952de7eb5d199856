"""The GPU at hand, asked of CUDA's driver itself: no package is needed to know whether there is one."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NAME_BYTES = 256


@dataclass(frozen=True, slots=True)
class Gpu:
    """Name, compute capability such as (8, 6), bytes of memory, and the CUDA version of its driver."""

    name: str
    capability: tuple[int, int]
    memory: int
    cuda: tuple[int, int]

    @property
    def card(self) -> str:
        """The compute capability as engines name it: `sm86`."""
        return f"sm{self.capability[0]}{self.capability[1]}"


def gpu_at_hand() -> Gpu | None:
    """Give the first GPU that CUDA shows, as `CUDA_VISIBLE_DEVICES` has it, or None where there is none."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    device, major, minor, version = (ctypes.c_int() for _ in range(4))
    memory, name = ctypes.c_size_t(), ctypes.create_string_buffer(_NAME_BYTES)
    try:
        codes = (
            cuda.cuInit(0)
            or cuda.cuDeviceGet(ctypes.byref(device), 0)
            or cuda.cuDeviceGetName(name, _NAME_BYTES, device)
            or cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
            or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
            or cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
            or cuda.cuDriverGetVersion(ctypes.byref(version))
        )
    except AttributeError:  # a library of that name which is none of CUDA's
        return None
    if codes:
        return None
    return Gpu(
        name=name.value.decode(errors="replace"),
        capability=(major.value, minor.value),
        memory=memory.value,
        cuda=(version.value // 1000, version.value % 1000 // 10),
    )
