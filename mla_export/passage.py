"""Rows of tokens on their way through Hugging Face's decoder layers, in one precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mla_export.rounding import Precision, Rounded
from mla_runtime.errors import ConfigError

if TYPE_CHECKING:
    from mla_export.reference import Reference

Lane = Precision | Rounded  # a way to compute a pass
Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"


class Widened(TorchFunctionMode):
    """Make the classes' float32 islands (norms, gates, rotary tables) float64.

    Hugging Face's layers cast to float32 there whatever their own dtype is, so that `.double()` alone would
    measure nothing below 1e-7.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` with float64 for every float32 among its arguments."""
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        wide = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*(torch.float64 if a is torch.float32 else a for a in args), **wide)


@contextmanager
def precision_of(precision: Precision) -> Iterator[torch.dtype]:
    """Run the body without gradients, and in float64 with every island widened."""
    with torch.inference_mode():
        if precision == "float64":
            with Widened():
                yield torch.float64
        else:
            yield getattr(torch, precision)


@dataclass(frozen=True, slots=True)
class Routing:
    """What a gate saw and did: router logits [S, E], and the experts it took [S, k], in ascending order.

    The logits are [S, 0] where only choices were asked for: those of a long text would fill the memory.
    """

    logits: Array
    chosen: Array


@dataclass(frozen=True, slots=True)
class Pass:
    """What the reference computed for one row of token ids, in one precision.

    `logits` [n, V] of the kept positions; `routing` a layer (None: a dense one).
    """

    logits: Array
    routing: tuple[Routing | None, ...]


class CacheRows:
    """Stands in the place of Hugging Face's cache and keeps what one layer wrote to it.

    `latent` [S, C] after its norm, and `rope` [S, R], the rotated key, in halves order as a bundle has it.
    """

    def __init__(self, *, interleaved: bool) -> None:
        self._interleaved = interleaved
        self.latent: torch.Tensor | None = None
        self.rope: torch.Tensor | None = None

    def update(
        self, latent: torch.Tensor, rope: torch.Tensor, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep [1, 1, S, C] and [1, 1, S, R], and give them back as all that there is."""
        del layer
        if latent.shape[1] != 1 or rope.shape[1] != 1:
            raise ConfigError("this transformers caches keys and values a head; 5.23 or later caches latents")
        self.latent, self.rope = latent[0, 0], rope[0, 0]
        if self._interleaved:
            self.rope = torch.cat((self.rope[:, 0::2], self.rope[:, 1::2]), dim=-1)
        return latent, rope


class Passage:
    """The hidden states of all rows on their way through the layers, in one precision.

    `routing[row]` has what the gate of each layer did, None for a dense one; `cached[row]`, where it is asked
    for, what the last layer that was applied wrote to its cache.
    """

    def __init__(
        self,
        reference: Reference,
        lane: Lane,
        rows: Sequence[Sequence[int]],
        *,
        choices_only: bool = False,
        cached: bool = False,
    ):
        self.reference = reference
        self.cached: list[CacheRows] = []
        self._keeps_rows = cached
        self._choices_only = choices_only
        self.rounded = lane if isinstance(lane, Rounded) else None
        self.precision: Precision = lane.precision if isinstance(lane, Rounded) else lane
        precision = self.precision
        self.routing: list[list[Routing | None]] = [[] for _ in rows]
        with precision_of(precision) as dtype:
            self.rotary = reference.rotary()
            embed = reference.embedding(dtype)
            if self.rounded:
                self._round("embed.weight", embed)
            self.hidden = [embed(torch.tensor([list(row)])) for row in rows]  # [1, S, H]

    def apply(self, index: int, weights: dict[str, torch.Tensor]) -> None:
        """Pass every row through layer `index`."""
        geometry = self.reference.geometry
        with precision_of(self.precision) as dtype:
            if self.rounded:
                weights = {n: self.rounded.weight(index, n, t, geometry) for n, t in weights.items()}
            module = self.reference.layer(index, weights, dtype)
            if self.rounded:
                self.rounded.install(module, geometry)
            seen: list[Routing] = []

            def watch(_module: nn.Module, _inputs: Any, out: tuple[torch.Tensor, ...]) -> None:
                logits, _, chosen = out
                kept = logits[:, :0] if self._choices_only else logits
                seen.append(Routing(kept.double().numpy(), chosen.sort(dim=-1).values.numpy()))

            gate = getattr(module.mlp, "gate", None)
            if gate is not None:
                gate.register_forward_hook(watch)
            inputs = self.rounded.inputs(index, module, geometry) if self.rounded else nullcontext()
            self.cached = [self._cache_rows() for _ in self.hidden] if self._keeps_rows else []
            with inputs:
                for row, hidden in enumerate(self.hidden):
                    cache = self.cached[row] if self.cached else None
                    self.hidden[row] = causal(module, self.rotary, hidden, cache)
                    self.routing[row].append(seen.pop() if seen else None)

    def _cache_rows(self) -> CacheRows:
        # DeepSeek-V2's class leaves rotated pairs where they are; the others put them in halves order
        return CacheRows(interleaved=self.reference.geometry.family == "deepseek_v2")

    def logits(self, row: int, at: Sequence[int]) -> Array:
        """Give the logits [n, V] of a row at the positions `at`, once it has passed all layers."""
        head, geometry = self._head, self.reference.geometry
        inputs = self.rounded.head(head, geometry) if self.rounded else nullcontext()
        with precision_of(self.precision), inputs:
            hidden = self.hidden[row][:, list(at)]
            return head(inputs_embeds=hidden, use_cache=False).logits[0].double().numpy()  # type: ignore[no-any-return]

    @cached_property
    def _head(self) -> Any:
        with precision_of(self.precision) as dtype:
            head = self.reference.head(dtype)
            if self.rounded:
                self._round("head.weight", head.lm_head)
        return head

    def _round(self, parameter: str, module: Any) -> None:
        assert self.rounded is not None  # noqa: S101 - the caller's to know
        rounded = self.rounded.matrix(parameter, module.weight, self.reference.geometry)
        module.weight = nn.Parameter(rounded, requires_grad=False)


def causal(
    layer: nn.Module, rotary: nn.Module, hidden: torch.Tensor, cache: CacheRows | None = None
) -> torch.Tensor:
    """Run a decoder layer over hidden states [1, S, H] from position 0 on."""
    positions = torch.arange(hidden.shape[1])[None]
    # no mask: scaled_dot_product_attention is causal by itself then
    found: torch.Tensor = layer(
        hidden,
        attention_mask=None,
        position_ids=positions,
        position_embeddings=rotary(hidden, positions),
        past_key_values=cache,
    )
    return found
