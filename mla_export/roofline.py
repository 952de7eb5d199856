"""The least time of a step and of a prompt on a device: bytes over bandwidth, operations over rate.

The roofline model (Williams, Waterman and Patterson 2009), part after part: each part of the network takes
the longer of reading what it reads and computing what it computes, and the parts run one after another. What
is left out makes it a bound from below: kernels that reach neither, launches, activations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor, inf
from typing import Literal

from mla_export.devices import Device
from mla_export.weight_bytes import Formats, Stored, cache_token_bytes, stored
from mla_graphs import Geometry


@dataclass(frozen=True, slots=True)
class Load:
    """What a part reads, and its operations in floats and on integers, all layers of it.

    A multiplication with its addition is two operations.
    """

    nbytes: float
    float_ops: float
    int8_ops: float = 0.0

    def seconds(self, device: Device) -> float:
        """Give the longer of reading and computing."""
        rate = device.int8_rate or device.float_rate
        computing = self.float_ops / device.float_rate + self.int8_ops / rate
        return max(self.nbytes / device.bandwidth, computing)


def seconds(loads: Iterable[Load], device: Device) -> float:
    """Give the time of parts that run one after another."""
    return sum(load.seconds(device) for load in loads)


def distinct_experts(geometry: Geometry, tokens: int) -> float:
    """Give how many experts of a layer are expected to be chosen by `tokens` tokens, each evenly by chance.

    E·(1 - (1 - k/E)^tokens), with k of E chosen by a token.
    """
    if geometry.moe is None:
        return 0.0
    experts, chosen = geometry.moe.n_routed_experts, geometry.moe.num_experts_per_tok
    if tokens == 1:
        return float(chosen)
    return float(experts * (1.0 - (1.0 - chosen / experts) ** tokens))


def weight_loads(geometry: Geometry, formats: Formats, tokens: int, rows: int) -> list[Load]:
    """Give the parts that read weights, for `tokens` tokens of which `rows` go through the head.

    Of an embedding a row a token is read, of the experts those that are chosen.
    """
    return [_weight_load(geometry, entry, tokens, rows) for entry in stored(geometry, formats)]


def _weight_load(g: Geometry, entry: Stored, tokens: int, rows: int) -> Load:
    share, meets = 1.0, float(tokens)  # of its bytes; tokens that an element is multiplied with
    if entry.part == "experts" and g.moe is not None:
        share = distinct_experts(g, tokens) / g.moe.n_routed_experts
        meets *= g.moe.num_experts_per_tok / g.moe.n_routed_experts
    elif entry.part == "embedding" and not g.tie_word_embeddings:
        share, meets = tokens / g.vocab_size, 0.0
    elif entry.part in ("embedding", "head"):
        meets = float(rows)
    elif entry.part == "other":  # norms and biases; of the rotary tables a row a token
        share, meets = (tokens / g.max_context if entry.name.startswith("rotary.") else 1.0), 0.0
    ops = 2.0 * meets * entry.elements * entry.layers
    nbytes = min(share, 1.0) * entry.nbytes * entry.layers
    return Load(nbytes, 0.0, ops) if entry.integers else Load(nbytes, ops)


def attention_load(geometry: Geometry, formats: Formats, batch: int, queries: int, rows: int) -> Load:
    """Give attention of `queries` tokens a sequence over `rows` rows of the cache, the new ones among them.

    A head, query and row take 2·(2C + R) operations in the latent space, 2·(P + R + D) over keys and values.
    Products with int8 rows are on integers.
    """
    g = geometry
    pairs = 2.0 * g.num_attention_heads * g.num_hidden_layers * batch * queries * rows
    nbytes = float(batch * rows * cache_token_bytes(g, formats))
    if formats.absorb == "expanded":
        return Load(nbytes, pairs * (g.qk_head_dim + g.v_head_dim))
    latent, rope = pairs * 2 * g.kv_lora_rank, pairs * g.qk_rope_head_dim
    integers = (latent if formats.cache == "int8" else 0.0) + (rope if formats.rope == "int8" else 0.0)
    return Load(nbytes, latent + rope - integers, integers)


def step_loads(geometry: Geometry, formats: Formats, batch: int, context: int) -> list[Load]:
    """Give the parts of a step of one token a sequence, behind `context` tokens each."""
    attention = attention_load(geometry, formats, batch, 1, context + 1)
    return [*weight_loads(geometry, formats, batch, batch), attention]


def step_bytes(geometry: Geometry, formats: Formats, batch: int) -> float:
    """Give the bytes of weights that a step reads."""
    return sum(load.nbytes for load in weight_loads(geometry, formats, batch, batch))


def step_seconds(geometry: Geometry, formats: Formats, device: Device, batch: int, context: int) -> float:
    """Give the least time of a step."""
    return seconds(step_loads(geometry, formats, batch, context), device)


def prompt_seconds(
    geometry: Geometry, formats: Formats, device: Device, batch: int, tokens: int, chunk: int
) -> float:
    """Give the least time of a prompt of `tokens` tokens a sequence, `chunk` of them at a time."""
    full, rest = divmod(tokens, chunk)
    first = _Chunk.of(geometry, formats, device, batch, chunk)
    total = sum(first.seconds((number + 1) * chunk) for number in range(full))
    if rest:
        total += _Chunk.of(geometry, formats, device, batch, rest).seconds(tokens)
    return total


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Times of a chunk of a prompt: of its weights, and of attention, a row of the cache.

    Every query is computed with every row that it or a later one of its chunk sees, as the graphs do. In the
    factored form the cheaper of both ways is taken: in the latent space, or over keys and values that are
    rebuilt from it, where queries are not absorbed.
    """

    weights: float
    absorbing: float
    row: float
    reading: float
    rebuilt_row: float

    @classmethod
    def of(cls, g: Geometry, formats: Formats, device: Device, batch: int, queries: int) -> _Chunk:
        weights = [(entry, _weight_load(g, entry, batch * queries, batch)) for entry in stored(g, formats)]
        absorbing = [load for entry, load in weights if entry.part == "absorb"]
        others = [load for entry, load in weights if entry.part != "absorb"]
        row = attention_load(g, formats, batch, queries, 1)
        rebuilt = inf
        if formats.absorb == "factored":
            heads = 2.0 * g.num_attention_heads * g.num_hidden_layers * batch
            making = heads * g.kv_lora_rank * (g.qk_nope_head_dim + g.v_head_dim)
            attending = heads * queries * (g.qk_head_dim + g.v_head_dim)
            rebuilt = Load(row.nbytes, making + attending).seconds(device)
        reading = sum(load.nbytes for load in absorbing) / device.bandwidth
        return cls(seconds(others, device), seconds(absorbing, device), row.seconds(device), reading, rebuilt)

    def seconds(self, rows: int) -> float:
        return self.weights + min(
            self.absorbing + rows * self.row,
            self.reading + rows * self.rebuilt_row,
        )


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where one form's step is shorter than another's: always, never, from or up to a context."""

    kind: Literal["always", "never", "from", "up to"]
    context: int | None = None

    @property
    def words(self) -> str:
        """Say it: `always`, `from 1,234 tokens`."""
        return self.kind if self.context is None else f"{self.kind} {self.context:,} tokens"


def crossing(geometry: Geometry, first: Formats, other: Formats, device: Device, batch: int) -> Crossing:
    """Say at which contexts, up to the model's own, a step in the formats `first` is shorter than in `other`.

    A step's time is a constant and a part that grows with the rows, so there is one place at most.
    """
    start = [step_seconds(geometry, formats, device, batch, 0) for formats in (first, other)]
    slope = [attention_load(geometry, formats, batch, 1, 1).seconds(device) for formats in (first, other)]
    behind, gain = start[0] - start[1], slope[1] - slope[0]
    shorter_at_first = behind < 0
    shorter_at_last = behind < gain * geometry.max_context
    if shorter_at_first == shorter_at_last:
        return Crossing("always" if shorter_at_first else "never")
    if shorter_at_first:
        return Crossing("up to", ceil(behind / gain) - 1)
    return Crossing("from", floor(behind / gain) + 1)
