"""What is compared: one layer of attention, equally wide in each kind, and the rows that it caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mla_graphs.contract import TensorSpec
from mla_graphs.geometry import Geometry, Rotary

Kind = Literal["mha", "gqa", "mqa", "expanded", "mla"]
Cache = Literal["float32", "int8", "int8 latent"]
Codes = Literal["int8", "uint8"]

KINDS: tuple[Kind, ...] = ("mha", "gqa", "mqa", "expanded", "mla")
MOST_GROUPS = 8  # groups of GQA: as many as Llama, Mistral, Qwen and DeepSeek 67B have


@dataclass(frozen=True, slots=True)
class Shape:
    """The width of a layer of attention: that of a model with MLA, and what MHA, GQA and MQA take of it.

    Symbols as in `Geometry`. The others have the same hidden size, the same H query heads, and heads of D
    channels for queries, keys and values, as the paper's comparison has (arXiv 2405.04434, section 2.1.4:
    d_h); R of a key's channels are rotated, as in MLA. `softmax_scale` is that of MLA.
    """

    hidden_size: int
    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    softmax_scale: float
    q_norm_eps: float
    kv_norm_eps: float
    rotary: Rotary

    @classmethod
    def of(cls, geometry: Geometry) -> Shape:
        """Take from a geometry what a layer of attention has of it."""
        return cls(**{name: getattr(geometry, name) for name in cls.__slots__})

    @property
    def groups(self) -> int:
        """Give G of GQA: the largest divisor of H below H that is at most `MOST_GROUPS`."""
        heads = self.num_attention_heads
        return max((g for g in range(1, MOST_GROUPS + 1) if heads % g == 0 and g < heads), default=1)


@dataclass(frozen=True, slots=True)
class Row:
    """A cache tensor as the graph takes and gives it; `groups` sequences of rows a sequence of tokens."""

    name: str
    past: TensorSpec
    present: TensorSpec
    groups: int


@dataclass(frozen=True, slots=True)
class Attention:
    """A kind of attention with a kind of cache.

    Kinds: `mha`, `gqa` and `mqa` cache keys and values of H, G and 1 heads. `mla` is absorbed (factored) and
    caches the latent and the rotary key; `expanded` is the same model uncompressed, keys [P+R] and values
    of every head, which is what exporters write that do not absorb.
    Caches: `float32`; `int8`, each row of each tensor and head with a float32 scale of its own, stored as
    `codes`; `int8 latent`, of MLA only: the latent so and the rotary key in float32.
    """

    shape: Shape
    kind: Kind
    cache: Cache
    codes: Codes = "int8"

    def __post_init__(self) -> None:
        if self.cache == "int8 latent" and self.kind != "mla":
            raise ValueError(f"{self.kind} has no latent rows")
        if self.kind in ("mha", "gqa", "mqa") and self.shape.qk_rope_head_dim > self.shape.v_head_dim:
            raise ValueError(f"heads of {self.shape.v_head_dim} channels cannot rotate more of them")

    @property
    def groups(self) -> int:
        """Give G, the number of heads that keys and values have; 1 for `mla`, whose row all heads share."""
        heads = self.shape.num_attention_heads
        return {"mha": heads, "gqa": self.shape.groups, "mqa": 1, "expanded": heads, "mla": 1}[self.kind]

    @property
    def key_dim(self) -> int:
        """Give the width of a query and of a key that is not absorbed."""
        s = self.shape
        return s.qk_nope_head_dim + s.qk_rope_head_dim if self.kind == "expanded" else s.v_head_dim

    @property
    def widths(self) -> dict[str, int]:
        """Give the channels of each kind of row that the cache keeps."""
        s = self.shape
        if self.kind == "mla":
            return {"latent": s.kv_lora_rank, "rope": s.qk_rope_head_dim}
        return {"key": self.key_dim, "value": s.v_head_dim}

    @property
    def softmax_scale(self) -> float:
        """Give MLA's own scale, which may hold YaRN's mscale, or 1 / sqrt(d_h)."""
        return self.shape.softmax_scale if self.kind in ("mla", "expanded") else self.key_dim**-0.5

    def scaled(self, name: str) -> bool:
        """Tell whether the rows `name` are codes with a scale."""
        return self.cache == "int8" or (self.cache == "int8 latent" and name == "latent")

    @property
    def rows(self) -> tuple[Row, ...]:
        """Give the cache tensors in the graph's order; a scale stands behind its rows.

        past [B·G,T,·] and present [B·G,S,·]: a head's rows lie together, as a sequence of their own, so
        that no step transposes them. Only the new rows come back, and whoever runs the graph appends them.
        """
        found: list[Row] = []
        for name, width in self.widths.items():
            scaled = self.scaled(name)
            found.append(self._row(name, self.codes if scaled else "float32", (width,)))
            if scaled:
                found.append(self._row(f"{name}_scale", "float32", ()))
        return tuple(found)

    def _row(self, name: str, dtype: str, width: tuple[int, ...]) -> Row:
        batch = "B" if self.groups == 1 else f"{self.groups}*B"
        past = TensorSpec(f"past.{name}", dtype, (batch, "T", *width))
        return Row(name, past, TensorSpec(f"present.{name}", dtype, (batch, "S", *width)), self.groups)
