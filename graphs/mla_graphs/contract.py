"""THE input and output contract of a bundle's graphs (bundle format 1).

Symbols: B batch, S new tokens, T rows of the cache shown, N rows that go through the head, V
vocabulary. Both graphs, step and prompt, have exactly these inputs and outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mla_graphs.geometry import Absorb, Float, Geometry

Dim = int | str
RowKind = Literal["latent", "rope", "key", "value"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, numpy dtype name and shape (integers and symbols) of a graph's input or output."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """One cache tensor: what is shown to the graph (`past`) and the new rows that come back (`present`).

    Every cache tensor is of kind `append`: the runtime appends the rows of `present` to its buffer.
    `row` says in words what one row holds.
    """

    layer: int
    kind: RowKind
    past: TensorSpec
    present: TensorSpec
    row: str


@dataclass(frozen=True, slots=True)
class Contract:
    """Inputs, cache tensors and outputs of a bundle's graphs, in the order of the graph's signature."""

    inputs: tuple[TensorSpec, ...]
    cache: tuple[CacheSpec, ...]
    outputs: tuple[TensorSpec, ...]


def _rows(geometry: Geometry, absorb: Absorb) -> dict[RowKind, tuple[tuple[int, ...], str]]:
    g = geometry
    rope = (
        (g.qk_rope_head_dim,),
        "rotary key shared by all heads, after rotation, halves order",
    )
    if absorb != "expanded":
        return {
            "latent": ((g.kv_lora_rank,), "compressed KV c_kv after its RMSNorm"),
            "rope": rope,
        }
    return {
        "key": (
            (g.num_attention_heads, g.qk_head_dim),
            "key a head: nope channels, then the rotated rope channels",
        ),
        "value": ((g.num_attention_heads, g.v_head_dim), "value a head"),
    }


def contract(geometry: Geometry, absorb: Absorb, cache_dtype: Float) -> Contract:
    """Give the contract of `geometry` in the attention form `absorb` with a cache of `cache_dtype`."""
    inputs = (
        TensorSpec("input_ids", "int64", ("B", "S")),
        TensorSpec("position_ids", "int64", ("B", "S")),
        TensorSpec("past_lengths", "int64", ("B",)),
        TensorSpec("new_lengths", "int64", ("B",)),
        TensorSpec("logit_rows", "int64", ("N",)),
    )
    cache = tuple(
        CacheSpec(
            layer=layer,
            kind=kind,
            past=TensorSpec(f"past.{layer}.{kind}", cache_dtype, ("B", "T", *shape)),
            present=TensorSpec(f"present.{layer}.{kind}", cache_dtype, ("B", "S", *shape)),
            row=row,
        )
        for layer in range(geometry.num_hidden_layers)
        for kind, (shape, row) in _rows(geometry, absorb).items()
    )
    return Contract(inputs, cache, (TensorSpec("logits", "float32", ("N", geometry.vocab_size)),))
