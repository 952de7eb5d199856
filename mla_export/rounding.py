"""The plain counterpart of a quantised bundle: Hugging Face's layers, rounded to nearest.

What the bundle keeps in int8 or int4 is rounded here too, with the largest magnitude of a group as its scale
and nothing searched or calibrated. Its error is what the formats cost by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mla_graphs.contract import BYTES
from mla_graphs.geometry import Geometry
from mla_runtime.manifest import Precision as Formats

Precision = Literal["float64", "float32", "float16"]


@dataclass(frozen=True, slots=True)
class Rounded:
    """A precision to compute in, and what is rounded on the way: weights (bits), latent rows, rotary keys."""

    precision: Precision
    weight_bits: int | None
    group: int | None
    latent: bool
    rope: bool

    @property
    def name(self) -> str:
        """Say in words what is computed."""
        parts = [f"int{self.weight_bits} weights"] if self.weight_bits else []
        parts += ["int8 rows"] if self.latent else []
        return f"{self.precision} with {' and '.join(parts)}, rounded to nearest"

    def weight(self, name: str, tensor: Tensor) -> Tensor:
        """Round a matrix [out, in] of a layer; what an export keeps in floats at any width stays as it is."""
        kept = ("mlp.gate.weight", "kv_b_proj.weight", "kv_a_proj_with_mqa.weight")
        if self.weight_bits is None or tensor.ndim != 2 or name.endswith(kept):
            return tensor
        return nearest(tensor, self.weight_bits, self.group)

    def install(self, layer: nn.Module, geometry: Geometry) -> None:
        """Make a decoder layer round the rows that a cache would hold.

        Rotary keys are rounded before they are rotated, which only moves the same error among channels.
        """
        attention: Any = layer.self_attn
        if self.latent:
            attention.kv_a_layernorm.register_forward_hook(lambda _m, _i, out: int8_rows(out))
        if self.rope:
            size = geometry.kv_lora_rank

            def round_keys(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
                return torch.cat((out[..., :size], int8_rows(out[..., size:])), dim=-1)

            attention.kv_a_proj_with_mqa.register_forward_hook(round_keys)


def counterpart(formats: Formats) -> Rounded | None:
    """Give the counterpart of a bundle with these formats; None for one in floats throughout."""
    bits = {"int8": 8, "int4": 4}.get(formats.weights)
    latent, rope = formats.cache in BYTES, formats.rope in BYTES
    if bits is None and not latent:
        return None
    compute: Precision = "float16" if formats.compute == "float16" else "float32"
    return Rounded(compute, bits, formats.group, latent, rope)


def int8_rows(rows: Tensor) -> Tensor:
    """Round rows [..., C] to 255 levels around zero, as far as each row's largest magnitude."""
    return nearest(rows, 8, None)


def nearest(weight: Tensor, bits: int, group: int | None) -> Tensor:
    """Round groups along the last axis (None: the whole of it) symmetrically, by their largest magnitude."""
    width = weight.shape[-1]
    size = width if group is None else group
    padded = nn.functional.pad(weight.float(), (0, -width % size))
    groups = padded.reshape(*padded.shape[:-1], -1, size)
    scale = groups.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
    levels = torch.round(groups / scale.clamp_min(torch.finfo(torch.float32).tiny))
    rounded: Tensor = (levels * scale).reshape(padded.shape)[..., :width].to(weight.dtype)
    return rounded
