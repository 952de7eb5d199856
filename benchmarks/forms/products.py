"""What int4 costs the product of two matrices: rounded as the product, or as its factors.

Merged, W_UQ·W_UK and W_UV·W_O stand in the graph as products, and these are rounded. Factored, W_UQ and W_O
are rounded while W_UK and W_UV stay floats; for comparison they are rounded here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mla_export import absorb
from mla_export.quantize import quantize_blocks
from mla_export.reference import Reference
from mla_graphs.storage import Bits


@dataclass(frozen=True, slots=True)
class Product:
    """RMS error of one layer's product as a share of its RMS.

    `merged`: the product rounded. `factored`: one factor rounded, as `--absorb factored` has it.
    `both`: both factors rounded.
    """

    layer: int
    product: str
    merged: float
    factored: float
    both: float


def products(reference: Reference, bits: Bits, group: int) -> Iterator[Product]:
    """Round the products of every layer, and their factors, by searched scales."""
    g = reference.geometry
    heads, nope, value = g.num_attention_heads, g.qk_nope_head_dim, g.v_head_dim
    query = "q_proj" if g.q_lora_rank is None else "q_b_proj"

    def rounded(weight: Tensor) -> Tensor:  # [out, in]
        return quantize_blocks(weight.float(), bits, group).dequantize().double()

    for layer in range(g.num_hidden_layers):
        read = reference.tensors(layer)
        q_b, kv_b, o_proj = (
            read[f"self_attn.{name}.weight"].double() for name in (query, "kv_b_proj", "o_proj")
        )
        w_uk, w_uv = absorb.split_kv_b(kv_b, heads, nope, value)  # [H,P,C], [H,D,C]

        def of_query(q: Tensor, up: Tensor) -> Tensor:  # [H·C, in]
            nopes, _ = absorb.split_query(q, heads, nope, g.qk_rope_head_dim, g.rotary.interleaved)
            return absorb.merge_query(nopes, up, torch.float64).T

        def of_output(up: Tensor, o: Tensor) -> Tensor:  # [hidden, H·C]
            return absorb.merge_output(up, o, torch.float64).T

        # W_UK and W_UV are rounded along what they sum over in a step: a head's channels
        up_k = rounded(w_uk.mT.flatten(0, 1)).reshape(heads, -1, nope).mT
        up_v = rounded(w_uv.flatten(0, 1)).reshape(w_uv.shape)
        wanted = of_query(q_b, w_uk)
        found = rounded(wanted), of_query(rounded(q_b), w_uk), of_query(rounded(q_b), up_k)
        yield Product(layer, "W_UQ·W_UK", *(_share(x, wanted) for x in found))
        wanted = of_output(w_uv, o_proj)
        found = rounded(wanted), of_output(w_uv, rounded(o_proj)), of_output(up_v, rounded(o_proj))
        yield Product(layer, "W_UV·W_O", *(_share(x, wanted) for x in found))


def _share(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())
