"""Names and shapes of the tensors of a checkpoint, the same in all supported families.

They are those of the published checkpoints and of transformers' classes: one matrix an expert, linear
weights as [out, in].
"""

from __future__ import annotations

from collections.abc import Iterator

from mla_graphs.geometry import Geometry, Moe

Shape = tuple[int, ...]


def tensor_shapes(geometry: Geometry) -> dict[str, Shape]:
    """Give every tensor of a model with this geometry: name -> shape."""
    g = geometry
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (g.vocab_size, g.hidden_size)}
    for i, kind in enumerate(g.layer_kinds):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (g.hidden_size,)
        shapes.update((f"{layer}.self_attn.{name}", shape) for name, shape in _attention(g))
        shapes[f"{layer}.post_attention_layernorm.weight"] = (g.hidden_size,)
        if kind == "moe" and g.moe is not None:
            shapes.update((f"{layer}.mlp.{name}", shape) for name, shape in _experts(g.hidden_size, g.moe))
        else:
            mlp = _mlp(g.hidden_size, g.intermediate_size, g.mlp_bias)
            shapes.update((f"{layer}.mlp.{name}", shape) for name, shape in mlp)
    shapes["model.norm.weight"] = (g.hidden_size,)
    if not g.tie_word_embeddings:
        shapes["lm_head.weight"] = (g.vocab_size, g.hidden_size)
    return shapes


def _attention(g: Geometry) -> Iterator[tuple[str, Shape]]:
    # attention_bias is for the projections that touch the hidden state, but never for q_proj.
    queries = g.num_attention_heads * g.qk_head_dim
    if g.q_lora_rank is None:
        yield "q_proj.weight", (queries, g.hidden_size)
    else:
        yield from _linear("q_a_proj", g.q_lora_rank, g.hidden_size, g.attention_bias)
        yield "q_a_layernorm.weight", (g.q_lora_rank,)
        yield "q_b_proj.weight", (queries, g.q_lora_rank)
    latent = g.kv_lora_rank + g.qk_rope_head_dim
    yield from _linear("kv_a_proj_with_mqa", latent, g.hidden_size, g.attention_bias)
    yield "kv_a_layernorm.weight", (g.kv_lora_rank,)
    expanded = g.num_attention_heads * (g.qk_nope_head_dim + g.v_head_dim)
    yield "kv_b_proj.weight", (expanded, g.kv_lora_rank)
    values = g.num_attention_heads * g.v_head_dim
    yield from _linear("o_proj", g.hidden_size, values, g.attention_bias)


def _experts(hidden: int, moe: Moe) -> Iterator[tuple[str, Shape]]:
    yield "gate.weight", (moe.n_routed_experts, hidden)
    if moe.correction_bias:
        yield "gate.e_score_correction_bias", (moe.n_routed_experts,)
    for j in range(moe.n_routed_experts):
        for name, shape in _mlp(hidden, moe.moe_intermediate_size, bias=False):
            yield f"experts.{j}.{name}", shape
    for name, shape in _mlp(hidden, moe.shared_intermediate_size, bias=False):
        yield f"shared_experts.{name}", shape


def _mlp(hidden: int, width: int, bias: bool) -> Iterator[tuple[str, Shape]]:
    yield from _linear("gate_proj", width, hidden, bias)
    yield from _linear("up_proj", width, hidden, bias)
    yield from _linear("down_proj", hidden, width, bias)


def _linear(name: str, out: int, inputs: int, bias: bool) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (out, inputs)
    if bias:
        yield f"{name}.bias", (out,)
