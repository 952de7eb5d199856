"""What a device has to hold, and the longest context for which it does. Pure arithmetic on a `Geometry`."""

from __future__ import annotations

from mla_export.devices import Device
from mla_export.weight_bytes import Formats, cache_token_bytes, item_bytes, weight_bytes
from mla_graphs import Geometry


def workspace_bytes(geometry: Geometry, formats: Formats, batch: int, context: int, chunk: int) -> int:
    """Give what the graphs keep beside weights and cache while the last chunk of `context` tokens runs.

    With S = min(chunk, context) queries, T = context, F bytes a float and W the widest of a token's vectors:
    hidden states and one layer's vectors B·S·(2·hidden + 3·W)·F, scores and probabilities in float32
    8·B·H·S·T, keys and values of all heads B·H·(P+R+D)·T·F where they are rebuilt or transposed, logits
    4·B·V.
    A fused attention kernel keeps neither scores nor keys.
    """
    g = geometry
    heads, queries, item = batch * g.num_attention_heads, min(chunk, context), item_bytes(formats.floats)
    vectors = batch * queries * (2 * g.hidden_size + 3 * _widest(g, formats)) * item
    scores = 8 * heads * queries * context
    rebuilds = formats.absorb == "expanded" or (formats.absorb == "factored" and _rebuilds(g, queries))
    keys = heads * (g.qk_head_dim + g.v_head_dim) * context * item if rebuilds else 0
    return vectors + scores + keys + 4 * batch * g.vocab_size


def _rebuilds(g: Geometry, queries: int) -> bool:
    """Whether the prompt graph rebuilds keys and values for a chunk of so many queries."""
    head, latent = g.qk_nope_head_dim + g.v_head_dim, g.kv_lora_rank
    return 2 * latent > head and queries >= latent * head // (2 * latent - head)


def _widest(g: Geometry, formats: Formats) -> int:
    nope = g.kv_lora_rank if formats.absorb == "merged" else g.qk_nope_head_dim
    widths = [g.num_attention_heads * (nope + g.qk_rope_head_dim)]
    if "dense" in g.layer_kinds or g.moe is None:
        widths.append(g.intermediate_size)
    if g.moe is not None:
        widths += [g.moe.num_experts_per_tok * g.moe.moe_intermediate_size, g.moe.shared_intermediate_size]
    return max(widths)


def needed_bytes(geometry: Geometry, formats: Formats, batch: int, context: int, chunk: int) -> int:
    """Give what a device has to hold: weights, the cache of `context` tokens a sequence, and workspace."""
    cache = batch * context * cache_token_bytes(geometry, formats)
    return weight_bytes(geometry, formats) + cache + workspace_bytes(geometry, formats, batch, context, chunk)


def longest_context(geometry: Geometry, formats: Formats, device: Device, batch: int, chunk: int) -> int:
    """Give the longest context that fits the device, at most the model's own; 0 where none does."""
    low, high = 0, geometry.max_context
    while low < high:
        middle = (low + high + 1) // 2
        if needed_bytes(geometry, formats, batch, middle, chunk) <= device.usable:
            low = middle
        else:
            high = middle - 1
    return low
