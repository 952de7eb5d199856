"""Codes as the bytes that operators read. Two 4-bit codes share a byte, the first in its low half."""

from __future__ import annotations

import torch
from torch import Tensor

from mla_export.quantize.blocks import Quantized
from mla_graphs.storage import Blocks, Channels, Groups, Storage


def packed(storage: Storage, weight: Quantized, *, stacked: bool) -> tuple[Tensor, Tensor]:
    """Give codes and scales of a matrix as its form lays them out; `stacked`: as one of a stack."""
    match storage:
        case Blocks():
            return matmul_nbits(weight), weight.scales
        case Channels(rows=True):
            return weight.codes, weight.scales[:, 0]
        case Groups() if stacked:
            return byte_halves(weight), weight.scales.T
        case Channels() | Groups():
            return dequantize_linear(weight)
    raise TypeError(f"{storage} has no layout")


def byte_halves(weight: Quantized) -> Tensor:
    """Give 4 bits as bytes int8 [in / 2, out] that floats take apart exactly; two nibbles of unlike signs.

    A byte is 16 · the code of input k + in / 2, plus the code of input k and 8, which is not negative: so
    floor(byte / 16) is the one. INT4 tensors cannot be gathered in TensorRT, and bytes can.
    """
    low, high = weight.codes.T.chunk(2)
    return (high << 4) + (low + 8)


def matmul_nbits(weight: Quantized) -> Tensor:
    """Give input B of `com.microsoft.MatMulNBits`, uint8 [out, groups, group · bits / 8].

    Without zero points the operator reads value = (code - 8 or 128) · scale. Its `scales` are the weight's,
    its `block_size` is the group.
    """
    out, groups = weight.scales.shape
    unsigned = _unsigned(weight.codes, weight.bits)
    return _halves(unsigned, weight.bits).view(out, groups, weight.group * weight.bits // 8)


def qmoe(weight: Quantized) -> Tensor:
    """Give one expert's weights as `com.microsoft.QMoE` stacks them, uint8 [out, in · bits / 8].

    Its scales are the weight's [out, in / group], its `block_size` is the group. The inputs have to fill
    their groups: the operator takes no padding.
    """
    if weight.inputs % weight.group:
        raise ValueError(f"QMoE takes whole groups only: {weight.inputs} inputs in groups of {weight.group}")
    return _halves(_unsigned(weight.codes, weight.bits), weight.bits)


def dequantize_linear(weight: Quantized) -> tuple[Tensor, Tensor]:
    """Give `x` and `x_scale` of a blocked ONNX `DequantizeLinear` that makes the weight [in, out].

    `x` INT8 [in, out], or for INT4 the bytes uint8 [in · out / 2] that its tensor [in, out] consists of;
    `x_scale` [groups, out]; axis 0, `block_size` is the group, no zero points, opset 21. Where the inputs do
    not fill their groups, `x` is padded to [groups · group, out]: runtimes differ on part blocks.
    """
    codes = weight.codes.T.contiguous()
    packed = codes if weight.bits == 8 else _halves((codes & 0xF).view(torch.uint8).view(1, -1), 4)[0]
    return packed, weight.scales.T.contiguous()


def _unsigned(codes: Tensor, bits: int) -> Tensor:
    # adding half the range to a two's complement number flips its highest bit: no wider type is needed
    return codes.view(torch.uint8).bitwise_xor(8 if bits == 4 else 128).bitwise_and_((1 << bits) - 1)


def _halves(values: Tensor, bits: int) -> Tensor:
    """Put two values [rows, columns] of 4 bits into a byte [rows, columns / 2]; 8 bits stay as they are."""
    if bits == 8:
        return values
    if values.shape[1] % 2:
        values = torch.nn.functional.pad(values, (0, 1))
    pairs = values.view(torch.int16)  # little-endian: the first code is the low byte
    return (pairs | (pairs >> 4)).to(torch.uint8)
