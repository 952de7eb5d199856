"""The plain counterpart of a quantised bundle: Hugging Face's layers, rounded to nearest.

What the bundle keeps in int8 or int4 is rounded here too, with the largest magnitude of a group as its scale
and nothing searched or calibrated, and so is what is multiplied with it, where the bundle's target does that.
Its error is what the formats cost by themselves.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mla_export.linears import Linears, parameter_of
from mla_export.quantize.rule import Scheme, bits_of, has_fine_inputs
from mla_graphs.contract import BYTES
from mla_graphs.geometry import Geometry
from mla_graphs.storage import Bits, Matrix
from mla_runtime.manifest import Precision as Formats

Precision = Literal["float64", "float32", "float16", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Rounded:
    """A precision to compute in, and what is rounded on the way.

    Weights as far as `scheme` says, and in its groups; `activations` to int8 in the same groups where such
    weights are multiplied with them, unless `has_fine_inputs` says that those have 16 bits; `latent` rows and
    `rope`, the rotary keys, to int8.
    """

    precision: Precision
    scheme: Scheme | None
    activations: bool
    latent: bool
    rope: bool

    @property
    def name(self) -> str:
        """Say in words what is computed."""
        parts = [f"int{self.scheme.bits} weights"] if self.scheme else []
        parts += ["int8 activations"] if self.activations else []
        parts += ["int8 rows"] if self.latent else []
        words = " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)
        return f"{self.precision} with {words}, rounded to nearest"

    def matrix(self, parameter: str, tensor: Tensor, geometry: Geometry) -> Tensor:
        """Round a matrix [out, in] of what the graph calls `parameter` as far as the bundle does."""
        rows = Matrix(tuple(tensor.shape), table=True)
        storage = None if self.scheme is None else self.scheme.storage(parameter, rows, geometry)
        return tensor if storage is None else nearest(tensor, storage.bits, storage.group(rows.inputs))

    def weight(self, layer: int, name: str, tensor: Tensor, geometry: Geometry) -> Tensor:
        """Round what the checkpoint calls `name` within `layer`; no norm, no bias, nothing kept in floats."""
        parameter = parameter_of(name.removesuffix(".weight"))
        if parameter is None or name.endswith("bias"):
            return tensor
        return self.matrix(f"layers.{layer}.{parameter}", tensor, geometry)

    def inputs(self, layer: int, module: nn.Module, geometry: Geometry) -> AbstractContextManager[Any]:
        """Round, inside, what the decoder layer `module` multiplies with its rounded weights."""

        def see(linear: str, _expert: int | None, rows: Tensor) -> Tensor:
            parameter = parameter_of(linear)
            if parameter is None or not self.rounds_inputs(f"layers.{layer}.{parameter}", geometry):
                return rows
            return self.multiplied(rows)

        return Linears(module, see) if self.activations else nullcontext()

    def head(self, module: nn.Module, geometry: Geometry) -> AbstractContextManager[Any]:
        """Round, inside, what goes into the head of `module`, if its weights are rounded."""
        if not self.rounds_inputs("head.weight", geometry):
            return nullcontext()
        return Linears(module, lambda _linear, _expert, rows: self.multiplied(rows))

    def rounds_inputs(self, parameter: str, geometry: Geometry) -> bool:
        """Tell whether what the graph multiplies with `parameter` is rounded."""
        scheme = self.scheme
        if not self.activations or scheme is None:
            return False
        if bits_of(parameter, geometry, scheme.bits, scheme.head) is None:
            return False
        return not has_fine_inputs(parameter, geometry, scheme.bits)

    def multiplied(self, rows: Tensor) -> Tensor:
        """Round what is multiplied with weights in codes."""
        return nearest(rows, 8, self.scheme.group if self.scheme else None)

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
    known: dict[str, Bits] = {"int8": 8, "int4": 4}
    bits, head = known.get(formats.weights), known.get(formats.head, 8)
    latent, rope = formats.cache in BYTES, formats.rope in BYTES
    if bits is None and not latent:
        return None
    compute: Precision = "float16" if formats.compute == "float16" else "float32"
    # graphs in standard operators multiply with floats
    activations = formats.activations == "int8"
    target = "ort-cpu" if activations else "portable"
    scheme = None if bits is None else Scheme(target, bits, formats.group, head)
    return Rounded(compute, scheme, activations, latent, rope)


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
