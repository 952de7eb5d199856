"""Weights in groups of 4 or 8 bits: scale search, calibration, and the layouts that operators read.

Pure functions of tensors. A weight is [out, in], as checkpoints store it; each row is divided into groups of
consecutive inputs, and a group has one scale: value = code · scale, codes -8 … 7 or -128 … 127.

Names are imported when they are first used: `quantize.rule`, which says what gets how many bits, serves
`cost` too, which works where torch is not installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mla_export.quantize.blocks import Quantized, quantize_blocks
    from mla_export.quantize.calibrated import quantize_calibrated
    from mla_export.quantize.statistics import Statistics

__all__ = ["Quantized", "Statistics", "quantize_blocks", "quantize_calibrated"]

_HOME = {
    "Quantized": "blocks",
    "Statistics": "statistics",
    "quantize_blocks": "blocks",
    "quantize_calibrated": "calibrated",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
