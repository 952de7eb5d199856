"""Absorbed attention is unabsorbed attention: in float64 to 1e-24, by the export's own pure functions."""

from __future__ import annotations

import pytest
import torch

from mla_export import absorb
from tests.oracle import rotary_tables
from tests.parity.witness import CASES, Witness, nmse, token_ids

LENGTH = 40


def rotate_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def absorbed(w: Witness, x: torch.Tensor, merged: bool) -> torch.Tensor:
    """The first layer's attention [S, hidden] over latents [S, C]: keys and values are never rebuilt."""
    g = w.geometry
    t = {
        name.split("self_attn.")[1]: torch.from_numpy(v) for name, v in w.tensors.items() if ".0.self" in name
    }

    def linear(inputs: torch.Tensor, name: str) -> torch.Tensor:
        return inputs @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0.0)

    if g.q_lora_rank is None:
        c_q, q_b = x, t["q_proj.weight"]
    else:
        c_q = norm(linear(x, "q_a_proj"), t["q_a_layernorm.weight"], g.q_norm_eps)
        q_b = t["q_b_proj.weight"]
    sizes = (g.num_attention_heads, g.qk_nope_head_dim)
    w_uq, w_qr = absorb.split_query(q_b, *sizes, g.qk_rope_head_dim, g.rotary.interleaved)
    w_uk, w_uv = absorb.split_kv_b(t["kv_b_proj.weight"], *sizes, g.v_head_dim)

    kv_a = absorb.reorder_kv_a(t["kv_a_proj_with_mqa.weight"], g.kv_lora_rank, g.rotary.interleaved)
    down = x @ kv_a.T
    if g.attention_bias:
        bias = t["kv_a_proj_with_mqa.bias"]
        down = down + absorb.reorder_kv_a(bias, g.kv_lora_rank, g.rotary.interleaved)
    latent = norm(down[:, : g.kv_lora_rank], t["kv_a_layernorm.weight"], g.kv_norm_eps)  # [S, C]
    tables = rotary_tables(g.rotary, g.qk_rope_head_dim, torch.arange(len(x)).double().numpy())
    cos, sin = (torch.from_numpy(table) for table in tables)
    k_pe = rotate_halves(down[:, g.kv_lora_rank :], cos, sin)  # [S, R]
    q_pe = rotate_halves(torch.einsum("si,hri->hsr", c_q, w_qr), cos, sin)

    if merged:
        w_q = absorb.merge_query(w_uq, w_uk, torch.float64)
        q_latent = (c_q @ w_q).reshape(len(x), g.num_attention_heads, -1).transpose(0, 1)  # [H, S, C]
    else:
        q_latent = torch.einsum("si,hpi->hsp", c_q, w_uq) @ w_uk
    scores = (q_latent @ latent.T + q_pe @ k_pe.T) * g.softmax_scale
    future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    context = scores.masked_fill(future, -torch.inf).softmax(-1) @ latent  # [H, S, C]
    if merged:
        w_o = absorb.merge_output(w_uv, t["o_proj.weight"], torch.float64)
        out = context.transpose(0, 1).reshape(len(x), -1) @ w_o
        return out + (t["o_proj.bias"] if g.attention_bias else 0.0)
    values = context @ w_uv.transpose(1, 2)  # [H, S, D]
    return linear(values.transpose(0, 1).reshape(len(x), -1), "o_proj")


def unabsorbed(w: Witness, x: torch.Tensor) -> torch.Tensor:
    positions = torch.arange(len(x)).double().numpy()
    cos, sin = rotary_tables(w.geometry.rotary, w.geometry.qk_rope_head_dim, positions)
    return torch.from_numpy(w.oracle._attention(x.numpy(), "model.layers.0.self_attn", cos, sin)[0])


def first_inputs(w: Witness) -> torch.Tensor:
    embedding = torch.from_numpy(w.tensors["model.embed_tokens.weight"])
    return norm(embedding[token_ids(len(embedding), LENGTH)], torch.ones(embedding.shape[1]).double(), 1e-6)


@pytest.mark.parametrize("merged", [False, True], ids=["factored", "merged"])
@pytest.mark.parametrize("case", CASES)
def test_absorbed_is_unabsorbed_in_float64(witness, case, merged):
    w = witness(case)
    x = first_inputs(w)
    assert nmse(absorbed(w, x, merged).numpy(), unabsorbed(w, x).numpy()) <= 1e-24


def test_a_wrong_order_of_the_rotary_channels_is_seen(witness, monkeypatch):
    w = witness("deepseek_v3")
    x = first_inputs(w)
    monkeypatch.setattr(absorb, "halves_order", lambda rope, interleaved: torch.arange(rope))
    assert nmse(absorbed(w, x, False).numpy(), unabsorbed(w, x).numpy()) > 1e-6
