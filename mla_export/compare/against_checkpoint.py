"""The checkpoint as the reference: one pass through its layers, in float64 and as each side's peer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from mla_export.compare.decode import Decoded
from mla_export.compare.held import Held, Rowed
from mla_export.compare.layers import Seen, layer_errors
from mla_export.compare.result import Gate, LayerError, Rows
from mla_export.judge import Budget
from mla_export.numerics import Ground, factor_of, gate_ties, lane_of
from mla_export.passage import Lane, Pass, Passage
from mla_export.reference import Reference
from mla_export.rounding import Rounded
from mla_runtime.manifest import Precision as Formats

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

# the checkpoint in float32 is off by its own rounding only; further than this share it is broken
TORCH_ALLOWED = 1e-3


def hold(
    reference: Reference, rowed: Rowed, sides: Sequence[tuple[Formats, Decoded]], *, torch: bool
) -> tuple[list[Held], tuple[Decoded, Held] | None]:
    """Hold the sides, and with `torch` the checkpoint in float32, which is given with what it computed.

    Its tokens are what it chooses after the forced ones: a decode of its own would take a pass a token.
    """
    lanes: list[Lane] = [lane_of(formats) for formats, _ in sides]
    behind = _LayerPass(reference, rowed, [decoded for _, decoded in sides], lanes, torch=torch)
    every = list(dict.fromkeys(["float64", *behind.lanes]))
    passages = reference.passages(rowed.rows, every, after=behind.after)
    keep, forced = rowed.keep(), list(range(len(rowed.prompts)))
    passes = {
        lane: [Pass(passage.logits(i, at), tuple(passage.routing[i])) for i, at in enumerate(keep)]
        for lane, passage in passages.items()
    }
    grounds = {
        lane: Ground.from_passes(reference, rowed.rows, keep, passes["float64"], passes[lane], lane)
        for lane in every[1:]
    }
    pairs = zip(lanes, rowed.own, behind.layers[: len(lanes)], strict=True)
    held = [_held(grounds[lane], keep, forced, own, layers) for lane, own, layers in pairs]
    if not torch:
        return held, None
    logits = [found.logits for found in passes["float32"][: len(forced)]]
    computed = Decoded(logits, [row.argmax(-1).tolist() for row in logits])
    return held, (computed, _fixed(_held(grounds["float32"], keep, forced, forced, behind.layers[-1])))


def _held(
    ground: Ground, keep: list[list[int]], forced: list[int], own: list[int], layers: list[LayerError]
) -> Held:
    budget = ground.budget()
    of = "the median token's error" if budget.judges == "median" else "the error"
    words = f"{budget.factor:g} × {of} of {budget.peer}"
    ties = [tie[kept] for tie, kept in zip(ground.behind_tie, keep, strict=True)]
    return Held(
        Gate("computed", budget.judges, budget.factor, budget.max_abs, budget.rms, words),
        budget,
        [ground.yardstick[i] for i in forced],
        [ties[i] for i in forced],
        [ground.yardstick[i] for i in own],
        [ties[i] for i in own],
        [ground.peer[i] for i in forced],
        layers,
    )


def _fixed(held: Held) -> Held:
    """Judge the peer itself by a share of the logits' size: its own error would allow it everything."""
    size = float(np.sqrt(np.mean(np.concatenate(held.want) ** 2)))
    words = f"{TORCH_ALLOWED:g} of the logits' RMS"
    gate = Gate("fixed", "rms", 1.0, float("inf"), TORCH_ALLOWED * size, words)
    budget = Budget(1.0, float("inf"), TORCH_ALLOWED * size, "rms", words)
    return replace(held, gate=gate, budget=budget, peer=None)


class _LayerPass:
    """Compares what each side saw of a layer, right behind that layer, so that only one is in memory.

    `lanes` are those of the peers, a side each, and float32 behind them where torch is a side.
    """

    def __init__(
        self,
        reference: Reference,
        rowed: Rowed,
        sides: Sequence[Decoded],
        lanes: Sequence[Lane],
        *,
        torch: bool,
    ) -> None:
        self._reference, self._sides = reference, sides
        self.lanes: list[Lane] = [*lanes, "float32"] if torch else [*lanes]
        self._lengths = [len(prompt) for prompt in rowed.prompts]
        none = [np.zeros(len(row), dtype=bool) for row in rowed.rows[: len(rowed.prompts)]]
        self._ties: dict[Lane, list[Array]] = {lane: list(none) for lane in self.lanes}
        self.layers: list[list[LayerError]] = [[] for _ in self.lanes]

    def after(self, layer: int, passages: dict[Lane, Passage]) -> None:
        """Hold all sides' rows of `layer` against the passages behind it."""
        rows = {lane: _rows_of(passage, len(self._lengths)) for lane, passage in passages.items()}
        for kind in ("latent", "rope"):
            self._hold(layer, kind, rows)
        self._route(layer, passages)
        self._hold(layer, "block", rows)

    def _hold(self, layer: int, kind: Rows, rows: dict[Lane, dict[Rows, list[Array]]]) -> None:
        for index, lane in enumerate(self.lanes):
            torch = index == len(self._sides)
            seen = None if torch else self._sides[index].layers.get(kind)
            if torch:
                got = rows["float32"][kind]
            elif seen is not None:
                got = [prompt[layer] for prompt in seen]
            else:
                continue  # a cache of keys and values has no such rows
            self.layers[index] += layer_errors(
                Seen(layer, kind, self._lengths, rows["float64"][kind], got),
                self._ties[lane],
                median=isinstance(lane, Rounded),
                allowed=TORCH_ALLOWED if torch else rows[lane][kind],
                factor=factor_of(lane),
            )

    def _route(self, layer: int, passages: dict[Lane, Passage]) -> None:
        """Mark the tokens that this layer's gate might route otherwise, and all that come after them."""
        for lane in self._ties:
            for i, tie in enumerate(self._ties[lane]):
                wide, narrow = passages["float64"].routing[i][layer], passages[lane].routing[i][layer]
                close = gate_ties(self._reference, layer, wide, narrow, factor_of(lane))
                if close is not None and wide is not None and narrow is not None:
                    flipped = (wide.chosen != narrow.chosen).any(axis=-1)
                    self._ties[lane][i] = tie | np.logical_or.accumulate(close | flipped)


def _rows_of(passage: Passage, prompts: int) -> dict[Rows, list[Array]]:
    found: dict[Rows, list[Array]] = {"latent": [], "rope": [], "block": []}
    for cached, hidden in zip(passage.cached[:prompts], passage.hidden[:prompts], strict=True):
        if cached.latent is None or cached.rope is None:
            raise RuntimeError("the layer wrote nothing to its cache")
        for kind, rows in (("latent", cached.latent), ("rope", cached.rope), ("block", hidden[0])):
            found[kind].append(rows.double().numpy())  # type: ignore[index] # one of the three kinds
    return found
