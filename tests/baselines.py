"""A small shape for the graphs that MLA is compared with, no two sizes of it alike, and all their cases."""

from __future__ import annotations

from mla_graphs import Rotary
from mla_graphs.baselines import KINDS, Shape

SHAPE = Shape(
    hidden_size=48,
    num_attention_heads=6,
    q_lora_rank=20,
    kv_lora_rank=32,
    qk_nope_head_dim=10,
    qk_rope_head_dim=8,
    v_head_dim=12,
    softmax_scale=0.3,
    q_norm_eps=1e-6,
    kv_norm_eps=1e-5,
    rotary=Rotary(theta=100.0, interleaved=True, scaling=None),
)
CASES = [
    *((kind, cache) for kind in KINDS for cache in ("float32", "int8")),
    ("mla", "int8 latent"),
]
