"""What a geometry costs: parameters, attention weights a token in each absorbed form, cache bytes a token.

Pure arithmetic on a `Geometry`; no file is read. Counts are elements unless a name says bytes.
Norm weights and biases are counted as parameters, but not as attention weights: they are a few
thousand elements beside millions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mla_graphs import Geometry

AttentionForm = Literal["factored", "merged_uk", "merged", "expanded"]
CacheForm = Literal["latent", "expanded"]
CacheFormat = Literal["float32", "float16", "int8"]

FORMS: tuple[AttentionForm, ...] = ("factored", "merged_uk", "merged", "expanded")
CACHE_FORMATS: tuple[CacheFormat, ...] = ("float32", "float16", "int8")
ITEM_BYTES = {"float32": 4, "float16": 2}
SCALE_BYTES = 4  # an int8 row carries one float32 scale a token


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of weights of a model.

    `active` is what one token is multiplied with: every layer, the shared and the chosen experts and
    the head, without the embedding table, of which a token reads one row.
    """

    total: int
    active: int
    embedding: int
    attention: int
    experts: int


def attention_elements(geometry: Geometry, form: AttentionForm) -> int:
    """Count the attention weights that one layer multiplies a token with.

    factored: W_UK and W_UV stand apart, as in the checkpoint (`expanded` multiplies the same weights).
    merged_uk: W_UQ·W_UK multiplied out to [query input, H·C]. merged: W_UV·W_O as well, to [H·C, hidden].
    """
    g = geometry
    heads = g.num_attention_heads
    query_input = g.hidden_size if g.q_lora_rank is None else g.q_lora_rank
    down = g.hidden_size * (g.kv_lora_rank + g.qk_rope_head_dim)
    if g.q_lora_rank is not None:
        down += g.hidden_size * g.q_lora_rank
    query_rope = query_input * heads * g.qk_rope_head_dim
    if form in ("factored", "expanded"):
        nope = heads * g.qk_nope_head_dim * (query_input + g.kv_lora_rank)
    else:
        nope = query_input * heads * g.kv_lora_rank
    if form == "merged":
        value = heads * g.kv_lora_rank * g.hidden_size
    else:
        value = heads * g.v_head_dim * (g.kv_lora_rank + g.hidden_size)
    return down + query_rope + nope + value


def cache_row_elements(geometry: Geometry, form: CacheForm) -> int:
    """Count what one layer keeps of one token: C + R, or H keys and H values."""
    g = geometry
    if form == "latent":
        return g.kv_lora_rank + g.qk_rope_head_dim
    return g.num_attention_heads * (g.qk_head_dim + g.v_head_dim)


def cache_token_bytes(geometry: Geometry, form: CacheForm, cache_format: CacheFormat) -> int:
    """Give the bytes that the whole model keeps of one token.

    int8: each tensor's row is 8-bit with one float32 scale a token; the shared rotary key of the
    latent form stays float16.
    """
    g = geometry
    if cache_format != "int8":
        row = cache_row_elements(g, form) * ITEM_BYTES[cache_format]
    elif form == "latent":
        row = g.kv_lora_rank + SCALE_BYTES + g.qk_rope_head_dim * ITEM_BYTES["float16"]
    else:
        row = cache_row_elements(g, form) + 2 * SCALE_BYTES
    return row * g.num_hidden_layers


def merge_break_even(geometry: Geometry, form: AttentionForm) -> int:
    """Give the context at which the latent rows that a step reads weigh as much as what `form` adds.

    Below that many tokens, merging reads more extra weights than it could save by reading no cache at all.
    """
    extra = attention_elements(geometry, form) - attention_elements(geometry, "factored")
    return extra // cache_row_elements(geometry, "latent")


def _attention_parameters(g: Geometry) -> int:
    norms = g.hidden_size + g.kv_lora_rank + (g.q_lora_rank or 0)
    biases = 0
    if g.attention_bias:
        biases = (g.q_lora_rank or 0) + g.kv_lora_rank + g.qk_rope_head_dim + g.hidden_size
    return attention_elements(g, "factored") + norms + biases


def _mlp_parameters(hidden: int, intermediate: int, bias: bool) -> int:
    return 3 * hidden * intermediate + (2 * intermediate + hidden if bias else 0)


def parameters(geometry: Geometry) -> Parameters:
    """Count the weights of a model; equal to the sum over the tensors that its family consumes."""
    g = geometry
    embedding = g.vocab_size * g.hidden_size
    head = 0 if g.tie_word_embeddings else embedding
    attention = _attention_parameters(g) * g.num_hidden_layers
    active_mlp = total_mlp = experts = 0
    for kind in g.layer_kinds:
        active_mlp += g.hidden_size  # the norm before the MLP
        total_mlp += g.hidden_size
        if kind == "dense" or g.moe is None:
            dense = _mlp_parameters(g.hidden_size, g.intermediate_size, g.mlp_bias)
            active_mlp += dense
            total_mlp += dense
            continue
        moe = g.moe
        expert = _mlp_parameters(g.hidden_size, moe.moe_intermediate_size, False)
        always = moe.n_routed_experts * (g.hidden_size + (1 if moe.correction_bias else 0))
        if moe.shared_intermediate_size:
            always += _mlp_parameters(g.hidden_size, moe.shared_intermediate_size, False)
        experts += moe.n_routed_experts * expert
        active_mlp += always + moe.num_experts_per_tok * expert
        total_mlp += always + moe.n_routed_experts * expert
    layers_and_norm = attention + g.hidden_size
    return Parameters(
        total=embedding + head + layers_and_norm + total_mlp,
        active=embedding + layers_and_norm + active_mlp,
        embedding=embedding,
        attention=attention,
        experts=experts,
    )
