"""Absorption: kv_b_proj taken apart into W_UK and W_UV, and both merged into their neighbours.

Pure functions of tensors. Attention per head h, with c the latent row (DeepSeek-V2, section 2.1.2):
score = q_nope · (W_UK c) = (W_UKᵀ q_nope) · c, and output = W_UV (Σ p c).
Symbols as in `mla_graphs.geometry.Geometry`; weights come in as checkpoints store them, [out, in].
"""

from __future__ import annotations

import torch
from torch import Tensor


def split_kv_b(kv_b: Tensor, heads: int, nope: int, value: int) -> tuple[Tensor, Tensor]:
    """Take kv_b_proj [H·(P+D), C] apart into W_UK [H,P,C] and W_UV [H,D,C]."""
    per_head = kv_b.reshape(heads, nope + value, kv_b.shape[1])
    return per_head[:, :nope], per_head[:, nope:]


def halves_order(rope: int, interleaved: bool) -> Tensor:
    """Give the order that takes rotary channels to halves: pairs (x0,x1),(x2,x3)… to x0,x2,…,x1,x3,…."""
    order = torch.arange(rope)
    return torch.cat((order[0::2], order[1::2])) if interleaved else order


def split_query(q_b: Tensor, heads: int, nope: int, rope: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Take q_b_proj (or q_proj) [H·(P+R), in] apart into [H,P,in] and, in halves order, [H,R,in]."""
    per_head = q_b.reshape(heads, nope + rope, q_b.shape[1])
    return per_head[:, :nope], per_head[:, nope:][:, halves_order(rope, interleaved)]


def reorder_kv_a(kv_a: Tensor, latent: int, interleaved: bool) -> Tensor:
    """Bring the rotary rows of kv_a_proj_with_mqa [C+R, ...] (weight or bias) into halves order."""
    order = halves_order(kv_a.shape[0] - latent, interleaved)
    return torch.cat((kv_a[:latent], kv_a[latent:][order]))


def merge_query(q_nope: Tensor, w_uk: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply W_UQ into W_UK: [H,P,in] and [H,P,C] to [in, H·C], in float64, head by head."""
    heads, _, inputs = q_nope.shape
    merged = torch.empty(inputs, heads, w_uk.shape[2], dtype=dtype)
    for head in range(heads):
        merged[:, head] = q_nope[head].double().T @ w_uk[head].double()
    return merged.reshape(inputs, -1)


def merge_output(w_uv: Tensor, o_proj: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply W_UV into W_O: [H,D,C] and [hidden, H·D] to [H·C, hidden], in float64, head by head."""
    heads, value, latent = w_uv.shape
    outputs = o_proj.reshape(o_proj.shape[0], heads, value)
    merged = torch.empty(heads, latent, o_proj.shape[0], dtype=dtype)
    for head in range(heads):
        merged[head] = w_uv[head].double().T @ outputs[:, head].double().T
    return merged.reshape(heads * latent, -1)
