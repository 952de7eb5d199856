"""How each weight of the graph is made from the tensors of a checkpoint.

A recipe gives a weight in pieces along its first axis, so that a stack of experts is never in memory as
a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mla_export import absorb as absorption
from mla_graphs.geometry import Absorb, Geometry
from mla_graphs.rotary import rotary_tables

Read = Callable[[str], Tensor]


class Recipes:
    """Makes the weights of a geometry in one form of absorption; `read` gives a checkpoint tensor by name."""

    def __init__(self, geometry: Geometry, absorb: Absorb, dtype: torch.dtype, read: Read) -> None:
        self.geometry, self.absorb, self.dtype = geometry, absorb, dtype
        self._read = read
        layer: dict[str, Callable[[str], Iterator[Tensor]]] = {
            "attention_norm.weight": self._as_is("input_layernorm.weight"),
            "ffn_norm.weight": self._as_is("post_attention_layernorm.weight"),
            "attention.q_down.weight": self._transposed("self_attn.q_a_proj.weight"),
            "attention.q_down.bias": self._as_is("self_attn.q_a_proj.bias"),
            "attention.q_norm.weight": self._as_is("self_attn.q_a_layernorm.weight"),
            "attention.q_up.weight": self._q_up,
            "attention.kv_down.weight": self._kv_down,
            "attention.kv_down.bias": self._kv_down_bias,
            "attention.kv_norm.weight": self._as_is("self_attn.kv_a_layernorm.weight"),
            "attention.w_uk": lambda prefix: _one(self._kv_b(prefix)[0]),
            "attention.w_uv": lambda prefix: _one(self._kv_b(prefix)[1].transpose(1, 2)),
            "attention.k_up.weight": lambda prefix: _one(self._kv_b(prefix)[0].flatten(0, 1).T),
            "attention.v_up.weight": lambda prefix: _one(self._kv_b(prefix)[1].flatten(0, 1).T),
            "attention.o_proj.weight": self._o_proj,
            "attention.o_proj.bias": self._as_is("self_attn.o_proj.bias"),
            "moe.router.weight": self._transposed("mlp.gate.weight"),
            "moe.router.correction_bias": self._as_is("mlp.gate.e_score_correction_bias"),
            "moe.experts.gate_up": self._experts_gate_up,
            "moe.experts.down": self._experts_down,
        }
        for ours, theirs in (("mlp", "mlp"), ("moe.shared", "mlp.shared_experts")):
            layer[f"{ours}.gate_up.weight"] = self._gate_up(theirs)
            layer[f"{ours}.gate_up.bias"] = self._gate_up_bias(theirs)
            layer[f"{ours}.down.weight"] = self._transposed(f"{theirs}.down_proj.weight")
            layer[f"{ours}.down.bias"] = self._as_is(f"{theirs}.down_proj.bias")
        self._layer = layer

    def __call__(self, name: str) -> Iterator[Tensor]:
        """Give the pieces of the weight called `name` in the graph; KeyError for an unknown name."""
        if name.startswith("rotary."):
            g = self.geometry
            cos, sin = rotary_tables(g.rotary, g.qk_rope_head_dim, g.max_context)
            return _one(torch.from_numpy(cos if name == "rotary.cos" else sin))
        if name.startswith("layers."):
            _, index, within = name.split(".", 2)
            return self._layer[within](f"model.layers.{index}.")
        whole = {
            "embed.weight": "model.embed_tokens.weight",
            "head.norm.weight": "model.norm.weight",
            "head.weight": "lm_head.weight",
        }
        return _one(self._read(whole[name]))

    def _as_is(self, name: str) -> Callable[[str], Iterator[Tensor]]:
        return lambda prefix: _one(self._read(prefix + name))

    def _transposed(self, name: str) -> Callable[[str], Iterator[Tensor]]:
        return lambda prefix: _one(self._read(prefix + name).T)

    def _query(self, prefix: str) -> tuple[Tensor, Tensor]:
        g = self.geometry
        name = "q_proj" if g.q_lora_rank is None else "q_b_proj"
        q_b = self._read(f"{prefix}self_attn.{name}.weight")
        return absorption.split_query(
            q_b, g.num_attention_heads, g.qk_nope_head_dim, g.qk_rope_head_dim, g.rotary.interleaved
        )

    def _kv_b(self, prefix: str) -> tuple[Tensor, Tensor]:
        g = self.geometry
        kv_b = self._read(f"{prefix}self_attn.kv_b_proj.weight")
        return absorption.split_kv_b(kv_b, g.num_attention_heads, g.qk_nope_head_dim, g.v_head_dim)

    def _q_up(self, prefix: str) -> Iterator[Tensor]:
        nope, rope = self._query(prefix)
        if self.absorb == "merged":
            columns = absorption.merge_query(nope, self._kv_b(prefix)[0], self.dtype)
        else:
            columns = nope.flatten(0, 1).T.to(self.dtype)
        return _one(torch.cat((columns, rope.flatten(0, 1).T.to(self.dtype)), dim=1))

    def _o_proj(self, prefix: str) -> Iterator[Tensor]:
        o_proj = self._read(f"{prefix}self_attn.o_proj.weight")
        if self.absorb == "merged":
            return _one(absorption.merge_output(self._kv_b(prefix)[1], o_proj, self.dtype))
        return _one(o_proj.T)

    def _kv_down(self, prefix: str) -> Iterator[Tensor]:
        g = self.geometry
        kv_a = self._read(f"{prefix}self_attn.kv_a_proj_with_mqa.weight")
        return _one(absorption.reorder_kv_a(kv_a, g.kv_lora_rank, g.rotary.interleaved).T)

    def _kv_down_bias(self, prefix: str) -> Iterator[Tensor]:
        g = self.geometry
        kv_a = self._read(f"{prefix}self_attn.kv_a_proj_with_mqa.bias")
        return _one(absorption.reorder_kv_a(kv_a, g.kv_lora_rank, g.rotary.interleaved))

    def _gate_up(self, mlp: str) -> Callable[[str], Iterator[Tensor]]:
        return lambda prefix: _one(self._joined(f"{prefix}{mlp}", "weight").T)

    def _gate_up_bias(self, mlp: str) -> Callable[[str], Iterator[Tensor]]:
        return lambda prefix: _one(self._joined(f"{prefix}{mlp}", "bias"))

    def _joined(self, mlp: str, part: str) -> Tensor:
        return torch.cat([self._read(f"{mlp}.{name}_proj.{part}") for name in ("gate", "up")])

    def _experts_gate_up(self, prefix: str) -> Iterator[Tensor]:
        for expert in self._experts():
            yield self._joined(f"{prefix}mlp.experts.{expert}", "weight").T[None]

    def _experts_down(self, prefix: str) -> Iterator[Tensor]:
        for expert in self._experts():
            yield self._read(f"{prefix}mlp.experts.{expert}.down_proj.weight").T[None]

    def _experts(self) -> range:
        moe = self.geometry.moe
        return range(moe.n_routed_experts if moe else 0)


def _one(tensor: Tensor) -> Iterator[Tensor]:
    yield tensor
