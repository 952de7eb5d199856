"""Geometry: every dimension and quirk of a model that shapes a graph.

Nothing here has a default. A family (`mla_export.families`) reads each value from the model's own
configuration, so that a missing key is an error there instead of a wrong graph here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LayerKind = Literal["dense", "moe"]
Absorb = Literal["factored", "merged", "expanded"]
Phase = Literal["step", "prompt"]
Float = Literal["float32", "float16"]
RowType = Literal["float32", "float16", "int8", "uint8"]


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Position interpolation: positions are divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class Yarn:
    """YaRN (Peng et al. 2023, section 3.4), as the checkpoints of the DeepSeek line use it.

    `attention_factor` multiplies cos and sin. The softmax scale's own mscale² is part of
    `Geometry.softmax_scale`; the two must not be mistaken for each other.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool


@dataclass(frozen=True, slots=True)
class LongRope:
    """LongRoPE with the factors of one context length, chosen at export (Ding et al. 2024).

    `factors` has `qk_rope_head_dim / 2` divisors of the inverse frequencies.
    """

    factors: tuple[float, ...]
    attention_factor: float


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary embedding of the `qk_rope_head_dim` shared channels.

    `interleaved` says how the checkpoint stores the rotated pairs: (x0, x1), (x2, x3), … when true,
    (x0, x[R/2]), … when false. Graphs always rotate halves; the export reorders the weights.
    """

    theta: float
    interleaved: bool
    scaling: Yarn | LongRope | LinearScaling | None


@dataclass(frozen=True, slots=True)
class Moe:
    """Routed experts (DeepSeekMoE) and their gate.

    `group_score` says how a group of experts is ranked where routing is limited to `topk_group` of
    `n_group` groups: by its best expert (V2) or by the sum of its two best (V3). None: no groups.
    `correction_bias` is V3's `e_score_correction_bias`: it chooses experts but does not weigh them.
    """

    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_intermediate_size: int
    scoring: Literal["softmax", "sigmoid"]
    correction_bias: bool
    group_score: Literal["max", "top2"] | None
    n_group: int
    topk_group: int
    norm_topk_prob: bool
    routed_scaling_factor: float


@dataclass(frozen=True, slots=True)
class Geometry:
    """A model with Multi-head Latent Attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Symbols: H heads, C = kv_lora_rank, R = qk_rope_head_dim, P = qk_nope_head_dim, D = v_head_dim,
    Q = q_lora_rank (None: queries come straight from the hidden state), V = vocab_size, L layers.

    `softmax_scale` is complete: mscale² / sqrt(P + R) where YaRN asks for it.
    `embedding_scale`, `residual_scale` and `logit_scale` multiply the embedding, each block's
    contribution to the residual stream, and the hidden state before the head (1.0: absent).
    """

    family: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    intermediate_size: int
    layer_kinds: tuple[LayerKind, ...]
    moe: Moe | None
    rms_norm_eps: float
    q_norm_eps: float
    kv_norm_eps: float
    rotary: Rotary
    softmax_scale: float
    max_context: int
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    embedding_scale: float
    residual_scale: float
    logit_scale: float

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head when not absorbed: P + R."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim
