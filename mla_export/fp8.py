"""DeepSeek's block-scaled fp8: each 128 x 128 block of a weight is stored as e4m3 times one float32 scale.

Source: DeepSeek-V3 (arXiv 2412.19437), section 3.3.2; in checkpoints `W.weight` with `W.weight_scale_inv`,
the number that a stored value is multiplied by. Blocks at the edges may be ragged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mla_export.safetensors_file import TensorInfo
from mla_runtime.errors import CheckpointError

if TYPE_CHECKING:
    import torch

BLOCK = 128
SCALE_SUFFIX = ".weight_scale_inv"


def scale_name(name: str) -> str:
    """Give the name of the scale of the fp8 weight `name`."""
    return f"{name}_scale_inv"


def check_scales(tensors: Mapping[str, TensorInfo], quantized: bool) -> None:
    """Check that fp8 weights and scales come in pairs of matching shapes.

    `quantized` says whether config.json declares the fp8 format.
    """
    for name, info in tensors.items():
        if info.dtype == "F8_E4M3":
            _check_weight(name, info, tensors, quantized)
        elif name.endswith(SCALE_SUFFIX):
            weight = tensors.get(name.removesuffix("_scale_inv"))
            if weight is None or weight.dtype != "F8_E4M3":
                found = "missing" if weight is None else weight.dtype
                raise CheckpointError(
                    f"{info.file.name}: {name} is the scale of an fp8 weight, but that is {found}"
                )


def _check_weight(name: str, info: TensorInfo, tensors: Mapping[str, TensorInfo], quantized: bool) -> None:
    if not quantized:
        raise CheckpointError(
            f"{info.file.name}: {name} is stored as fp8, but config.json has no quantization_config; "
            "take the config.json that was published with these weights"
        )
    scale = tensors.get(scale_name(name))
    if scale is None:
        raise CheckpointError(f"{info.file.name}: {name} is stored as fp8, but {scale_name(name)} is missing")
    if len(info.shape) != 2:
        raise CheckpointError(
            f"{info.file.name}: {name} is fp8 of shape {list(info.shape)}; only matrices are"
        )
    grid = tuple(-(-size // BLOCK) for size in info.shape)
    if scale.dtype != "F32" or scale.shape != grid:
        raise CheckpointError(
            f"{scale.file.name}: {scale_name(name)} is {scale.dtype} {list(scale.shape)}; a weight of "
            f"{list(info.shape)} in blocks of {BLOCK} x {BLOCK} has F32 {list(grid)}"
        )


def dequantize(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Give the float32 weight [rows, columns] of stored values and their scales, one a block."""
    import torch

    result = weight.to(torch.float32)
    columns = weight.shape[1]
    for i, row in enumerate(scale):
        result[i * BLOCK : (i + 1) * BLOCK] *= row.repeat_interleave(BLOCK)[:columns]
    return result
