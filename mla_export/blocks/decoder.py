"""The blocks that are traced: what comes before the layers, a layer, and the head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mla_export.blocks.attention import Attention
from mla_export.blocks.basic import RMSNorm, emit, weight
from mla_export.blocks.feed_forward import MixtureOfExperts, SwiGLU
from mla_export.plan import Plan
from mla_graphs.geometry import Geometry, LayerKind, Phase


class Table(nn.Module):
    """A table of rows looked up by id: embedding, or the head's."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = weight(rows, width, dtype=dtype)


class RotaryTables(nn.Module):
    """cos and sin of every position and frequency, float32 [max_context, R/2]."""

    def __init__(self, positions: int, half: int) -> None:
        super().__init__()
        self.cos = weight(positions, half, dtype=torch.float32)
        self.sin = weight(positions, half, dtype=torch.float32)


class Prelude(nn.Module):
    """What all layers share: embedding, rotary rows, what each query sees."""

    def __init__(self, geometry: Geometry, dtype: torch.dtype) -> None:
        super().__init__()
        g = geometry
        self.geometry = g
        self.embed = Table(g.vocab_size, g.hidden_size, dtype)
        self.rotary = RotaryTables(g.max_context, g.qk_rope_head_dim // 2)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, past_lengths: Tensor, new_lengths: Tensor, past: Tensor
    ) -> list[Tensor]:
        """Give hidden [B,S,hidden], cos, sin, visible, counts, split, fold, unfold."""
        g = self.geometry
        b, s = input_ids.shape
        t = past.shape[1]
        half = g.qk_rope_head_dim // 2
        table = self.embed.weight
        hidden = emit(
            "Embed",
            (input_ids, table),
            "embed",
            (table.dtype, (b, s, g.hidden_size)),
            scale=g.embedding_scale,
        )
        rows = (torch.float32, (b, 1, s, half))
        rotary = emit(
            "RotaryRows", (position_ids, self.rotary.cos, self.rotary.sin), "rotary_rows", rows, rows
        )
        masks = emit(
            "Visibility",
            (input_ids, past_lengths, new_lengths, past),
            "visibility",
            (torch.bool, (b, 1, s, t + s)),
            (torch.bool, (b * s,)),
            (torch.int64, (1,)),
            (torch.int64, (3,)),
            (torch.int64, (4,)),
            heads=g.num_attention_heads,
        )
        return [*hidden, *rotary, *masks]


class DecoderLayer(nn.Module):
    """One layer: attention and a feed-forward network, each after its norm, each added to the residual."""

    def __init__(self, plan: Plan, kind: LayerKind, phase: Phase) -> None:
        super().__init__()
        g, dtype = plan.geometry, plan.torch_dtype
        self.scale = g.residual_scale
        self.attention_norm = RMSNorm("attention_norm", g.hidden_size, g.rms_norm_eps, dtype)
        self.attention = Attention(plan, phase)
        self.ffn_norm = RMSNorm("ffn_norm", g.hidden_size, g.rms_norm_eps, dtype)
        self.mlp = (
            SwiGLU("mlp", g.hidden_size, g.intermediate_size, dtype, g.mlp_bias) if kind == "dense" else None
        )
        self.moe = MixtureOfExperts(g, g.moe, dtype) if kind == "moe" and g.moe else None

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, *rest: Tensor) -> list[Tensor]:
        """From hidden [B,S,hidden] give the next hidden and the new rows of each cache tensor.

        `rest` is what `Visibility` gives, then this layer's cache tensors.
        """
        masks, past = rest[:5], rest[5:]
        attended, *rows = self.attention(self.attention_norm(hidden), cos, sin, masks, past)
        hidden = self._add("attention_residual", hidden, attended)
        x = self.ffn_norm(hidden)
        if self.moe is not None:
            x = self.moe(x, masks[1])
        elif self.mlp is not None:
            x = self.mlp(x)
        return [self._add("ffn_residual", hidden, x), *rows]

    def _add(self, name: str, hidden: Tensor, branch: Tensor) -> Tensor:
        return emit("Residual", (hidden, branch), name, (hidden.dtype, hidden.shape), scale=self.scale)[0]


class Head(nn.Module):
    """The rows asked for, the last norm, and the logits; a tied head reads the embedding's table."""

    def __init__(self, geometry: Geometry, dtype: torch.dtype) -> None:
        super().__init__()
        g = geometry
        self.scale = g.logit_scale
        self.norm = RMSNorm("norm", g.hidden_size, g.rms_norm_eps, dtype)
        self.weight = weight(g.vocab_size, g.hidden_size, dtype=dtype)

    def forward(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """From hidden [B,S,hidden] and row numbers [N] give float32 logits [N,V]."""
        n, width = rows.shape[0], hidden.shape[-1]
        chosen = emit("SelectRows", (hidden, rows), "rows", (hidden.dtype, (n, width)), width=width)[0]
        shape = (n, self.weight.shape[0])
        x = self.norm(chosen)
        return emit("Logits", (x, self.weight), "logits", (torch.float32, shape), scale=self.scale)[0]
