"""What an export is to be: the choices that shape its graphs and weights, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mla_graphs.contract import CacheTypes, Contract, contract
from mla_graphs.geometry import Absorb, Blocks, Float, Geometry
from mla_runtime.manifest import Precision


@dataclass(frozen=True, slots=True)
class Plan:
    """A geometry in one form of attention, with the types that it computes in, caches and stores.

    `weights` is how matrices are stored, None for floats of the type that is computed in.
    """

    geometry: Geometry
    absorb: Absorb
    compute: Float
    cache: CacheTypes
    weights: Blocks | None
    target: str

    @classmethod
    def floats(cls, geometry: Geometry, absorb: Absorb, dtype: Float, target: str = "portable") -> Plan:
        """Plan an export that is of one float type throughout."""
        return cls(geometry, absorb, dtype, CacheTypes.of(dtype), None, target)

    @property
    def contract(self) -> Contract:
        """Give inputs, cache tensors and outputs of the graphs."""
        return contract(self.geometry, self.absorb, self.cache)

    @property
    def precision(self) -> Precision:
        """Give the types as a bundle names them."""
        return Precision(
            compute=self.compute,
            weights=self.compute if self.weights is None else f"int{self.weights.bits}",
            group=None if self.weights is None else self.weights.group,
            cache=self.cache.latent,
            rope=self.cache.rope,
        )

    @property
    def torch_dtype(self) -> torch.dtype:
        """Give the type of activations, as torch's."""
        return {"float32": torch.float32, "float16": torch.float16}[self.compute]
