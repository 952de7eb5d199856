"""The yardstick: Multi-head Latent Attention in plain NumPy float64, from the papers' equations.

Attention is DeepSeek-V2 (arXiv 2405.04434), section 2.1 and its full formulas in appendix C, UNabsorbed:
keys and values are rebuilt from the latent for every head. Gating is section 2.2 of that paper (softmax,
limited to groups) and section 2.1.2 of DeepSeek-V3 (arXiv 2412.19437; sigmoid, correction bias, normalised
weights). Rotary tables are YaRN (arXiv 2309.00071, section 3.2, "NTK-by-parts") and LongRoPE (arXiv
2402.13753). Nothing is shared with the code under test but `Geometry`, the list of dimensions.

Written to be read: one sequence, no batch, no cache. S tokens, other symbols as in `Geometry`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mla_graphs.geometry import Geometry, LinearScaling, LongRope, Moe, Rotary, Yarn

Array = NDArray[np.float64]
QUERY_BLOCK = 256  # rows of the score matrix held at once, so that 16k tokens fit


@dataclass(frozen=True)
class Trace:
    """All that a model computes on the way to its logits."""

    logits: Array  # [S, V]
    latent: list[Array]  # a layer: [S, C], after the latent norm
    rope: list[Array]  # a layer: [S, R], rotated, halves order
    blocks: list[Array]  # a layer: [S, H], the residual stream after the block
    routing: Array  # [L, S]: by how much the gate's choice was made; inf in a dense layer

    @property
    def margin(self) -> Array:
        """The closest that any gate came to another choice, a token: [S]."""
        return self.routing.min(axis=0)


def inverse_frequencies(rotary: Rotary, width: int) -> Array:
    """Angle a position of each of the width/2 rotated pairs."""
    exponent = np.arange(0, width, 2, dtype=np.float64) / width
    plain = rotary.theta**-exponent
    match rotary.scaling:
        case None:
            return plain
        case LinearScaling(factor=factor):
            return plain / factor
        case LongRope(factors=factors):
            return plain / np.asarray(factors, dtype=np.float64)
        case Yarn() as yarn:
            return yarn_frequencies(yarn, plain, rotary.theta, width)


def yarn_frequencies(yarn: Yarn, plain: Array, theta: float, width: int) -> Array:
    """Slow pairs are interpolated, fast ones kept, and a linear ramp joins the two."""

    def pair_with(rotations: float) -> float:
        """The (fractional) pair that turns `rotations` times over the original context."""
        turns = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return width * math.log(turns) / (2 * math.log(theta))

    low, high = pair_with(yarn.beta_fast), pair_with(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high += 0.001 if low == high else 0.0  # the reference implementation's guard
    interpolated = np.clip((np.arange(width // 2) - low) / (high - low), 0.0, 1.0)
    return plain * (1.0 - interpolated) + plain / yarn.factor * interpolated


def rotary_tables(rotary: Rotary, width: int, positions: Array) -> tuple[Array, Array]:
    """Cosines and sines [S, width/2], multiplied by the scaling's attention factor."""
    angles = np.outer(positions, inverse_frequencies(rotary, width))
    factor = rotary.scaling.attention_factor if isinstance(rotary.scaling, Yarn | LongRope) else 1.0
    return np.cos(angles) * factor, np.sin(angles) * factor


def rotate(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """Rotate the pairs of x [..., R] and give them in halves order, whichever way they were stored."""
    half = x.shape[-1] // 2
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def silu(x: Array) -> Array:
    return x * (0.5 * (1.0 + np.tanh(0.5 * x)))  # x · sigmoid(x) that cannot overflow


def causal_attention(q: Array, k: Array, v: Array, scale: float) -> Array:
    """Attend over what came before: q, k [S, N, P+R], v [S, N, D] -> [S, N, D], N heads."""
    out = np.empty(v.shape)
    for head in range(q.shape[1]):
        for start in range(0, len(q), QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, len(q))
            scores = q[start:stop, head] @ k[:stop, head].T * scale
            future = np.arange(stop) > np.arange(start, stop)[:, None]
            out[start:stop, head] = softmax(np.where(future, -np.inf, scores)) @ v[:stop, head]
    return out


def _top(scores: Array, count: int) -> tuple[NDArray[np.intp], Array]:
    """Indices of the `count` largest of each row (ties: the lowest index) and the gap to the next one."""
    order = np.argsort(-scores, axis=-1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=-1)
    gap = ranked[:, count - 1] - ranked[:, count] if count < scores.shape[1] else np.full(len(scores), np.inf)
    return order[:, :count], gap


def gate(logits: Array, moe: Moe, correction: Array | None) -> tuple[NDArray[np.intp], Array, Array]:
    """Choose experts from router logits [S, E]: indices [S, k], their weights [S, k], margin [S]."""
    affinity = softmax(logits) if moe.scoring == "softmax" else 1.0 / (1.0 + np.exp(-logits))
    choice = affinity if correction is None else affinity + correction
    margin = np.full(len(logits), np.inf)
    if moe.group_score is not None:
        grouped = choice.reshape(len(choice), moe.n_group, -1)
        best = np.sort(grouped, axis=-1)
        score = best[..., -1] if moe.group_score == "max" else best[..., -2:].sum(axis=-1)
        groups, margin = _top(score, moe.topk_group)
        allowed = np.zeros(score.shape, dtype=bool)
        np.put_along_axis(allowed, groups, True, axis=-1)
        choice = np.where(allowed[..., None], grouped, -np.inf).reshape(choice.shape)
    chosen, gap = _top(choice, moe.num_experts_per_tok)
    weights = np.take_along_axis(affinity, chosen, axis=-1)
    if moe.norm_topk_prob:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    return chosen, weights * moe.routed_scaling_factor, np.minimum(margin, gap)


def int8_rows(rows: Array) -> Array:
    """Round each row [S, ·] to 255 levels around zero, as far as its largest magnitude."""
    scale = np.abs(rows).max(axis=-1, keepdims=True) / 127
    return np.rint(rows / np.where(scale == 0, 1, scale)) * scale


class Oracle:
    """A model as its papers write it. `tensors` are the checkpoint's, under their Hugging Face names.

    `int8` names what is rounded as an INT8 cache rounds it: "latent", "rope".
    """

    def __init__(
        self, geometry: Geometry, tensors: Mapping[str, NDArray[np.floating]], int8: Collection[str] = ()
    ):
        self.geometry = geometry
        self.tensors = tensors
        self.int8 = int8

    def _tensor(self, name: str) -> Array:
        return np.asarray(self.tensors[name], dtype=np.float64)

    def _linear(self, x: Array, name: str, bias: bool = False) -> Array:
        y = x @ self._tensor(f"{name}.weight").T
        return y + self._tensor(f"{name}.bias") if bias else y

    def _mlp(self, x: Array, name: str, bias: bool = False) -> Array:
        gated = silu(self._linear(x, f"{name}.gate_proj", bias)) * self._linear(x, f"{name}.up_proj", bias)
        return self._linear(gated, f"{name}.down_proj", bias)

    def _attention(self, x: Array, name: str, cos: Array, sin: Array) -> tuple[Array, Array, Array]:
        """Give the contribution [S, H] and the rows it would cache: latent [S, C], rope [S, R]."""
        g, s = self.geometry, len(x)
        if g.q_lora_rank is None:
            q = self._linear(x, f"{name}.q_proj")
        else:
            c_q = self._linear(x, f"{name}.q_a_proj", g.attention_bias)  # [S, Q]
            c_q = rms_norm(c_q, self._tensor(f"{name}.q_a_layernorm.weight"), g.q_norm_eps)
            q = self._linear(c_q, f"{name}.q_b_proj")
        q = q.reshape(s, g.num_attention_heads, g.qk_head_dim)
        q_nope, q_pe = np.split(q, [g.qk_nope_head_dim], axis=-1)

        down = self._linear(x, f"{name}.kv_a_proj_with_mqa", g.attention_bias)
        c_kv, k_pe = np.split(down, [g.kv_lora_rank], axis=-1)
        c_kv = rms_norm(c_kv, self._tensor(f"{name}.kv_a_layernorm.weight"), g.kv_norm_eps)
        c_kv = int8_rows(c_kv) if "latent" in self.int8 else c_kv
        kv = self._linear(c_kv, f"{name}.kv_b_proj").reshape(s, g.num_attention_heads, -1)
        k_nope, v = np.split(kv, [g.qk_nope_head_dim], axis=-1)

        interleaved = g.rotary.interleaved
        k_pe = rotate(k_pe, cos, sin, interleaved)  # one for all heads
        k_pe = int8_rows(k_pe) if "rope" in self.int8 else k_pe
        q_pe = rotate(q_pe, cos[:, None], sin[:, None], interleaved)
        shared = np.broadcast_to(k_pe[:, None], (s, g.num_attention_heads, g.qk_rope_head_dim))
        q, k = np.concatenate([q_nope, q_pe], axis=-1), np.concatenate([k_nope, shared], axis=-1)
        out = causal_attention(q, k, v, g.softmax_scale).reshape(s, -1)
        return self._linear(out, f"{name}.o_proj", g.attention_bias), c_kv, k_pe

    def _experts(self, x: Array, name: str, moe: Moe) -> tuple[Array, Array]:
        """Routed and shared experts: contribution [S, H] and the gate's margin [S]."""
        correction = self._tensor(f"{name}.gate.e_score_correction_bias") if moe.correction_bias else None
        chosen, weights, margin = gate(self._linear(x, f"{name}.gate"), moe, correction)
        out = (
            self._mlp(x, f"{name}.shared_experts", self.geometry.mlp_bias)
            if moe.shared_intermediate_size
            else 0.0
        )
        out = out + np.zeros(x.shape)
        for expert in range(moe.n_routed_experts):
            tokens, rank = np.nonzero(chosen == expert)
            if len(tokens):
                out[tokens] += weights[tokens, rank, None] * self._mlp(x[tokens], f"{name}.experts.{expert}")
        return out, margin

    def __call__(self, ids: Sequence[int], first_position: int = 0) -> Trace:
        """Run the decoder on token ids, the first of them at `first_position`."""
        g = self.geometry
        positions = np.arange(first_position, first_position + len(ids), dtype=np.float64)
        cos, sin = rotary_tables(g.rotary, g.qk_rope_head_dim, positions)
        h = self._tensor("model.embed_tokens.weight")[list(ids)] * g.embedding_scale
        latents, ropes, blocks = [], [], []
        routing = np.full((g.num_hidden_layers, len(ids)), np.inf)
        for layer, kind in enumerate(g.layer_kinds):
            name = f"model.layers.{layer}"
            x = rms_norm(h, self._tensor(f"{name}.input_layernorm.weight"), g.rms_norm_eps)
            attended, latent, rope = self._attention(x, f"{name}.self_attn", cos, sin)
            h = h + attended * g.residual_scale
            x = rms_norm(h, self._tensor(f"{name}.post_attention_layernorm.weight"), g.rms_norm_eps)
            if kind == "moe":
                assert g.moe is not None
                fed, routing[layer] = self._experts(x, f"{name}.mlp", g.moe)
            else:
                fed = self._mlp(x, f"{name}.mlp", g.mlp_bias)
            h = h + fed * g.residual_scale
            latents.append(latent)
            ropes.append(rope)
            blocks.append(h)
        h = rms_norm(h, self._tensor("model.norm.weight"), g.rms_norm_eps) * g.logit_scale
        head = "model.embed_tokens" if g.tie_word_embeddings else "lm_head"
        return Trace(self._linear(h, head), latents, ropes, blocks, routing)
