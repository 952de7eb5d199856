"""Rows that stand in for computed ones where speed is measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def stand_in(random: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Draw rows [n, *row]: codes of int8 rows, their scales (which have no axis of their own), or floats."""
    if dtype.itemsize == 1:
        lowest = 1 if dtype == np.uint8 else -127
        return random.integers(lowest, lowest + 255, shape, dtype=dtype)
    if len(shape) == 1:
        return np.full(shape, 1 / 32, dtype=dtype)
    return random.standard_normal(shape, dtype=np.float32).astype(dtype)
