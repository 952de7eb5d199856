"""The `mla::` operators: what a block is traced to, before a target writes it out.

Symbols: B batch, S new tokens, T rows of the cache shown, N = B·S rows, H heads, K experts a token,
C latent channels, R rotary channels. Every operator has an attribute `name`: its place in the block
(`attention.scores` lowers to nodes whose names start so), which readers of a graph, and tools that
compare graphs, go by.
"""

from __future__ import annotations

from dataclasses import dataclass

DOMAIN = "mla"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Operator:
    """Signature and meaning of one operator; `name` is implied in `attributes`.

    An input written `bias?` may be absent, with all that follow it.
    """

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]
    meaning: str


_ALL = (
    Operator(
        "Embed",
        ("input_ids", "table"),
        ("hidden",),
        ("scale",),
        "hidden[b,s,:] = scale · table[input_ids[b,s],:]",
    ),
    Operator(
        "RotaryRows",
        ("position_ids", "cos_table", "sin_table"),
        ("cos", "sin"),
        (),
        "Rows of the float32 tables at the positions, as [B,1,S,R/2].",
    ),
    Operator(
        "Visibility",
        ("input_ids", "past_lengths", "new_lengths", "past"),
        ("visible", "counts", "split", "fold", "unfold"),
        ("heads",),
        "visible [B,1,S,T+S] bool: the past rows below past_lengths, then the new rows up to the query's "
        "own and below new_lengths. counts [N] bool: new rows below new_lengths. split [1] int64: T. "
        "fold, unfold: shapes (B, H·S, -1) and (B, H, S, -1), which take heads into rows and back.",
    ),
    Operator(
        "RMSNorm",
        ("x", "weight"),
        ("y",),
        ("epsilon",),
        "y = weight · x / sqrt(mean(x²) + epsilon) over the last axis; computed in float32.",
    ),
    Operator("Linear", ("x", "weight", "bias?"), ("y",), (), "y = x · weight + bias; weight is [in, out]."),
    Operator(
        "Dequantize",
        ("codes", "scales"),
        ("weight",),
        ("bits", "group", "inputs", "table", "fine"),
        "value = (code - 2^(bits-1)) · scale of its group of `group` inputs. codes uint8 [..., out, groups, "
        "group·bits/8], two codes of 4 bits to a byte, the first in its low half; scales [..., out, groups]. "
        "weight [..., in, out], or [out, in] with table 1; codes beyond `inputs` are padding. fine 1: "
        "a target that rounds what the weight is multiplied with keeps 16 bits of it.",
    ),
    Operator(
        "DequantizeChannels",
        ("codes", "scales"),
        ("weight",),
        ("rows", "table"),
        "value = code · scale of its output. codes int8 [..., in, out], or [out, in] with rows 1; scales "
        "[out], of a stack [E, 1, out]. weight [..., in, out], or [out, in] with table 1.",
    ),
    Operator(
        "DequantizeGroups",
        ("codes", "scales"),
        ("weight",),
        ("group", "table"),
        "value = code · scale of its group of `group` inputs; codes -8 … 7. codes int4 [in, out]; of a stack "
        "int8 [E, in/2, out], 16 · code of input k + in/2 + code of input k + 8. scales [..., in/group, "
        "out]. weight [..., in, out], or [out, in] with table 1.",
    ),
    Operator("Split", ("x",), ("first", "second"), ("sizes",), "Splits the last axis in two."),
    Operator("SplitHeads", ("x",), ("y",), ("heads",), "[B,S,H·D] to [B,H,S,D]."),
    Operator("MergeHeads", ("x",), ("y",), ("width",), "[B,H,S,D] to [B,S,H·D]; width = H·D."),
    Operator(
        "Rotate",
        ("x", "cos", "sin"),
        ("y",),
        (),
        "(a, b) = halves of x [B,h,S,R]; y = (a·cos - b·sin, b·cos + a·sin); computed in float32.",
    ),
    Operator(
        "HeadLinear",
        ("x", "weight"),
        ("y",),
        (),
        "A matrix a head: [B,H,S,I] · [H,I,O] to [B,H,S,O]. Absorption's W_UK and W_UV.",
    ),
    Operator(
        "LatentAttention",
        (
            "q_latent",
            "q_rope",
            "past_latent",
            "past_rope",
            "latent",
            "rope",
            "visible",
            "split",
            "fold",
            "unfold",
            "past_latent_scale?",
            "latent_scale?",
            "past_rope_scale?",
            "rope_scale?",
        ),
        ("y",),
        ("scale", "heads"),
        "Absorbed attention over past rows [B,T,·] and new rows [B,S,·]: scores = scale · (q_latent · latent "
        "+ q_rope · rope), softmax over the visible rows in float32, y [B,H,S,C] = probabilities · latent. "
        "Rows with a scale [B,T|S] are int8 codes, and the row is code · scale.",
    ),
    Operator(
        "PromptAttention",
        (
            "q_nope",
            "q_rope",
            "past_latent",
            "past_rope",
            "latent",
            "rope",
            "w_uk",
            "w_uv",
            "visible",
            "split",
            "fold",
            "unfold",
            "past_latent_scale?",
            "latent_scale?",
            "past_rope_scale?",
            "rope_scale?",
        ),
        ("y",),
        ("scale", "heads"),
        "What LatentAttention between two HeadLinear computes, for any number of queries: where there are "
        "enough of them, keys and values a head are rebuilt from the latent rows, which then is less work. "
        "q_nope [B,H,S,P], y [B,H,S,D].",
    ),
    Operator(
        "QuantizeRows",
        ("x",),
        ("codes", "scale"),
        (),
        "x [B,S,C] as codes of -127 to 127 (int8, or uint8 and 128 higher) and a float32 scale a row [B,S]: "
        "scale = max |x| / 127, codes = round(x / scale), ties to even; a row of zeros has codes of zero.",
    ),
    Operator(
        "HeadAttention",
        ("query", "past_key", "past_value", "key", "value", "visible", "split"),
        ("y",),
        ("scale",),
        "Unabsorbed attention: query [B,H,S,P+R], keys and values a head [B,T|S,H,·], y [B,H,S,D].",
    ),
    Operator(
        "GroupedAttention",
        (
            "query",
            "past_key",
            "past_value",
            "key",
            "value",
            "visible",
            "split",
            "past_key_scale?",
            "past_value_scale?",
            "key_scale?",
            "value_scale?",
        ),
        ("y",),
        ("scale", "groups"),
        "Attention whose heads share keys and values in G groups, for the graphs that MLA is compared with: "
        "query [B,H,S,K]; rows [B·G,T|S,·], those of a group lying together; y [B,H,S,D]. Rows with a scale "
        "[B·G,T|S] are int8 codes.",
    ),
    Operator(
        "HeadKeys",
        ("key_nope", "rope"),
        ("key",),
        ("heads",),
        "key [B,S,H,P+R] from key_nope [B,S,H·P] and the rotary key [B,S,R] that all heads share.",
    ),
    Operator("HeadRows", ("x",), ("y",), ("heads",), "[B,S,H·D] to [B,S,H,D]."),
    Operator("SwiGLU", ("gate_up",), ("y",), (), "y = silu(first half) · second half, over the last axis."),
    Operator("Residual", ("x", "branch"), ("y",), ("scale",), "y = x + scale · branch."),
    Operator("Rows", ("x",), ("y",), ("width",), "[B,S,width] to [N,width]."),
    Operator("Unrows", ("x", "like"), ("y",), (), "[N,width] to the shape of like [B,S,width]."),
    Operator(
        "Route",
        ("x", "weight", "correction_bias?"),
        ("expert_ids", "expert_weights"),
        ("scoring", "experts", "top_k", "groups", "top_groups", "group_score", "normalize", "scaling"),
        "DeepSeek's gate in float32 (V2 section 2.2, V3 section 2.1.2). x [N,hidden], weight "
        "[hidden, experts]. The bias takes part in choosing only. groups 0: no group limit. expert_ids "
        "[N,K] int64, expert_weights [N,K] float32.",
    ),
    Operator(
        "Experts",
        ("x", "expert_ids", "expert_weights", "counts", "gate_up", "down"),
        ("y",),
        ("experts", "top_k"),
        "y[n] = Σ_k expert_weights[n,k] · down[e] · SwiGLU(x[n] · gate_up[e]), e = expert_ids[n,k]; zero "
        "where counts[n] is false, and such rows do not reach an expert. gate_up [E,hidden,2I], down "
        "[E,I,hidden].",
    ),
    Operator(
        "SelectRows",
        ("hidden", "rows"),
        ("y",),
        ("width",),
        "Rows of hidden flattened to [N,width], in order.",
    ),
    Operator(
        "Logits",
        ("x", "table"),
        ("logits",),
        ("scale",),
        "logits float32 [N,V] = (scale · x) · tableᵀ; table is [V,hidden], as embeddings are stored.",
    ),
)

OPERATORS: dict[str, Operator] = {operator.op_type: operator for operator in _ALL}
