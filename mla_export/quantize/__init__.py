"""Weights in groups of 4 or 8 bits: scale search, calibration, and the layouts that operators read.

Pure functions of tensors. A weight is [out, in], as checkpoints store it; each row is divided into groups of
consecutive inputs, and a group has one scale: value = code · scale, codes -8 … 7 or -128 … 127.
"""

from __future__ import annotations

from mla_export.quantize.blocks import Bits, Quantized, quantize_blocks
from mla_export.quantize.calibrated import quantize_calibrated
from mla_export.quantize.statistics import Statistics

__all__ = ["Bits", "Quantized", "Statistics", "quantize_blocks", "quantize_calibrated"]
