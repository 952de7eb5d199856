"""THE input and output contract of a bundle's graphs (bundle format 1).

Symbols: B batch, S new tokens, T rows of the cache shown, N rows that go through the head, V
vocabulary. Both graphs, step and prompt, have exactly these inputs and outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mla_graphs.geometry import Absorb, Float, Geometry, RowType

Dim = int | str
BYTES = ("int8", "uint8")  # row types that have a scale beside them
RowKind = Literal["latent", "latent_scale", "rope", "rope_scale", "key", "value"]


@dataclass(frozen=True, slots=True)
class CacheTypes:
    """What the rows of a cache are stored as; `rope` is the rotary key's part.

    A row of 8 bits has a float32 scale of its own: value = code · scale, codes from -127 to 127 in int8; in
    uint8, which some processors multiply faster, they are stored 128 higher. Rows of keys and values a head
    (the expanded form) are floats of the type `latent`.
    """

    latent: RowType
    rope: RowType

    def __post_init__(self) -> None:
        if self.rope in BYTES and self.latent != self.rope:
            raise ValueError(f"rotary keys are {self.rope} only beside latent rows of that type")

    @classmethod
    def of(cls, dtype: Float) -> CacheTypes:
        """Give the types of a cache that is `dtype` throughout."""
        return cls(dtype, dtype)


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


@dataclass(frozen=True, slots=True)
class _Row:
    dtype: str
    shape: tuple[int, ...]
    meaning: str


def _rows(geometry: Geometry, absorb: Absorb, types: CacheTypes) -> dict[RowKind, _Row]:
    g = geometry
    if absorb == "expanded":
        key = "key a head: nope channels, then the rotated rope channels"
        return {
            "key": _Row(types.latent, (g.num_attention_heads, g.qk_head_dim), key),
            "value": _Row(types.latent, (g.num_attention_heads, g.v_head_dim), "value a head"),
        }
    latent = _Row(types.latent, (g.kv_lora_rank,), "compressed KV c_kv after its RMSNorm")
    rope = _Row(
        types.rope, (g.qk_rope_head_dim,), "rotary key shared by all heads, after rotation, halves order"
    )
    return {**_scaled("latent", "latent_scale", latent), **_scaled("rope", "rope_scale", rope)}


def _scaled(kind: RowKind, scale_kind: RowKind, row: _Row) -> dict[RowKind, _Row]:
    """Give a row, and behind it the scale that an int8 row has."""
    if row.dtype not in BYTES:
        return {kind: row}
    code = (
        "codes of -127 to 127: value = code"
        if row.dtype == "int8"
        else "codes of 1 to 255: value = (code - 128)"
    )
    codes = _Row(row.dtype, row.shape, f"{row.meaning}, as {code} · {scale_kind}")
    return {
        kind: codes,
        scale_kind: _Row("float32", (), f"scale of the row in {kind}: its largest magnitude / 127"),
    }


def contract(geometry: Geometry, absorb: Absorb, types: CacheTypes) -> Contract:
    """Give the contract of `geometry` in the attention form `absorb` with cache rows of `types`."""
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
            past=TensorSpec(f"past.{layer}.{kind}", row.dtype, ("B", "T", *row.shape)),
            present=TensorSpec(f"present.{layer}.{kind}", row.dtype, ("B", "S", *row.shape)),
            row=row.meaning,
        )
        for layer in range(geometry.num_hidden_layers)
        for kind, row in _rows(geometry, absorb, types).items()
    )
    return Contract(inputs, cache, (TensorSpec("logits", "float32", ("N", geometry.vocab_size)),))
