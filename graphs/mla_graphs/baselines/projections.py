"""What stands around the core: from hidden states to queries and new rows, and back.

MLA's are those of a bundle's step in the factored form, by the same operators.
"""

from __future__ import annotations

import onnx_ir as ir

from mla_graphs.baselines.shape import Attention
from mla_graphs.baselines.writer import Writer
from mla_graphs.contract import Dim

Values = dict[str, ir.Value]


def incoming(w: Writer, attention: Attention, hidden: ir.Value, positions: ir.Value) -> Values:
    """Give what `mla_graphs.baselines.queries` lists, from hidden [B,S,hidden] and positions [B,S]."""
    half = attention.shape.qk_rope_head_dim // 2
    tables = [w.weight(f"rotary.{name}", "positions", half) for name in ("cos", "sin")]
    row = (ir.DataType.FLOAT, ("B", 1, "S", half))
    turn = w.ops("RotaryRows", [positions, *tables], [row, row], "rotary_rows")
    if attention.kind in ("mha", "gqa", "mqa"):
        return _grouped(w, attention, hidden, positions, turn)
    return _latent(w, attention, hidden, positions, turn)


def outgoing(w: Writer, attention: Attention, context: ir.Value) -> ir.Value:
    """Give output [B,S,hidden] from the context of all heads [B,H,S,·]."""
    s = attention.shape
    heads, value, width = s.num_attention_heads, s.v_head_dim, s.num_attention_heads * s.v_head_dim
    if attention.kind == "mla":
        w_uv = w.weight("attention.w_uv", heads, s.kv_lora_rank, value)
        context = w.op("HeadLinear", [context, w_uv], ("B", heads, "S", value), "absorb_v")
    joined = w.op("MergeHeads", [context], ("B", "S", width), "heads_joined", width=width)
    return _linear(w, joined, "o_proj", width, s.hidden_size)


def _grouped(
    w: Writer, attention: Attention, hidden: ir.Value, positions: ir.Value, turn: list[ir.Value]
) -> Values:
    """Give queries of H heads, keys and values of G; queries and keys have their last R channels rotated."""
    s, size = attention.shape, attention.key_dim
    sizes = (size - s.qk_rope_head_dim, s.qk_rope_head_dim)

    def heads_of(name: str, heads: int) -> ir.Value:  # [B,heads,S,d_h]
        flat = _linear(w, hidden, f"{name}_proj", s.hidden_size, heads * size)
        return _heads(w, flat, heads, size, f"{name}_heads")

    def rotated(name: str, heads: int) -> ir.Value:
        x = heads_of(name, heads)
        if not sizes[0]:
            return _rotate(w, x, heads, sizes[1], turn, f"{name}_rope")
        nope, rope = _split(w, x, ("B", heads, "S"), sizes, f"{name}_split")
        rope = _rotate(w, rope, heads, sizes[1], turn, f"{name}_rope")
        return w.onnx("Concat", [nope, rope], ("B", heads, "S", size), name, axis=3)

    groups = attention.groups
    key, value = rotated("k", groups), heads_of("v", groups)
    rows = _sequences(w, attention, {"key": key, "value": value}, positions)
    return {"query": rotated("q", s.num_attention_heads), **rows}


def _latent(
    w: Writer, attention: Attention, hidden: ir.Value, positions: ir.Value, turn: list[ir.Value]
) -> Values:
    """MLA (arXiv 2405.04434, section 2.1): absorbed queries and latent rows, or keys and values a head."""
    s = attention.shape
    heads, nope, rope = s.num_attention_heads, s.qk_nope_head_dim, s.qk_rope_head_dim
    latents = s.kv_lora_rank
    q, inputs = hidden, s.hidden_size
    if s.q_lora_rank is not None:
        inputs = s.q_lora_rank
        q = _norm(w, _linear(w, hidden, "q_down", s.hidden_size, inputs), "q_norm", inputs, s.q_norm_eps)
    q = _linear(w, q, "q_up", inputs, heads * (nope + rope))
    q_nope, q_rope = _split(w, q, ("B", "S"), (heads * nope, heads * rope), "q_split")
    q_nope = _heads(w, q_nope, heads, nope, "q_nope")
    q_rope = _rotate(w, _heads(w, q_rope, heads, rope, "q_rope_heads"), heads, rope, turn, "q_rope")
    down = _linear(w, hidden, "kv_down", s.hidden_size, latents + rope)
    latent, k_rope = _split(w, down, ("B", "S"), (latents, rope), "kv_split")
    latent = _norm(w, latent, "kv_norm", latents, s.kv_norm_eps)
    k_rope = _rotate(w, _heads(w, k_rope, 1, rope, "k_rope_head"), 1, rope, turn, "k_rope")  # [B,1,S,R]
    if attention.kind == "mla":
        w_uk = w.weight("attention.w_uk", heads, nope, latents)
        q_latent = w.op("HeadLinear", [q_nope, w_uk], ("B", heads, "S", latents), "absorb_k")
        k_rope = w.onnx("Squeeze", [k_rope, w.ints(1)], ("B", "S", rope), "k_rope_rows")
        return {"q_latent": q_latent, "q_rope": q_rope, "latent": latent, "rope": k_rope}
    key = _heads(w, _linear(w, latent, "k_up", latents, heads * nope), heads, nope, "k_nope")
    shared = w.onnx("Expand", [k_rope, w.ints(1, heads, 1, 1)], ("B", heads, "S", rope), "k_rope_heads")
    full = ("B", heads, "S", nope + rope)
    key = w.onnx("Concat", [key, shared], full, "key", axis=3)
    value = _linear(w, latent, "v_up", latents, heads * s.v_head_dim)
    value = _heads(w, value, heads, s.v_head_dim, "value")
    query = w.onnx("Concat", [q_nope, q_rope], full, "query", axis=3)
    return {"query": query, **_sequences(w, attention, {"key": key, "value": value}, positions)}


def _sequences(w: Writer, attention: Attention, heads: Values, positions: ir.Value) -> Values:
    """Give [B,G,S,·] as [B·G,S,·]: each head a sequence of its own, as the cache has them."""
    count = w.onnx("Shape", [positions], (1,), "new_rows", dtype=ir.DataType.INT64, start=1, end=2)
    found = {}
    for spec in attention.rows:
        if spec.name in heads:
            *_, width = spec.present.shape
            parts = [w.ints(-1), count, w.ints(attention.widths[spec.name])]
            shape = w.onnx("Concat", parts, (3,), f"{spec.name}_shape", dtype=ir.DataType.INT64, axis=0)
            dims = (spec.present.shape[0], "S", width)
            found[spec.name] = w.onnx("Reshape", [heads[spec.name], shape], dims, f"{spec.name}_rows")
    return found


def _linear(w: Writer, x: ir.Value, name: str, inputs: int, outputs: int) -> ir.Value:
    weight = w.weight(f"attention.{name}.weight", inputs, outputs)
    return w.op("Linear", [x, weight], ("B", "S", outputs), name)


def _norm(w: Writer, x: ir.Value, name: str, width: int, epsilon: float) -> ir.Value:
    weight = w.weight(f"attention.{name}.weight", width)
    return w.op("RMSNorm", [x, weight], ("B", "S", width), name, epsilon=epsilon)


def _heads(w: Writer, x: ir.Value, heads: int, width: int, name: str) -> ir.Value:
    return w.op("SplitHeads", [x], ("B", heads, "S", width), name, heads=heads)


def _rotate(w: Writer, x: ir.Value, heads: int, width: int, turn: list[ir.Value], name: str) -> ir.Value:
    return w.op("Rotate", [x, *turn], ("B", heads, "S", width), name)


def _split(
    w: Writer, x: ir.Value, leading: tuple[Dim, ...], sizes: tuple[int, int], name: str
) -> tuple[ir.Value, ir.Value]:
    results = [(ir.DataType.FLOAT, (*leading, size)) for size in sizes]
    first, second = w.ops("Split", [x], results, name, sizes=sizes)
    return first, second
