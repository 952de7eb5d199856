"""What each weight of a model takes, from its geometry and the formats it is exported in. No torch.

The same parameters as the blocks declare and `layout` places (tests hold both against each other), without
padding to pages: a layout is for a file, this is for what a device keeps and reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal

import numpy as np

from mla_export.quantize.rule import Scheme, is_table
from mla_graphs import CacheTypes, Geometry, contract
from mla_graphs.geometry import Absorb, Float, LayerKind
from mla_graphs.storage import Bits, Matrix

Part = Literal["embedding", "attention", "absorb", "dense", "router", "experts", "head", "other"]
Weights = Literal["float", "int8", "int4"]
Rows = Literal["float", "int8"]

_BITS: dict[str, Bits] = {"int8": 8, "int4": 4}
SHORT = {"float32": "fp32", "float16": "fp16"}


@dataclass(frozen=True, slots=True)
class Formats:
    """How a model is stored: form of attention, weights in groups of `group`, head, and rows of the cache.

    `target` is whose form weights in int8 and int4 have (`mla_graphs.storage`): that of the bundle.
    `floats` is the type of all that is in floats: activations, norms, W_UK and W_UV, scales, float rows.
    """

    absorb: Absorb
    weights: Weights
    cache: Rows
    rope: Rows
    floats: Float
    group: int = 32
    head: Bits = 8
    target: str = "ort-cpu"

    @property
    def scheme(self) -> Scheme | None:
        """Give which parameters are stored in codes, and how; None where all are floats."""
        if self.weights == "float":
            return None
        return Scheme(self.target, _BITS[self.weights], self.group, self.head)

    @property
    def cache_types(self) -> CacheTypes:
        """Give the rows' types as the contract has them."""
        latent, rope = (self.floats if rows == "float" else rows for rows in (self.cache, self.rope))
        return CacheTypes(latent, rope)

    @property
    def words(self) -> str:
        """Say weights and cache, like `int4/int8`; `+` marks rotary keys in int8 too."""
        weights = SHORT[self.floats] if self.weights == "float" else self.weights
        cache = SHORT[self.floats] if self.cache == "float" else "int8" + "+" * (self.rope == "int8")
        return f"{weights}/{cache}"


@dataclass(frozen=True, slots=True)
class Stored:
    """One parameter, of `layers` layers alike: its elements and bytes in one of them.

    `integers`: stored in 4 or 8 bits, its scales counted.
    """

    name: str
    part: Part
    layers: int
    elements: int
    nbytes: int
    integers: bool


@lru_cache
def stored(geometry: Geometry, formats: Formats) -> tuple[Stored, ...]:
    """Give all parameters of a model; those of layers of one kind once, with how many there are."""
    g = geometry
    found = [_stored(g, formats, "embed.weight", (g.vocab_size, g.hidden_size), "embedding", 1)]
    angles = (g.max_context, g.qk_rope_head_dim // 2)
    found += [_stored(g, formats, f"rotary.{name}", angles, "other", 1) for name in ("cos", "sin")]
    for kind in sorted(set(g.layer_kinds)):
        first, count = g.layer_kinds.index(kind), g.layer_kinds.count(kind)
        for name, shape, part in _layer(g, formats.absorb, kind):
            found.append(_stored(g, formats, f"layers.{first}.{name}", shape, part, count))
    found.append(_stored(g, formats, "head.norm.weight", (g.hidden_size,), "other", 1))
    if not g.tie_word_embeddings:
        found.append(_stored(g, formats, "head.weight", (g.vocab_size, g.hidden_size), "head", 1))
    return tuple(found)


def weight_bytes(geometry: Geometry, formats: Formats) -> int:
    """Give the bytes of all weights."""
    return sum(entry.layers * entry.nbytes for entry in stored(geometry, formats))


@lru_cache
def cache_token_bytes(geometry: Geometry, formats: Formats) -> int:
    """Give the bytes that the cache keeps of one token of one sequence, all layers, scales counted."""
    specs = contract(geometry, formats.absorb, formats.cache_types).cache
    shapes = ((spec.past.dtype, [d for d in spec.past.shape if isinstance(d, int)]) for spec in specs)
    return sum(prod(shape) * int(np.dtype(dtype).itemsize) for dtype, shape in shapes)


def item_bytes(floats: Float) -> int:
    """Give the bytes of one float."""
    return int(np.dtype(floats).itemsize)


def _stored(
    g: Geometry, formats: Formats, name: str, shape: tuple[int, ...], part: Part, layers: int
) -> Stored:
    elements = prod(shape)
    matrix = Matrix(shape, is_table(name))
    storage = None if formats.scheme is None else formats.scheme.storage(name, matrix, g)
    if storage is None:
        # routers and rotary tables are float32 whatever the rest is
        single = part == "router" or name.startswith("rotary.")
        return Stored(
            name, part, layers, elements, elements * (4 if single else item_bytes(formats.floats)), False
        )
    nbytes = storage.codes(matrix).nbytes + prod(storage.scales(matrix)) * item_bytes(formats.floats)
    return Stored(name, part, layers, elements, nbytes, True)


def _layer(g: Geometry, absorb: Absorb, kind: LayerKind) -> Iterator[tuple[str, tuple[int, ...], Part]]:
    yield "attention_norm.weight", (g.hidden_size,), "other"
    yield from _attention(g, absorb)
    yield "ffn_norm.weight", (g.hidden_size,), "other"
    if kind == "dense" or g.moe is None:
        yield from _swiglu("mlp", g, g.intermediate_size)
        return
    experts, width = g.moe.n_routed_experts, g.moe.moe_intermediate_size
    yield "moe.router.weight", (g.hidden_size, experts), "router"
    if g.moe.correction_bias:
        yield "moe.router.correction_bias", (experts,), "router"
    yield "moe.experts.gate_up", (experts, g.hidden_size, 2 * width), "experts"
    yield "moe.experts.down", (experts, width, g.hidden_size), "experts"
    yield from _swiglu("moe.shared", g, g.moe.shared_intermediate_size)


def _attention(g: Geometry, absorb: Absorb) -> Iterator[tuple[str, tuple[int, ...], Part]]:
    heads, latent = g.num_attention_heads, g.kv_lora_rank
    merged = absorb == "merged"
    if g.q_lora_rank is not None:
        yield "attention.q_down.weight", (g.hidden_size, g.q_lora_rank), "attention"
        yield "attention.q_norm.weight", (g.q_lora_rank,), "other"
    rows = latent + g.qk_rope_head_dim
    yield "attention.kv_down.weight", (g.hidden_size, rows), "attention"
    yield "attention.kv_norm.weight", (latent,), "other"
    nope = latent if merged else g.qk_nope_head_dim
    q_inputs = g.q_lora_rank or g.hidden_size
    yield "attention.q_up.weight", (q_inputs, heads * (nope + g.qk_rope_head_dim)), "attention"
    if absorb == "factored":
        yield "attention.w_uk", (heads, g.qk_nope_head_dim, latent), "absorb"
        yield "attention.w_uv", (heads, latent, g.v_head_dim), "absorb"
    elif absorb == "expanded":
        yield "attention.k_up.weight", (latent, heads * g.qk_nope_head_dim), "attention"
        yield "attention.v_up.weight", (latent, heads * g.v_head_dim), "attention"
    outputs = heads * (latent if merged else g.v_head_dim)
    yield "attention.o_proj.weight", (outputs, g.hidden_size), "attention"
    if g.attention_bias:
        if g.q_lora_rank is not None:
            yield "attention.q_down.bias", (g.q_lora_rank,), "other"
        yield "attention.kv_down.bias", (rows,), "other"
        yield "attention.o_proj.bias", (g.hidden_size,), "other"


def _swiglu(name: str, g: Geometry, width: int) -> Iterator[tuple[str, tuple[int, ...], Part]]:
    yield f"{name}.gate_up.weight", (g.hidden_size, 2 * width), "dense"
    yield f"{name}.down.weight", (width, g.hidden_size), "dense"
    if g.mlp_bias:
        yield f"{name}.gate_up.bias", (2 * width,), "other"
        yield f"{name}.down.bias", (g.hidden_size,), "other"
