"""The weights outside of the engines, on the device: read once, for both engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mla_runtime.backends.cuda import Device
from mla_runtime.backends.places import Places
from mla_runtime.bundle import Bundle
from mla_runtime.engines.record import Outside
from mla_runtime.errors import EngineError

PIECE = 16 << 20


class DeviceWeights:
    """Weights in one allocation; `addresses` has the input's name of each.

    Two names of the same bytes are one place.
    """

    def __init__(self, device: Device, bundle: Bundle, outside: Sequence[Outside]) -> None:
        places, found = Places(), dict[tuple[str, int, int], int]()
        for weight in outside:
            key = (weight.file, weight.offset, weight.nbytes)
            _check_inside(bundle, weight)
            if key not in found:
                found[key] = places.take(weight.nbytes)
        self.nbytes = places.size
        self._device = device
        self._base = device.allocate(max(self.nbytes, 1), "weights")
        self.addresses = {
            weight.name: self._base + found[weight.file, weight.offset, weight.nbytes] for weight in outside
        }
        try:
            bundle.check_unchanged()
            self._fill(bundle, found)
            bundle.check_unchanged()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the memory."""
        self._device.free(self._base)

    def _fill(self, bundle: Bundle, found: dict[tuple[str, int, int], int]) -> None:
        stream = self._device.stream()
        pinned = self._device.pinned(2 * PIECE)
        turn = 0
        try:
            for (file, offset, nbytes), place in found.items():
                mapped = _mapped(bundle.paths[file])[offset : offset + nbytes]
                for start in range(0, nbytes, PIECE):
                    part = mapped[start : start + PIECE]
                    half = pinned[turn * PIECE : turn * PIECE + len(part)]
                    # One half is read from the disk while the other one is on its way to the device.
                    half[:] = part
                    stream.synchronise()
                    stream.copy_in(self._base + place + start, half)
                    turn = 1 - turn
            stream.synchronise()
        finally:
            stream.close()
            self._device.free_pinned(pinned)


def weight_bytes(outside: Sequence[Outside]) -> int:
    """Give about how much device memory the weights take, before anything is allocated."""
    return sum({(weight.file, weight.offset): weight.nbytes for weight in outside}.values())


def _mapped(path: Path) -> Any:
    return np.memmap(path, dtype=np.uint8, mode="r")


def _check_inside(bundle: Bundle, weight: Outside) -> None:
    entry = bundle.manifest.files.get(weight.file)
    if entry is None or weight.offset + weight.nbytes > entry.size:
        msg = f"{bundle.path}: engines want {weight.nbytes} bytes at {weight.offset} of {weight.file!r} as "
        raise EngineError(f"{msg}{weight.name}, which are not there; build the engines again")
