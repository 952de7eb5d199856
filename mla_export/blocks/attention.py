"""Multi-head Latent Attention as a block, in its three forms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mla_export.blocks.basic import Linear, RMSNorm, emit, weight
from mla_export.plan import Plan
from mla_graphs.contract import BYTES
from mla_graphs.geometry import Phase, RowType


class Attention(nn.Module):
    """Multi-head Latent Attention (DeepSeek-V2, section 2.1) in one of its three forms.

    The rotary channels of the weights are in halves order whatever the checkpoint's is.
    """

    def __init__(self, plan: Plan, phase: Phase) -> None:
        super().__init__()
        g, absorb, dtype = plan.geometry, plan.absorb, plan.torch_dtype
        self.geometry, self.absorb, self.phase, self.cache = g, absorb, phase, plan.cache
        heads = g.num_attention_heads
        if g.q_lora_rank is None:
            self.q_down, self.q_norm = None, None
        else:
            self.q_down = Linear(
                "attention.q_down", g.hidden_size, g.q_lora_rank, dtype, bias=g.attention_bias
            )
            self.q_norm = RMSNorm("attention.q_norm", g.q_lora_rank, g.q_norm_eps, dtype)
        q_inputs = g.q_lora_rank or g.hidden_size
        kv_rows = g.kv_lora_rank + g.qk_rope_head_dim
        self.kv_down = Linear("attention.kv_down", g.hidden_size, kv_rows, dtype, bias=g.attention_bias)
        self.kv_norm = RMSNorm("attention.kv_norm", g.kv_lora_rank, g.kv_norm_eps, dtype)
        # Columns of q_up: all heads' nope (or absorbed) channels, then all heads' rotary channels.
        nope = g.kv_lora_rank if absorb == "merged" else g.qk_nope_head_dim
        self.nope = nope
        self.q_up = Linear("attention.q_up", q_inputs, heads * (nope + g.qk_rope_head_dim), dtype)
        if absorb == "factored":
            self.w_uk = weight(heads, g.qk_nope_head_dim, g.kv_lora_rank, dtype=dtype)
            self.w_uv = weight(heads, g.kv_lora_rank, g.v_head_dim, dtype=dtype)
        elif absorb == "expanded":
            self.k_up = Linear("attention.k_up", g.kv_lora_rank, heads * g.qk_nope_head_dim, dtype)
            self.v_up = Linear("attention.v_up", g.kv_lora_rank, heads * g.v_head_dim, dtype)
        o_inputs = g.kv_lora_rank if absorb == "merged" else g.v_head_dim
        self.o_proj = Linear(
            "attention.o_proj", heads * o_inputs, g.hidden_size, dtype, bias=g.attention_bias
        )

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, masks: Sequence[Tensor], past: Sequence[Tensor]
    ) -> list[Tensor]:
        """From x [B,S,hidden] give the output [B,S,hidden] and the new rows of this layer's cache tensors."""
        g = self.geometry
        heads = g.num_attention_heads
        b, s = x.shape[:2]
        q = x if self.q_down is None or self.q_norm is None else self.q_norm(self.q_down(x))
        q_nope, q_rope = self._split("q_split", self.q_up(q), heads * self.nope, heads * g.qk_rope_head_dim)
        q_nope = self._heads("q_nope", q_nope, self.nope)  # [B,H,S,P], or [B,H,S,C] when merged
        q_rope = self._rotate("q_rope", self._heads("q_rope_heads", q_rope, g.qk_rope_head_dim), cos, sin)
        latent, rope = self._split("kv_split", self.kv_down(x), g.kv_lora_rank, g.qk_rope_head_dim)
        latent = self.kv_norm(latent)  # [B,S,C]
        rope = self._rotate("k_rope", rope.unsqueeze(1), cos, sin).squeeze(1)  # [B,S,R]
        if self.absorb == "expanded":
            return self._expanded(q_nope, q_rope, latent, rope, masks, past)
        rows = [
            *self._stored("latent", self.cache.latent, latent),
            *self._stored("rope", self.cache.rope, rope),
        ]
        seen, scales = self._seen(past, rows)
        if self.absorb == "factored" and self.phase == "prompt":
            context = emit(
                "PromptAttention",
                (q_nope, q_rope, *seen, self.w_uk, self.w_uv, masks[0], *masks[2:], *scales),
                "attention",
                (x.dtype, (b, heads, s, g.v_head_dim)),
                scale=g.softmax_scale,
                heads=heads,
            )[0]
            return [self.o_proj(self._merge("heads_joined", context)), *rows]
        if self.absorb == "factored":
            q_nope = self._head_linear("absorb_k", q_nope, self.w_uk)  # [B,H,S,C]
        context = emit(
            "LatentAttention",
            (q_nope, q_rope, *seen, masks[0], *masks[2:], *scales),
            "attention",
            (x.dtype, (b, heads, s, g.kv_lora_rank)),
            scale=g.softmax_scale,
            heads=heads,
        )[0]
        if self.absorb == "factored":
            context = self._head_linear("absorb_v", context, self.w_uv)  # [B,H,S,D]
        return [self.o_proj(self._merge("heads_joined", context)), *rows]

    def _stored(self, name: str, dtype: RowType, rows: Tensor) -> list[Tensor]:
        """Give new rows [B,S,·] as the cache stores them: floats, or codes and scales [B,S]."""
        if dtype not in BYTES:
            return [rows]
        results = ((getattr(torch, dtype), rows.shape), (torch.float32, rows.shape[:2]))
        return emit("QuantizeRows", (rows,), f"attention.{name}_int8", *results)

    def _seen(self, past: Sequence[Tensor], new: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Sort rows as the operators take them: past latent, past rope, latent, rope; then the scales.

        New rows are attended to as they are stored, so that a prompt in pieces gives what the whole gives.
        """
        rope = 2 if self.cache.latent in BYTES else 1
        seen = [past[0], past[rope], new[0], new[rope]]
        of_latent = [past[1], new[1]] if self.cache.latent in BYTES else []
        of_rope = [past[3], new[3]] if self.cache.rope in BYTES else []
        return seen, [*of_latent, *of_rope]

    def _expanded(
        self,
        q_nope: Tensor,
        q_rope: Tensor,
        latent: Tensor,
        rope: Tensor,
        masks: Sequence[Tensor],
        past: Sequence[Tensor],
    ) -> list[Tensor]:
        g = self.geometry
        heads = g.num_attention_heads
        b, s = latent.shape[:2]
        shape = (b, s, heads, g.qk_head_dim)
        k_nope = self.k_up(latent)
        key = emit("HeadKeys", (k_nope, rope), "attention.key", (latent.dtype, shape), heads=heads)[0]
        shape = (b, s, heads, g.v_head_dim)
        value = emit("HeadRows", (self.v_up(latent),), "attention.value", (latent.dtype, shape), heads=heads)[
            0
        ]
        context = emit(
            "HeadAttention",
            (torch.cat((q_nope, q_rope), -1), *past, key, value, masks[0], masks[2]),
            "attention",
            (latent.dtype, (b, heads, s, g.v_head_dim)),
            scale=g.softmax_scale,
        )[0]
        return [self.o_proj(self._merge("heads_joined", context)), key, value]

    def _split(self, name: str, x: Tensor, first: int, second: int) -> list[Tensor]:
        shapes = [(x.dtype, (*x.shape[:-1], size)) for size in (first, second)]
        return emit("Split", (x,), f"attention.{name}", *shapes, sizes=[first, second])

    def _heads(self, name: str, x: Tensor, width: int) -> Tensor:
        b, s, total = x.shape
        heads = total // width
        shape = (b, heads, s, width)
        return emit("SplitHeads", (x,), f"attention.{name}", (x.dtype, shape), heads=heads)[0]

    def _merge(self, name: str, x: Tensor) -> Tensor:
        b, heads, s, width = x.shape
        shape = (b, s, heads * width)
        return emit("MergeHeads", (x,), f"attention.{name}", (x.dtype, shape), width=heads * width)[0]

    def _rotate(self, name: str, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return emit("Rotate", (x, cos, sin), f"attention.{name}", (x.dtype, x.shape))[0]

    def _head_linear(self, name: str, x: Tensor, weight: Tensor) -> Tensor:
        shape = (*x.shape[:-1], weight.shape[-1])
        return emit("HeadLinear", (x, weight), f"attention.{name}", (x.dtype, shape))[0]
