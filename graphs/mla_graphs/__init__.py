"""What a Multi-head Latent Attention network is in ONNX: geometry, contract, operators, lowering.

No torch and no weights are needed here.
"""

from __future__ import annotations

from mla_graphs.contract import CacheSpec, CacheTypes, Contract, TensorSpec, contract
from mla_graphs.geometry import Geometry, LinearScaling, LongRope, Moe, Rotary, Yarn

__all__ = [
    "CacheSpec",
    "CacheTypes",
    "Contract",
    "Geometry",
    "LinearScaling",
    "LongRope",
    "Moe",
    "Rotary",
    "TensorSpec",
    "Yarn",
    "contract",
]
