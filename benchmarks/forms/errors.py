"""How far logits are from those of Hugging Face's layers in float64, over some windows of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mla_export.judge import log_softmax
from mla_export.passage import Lane, Pass
from mla_export.reference import Reference

Array = np.ndarray[Any, np.dtype[Any]]
_ROWS = 512  # logits that are compared at once


@dataclass(frozen=True, slots=True)
class Found:
    """What one way of computing gave: logits [n, V] of all windows' tokens, and what its gates chose.

    `experts` has a layer's choices [n, K] in ascending order, and is empty where nobody looked. `largest` has
    for each node of an emulated graph the largest magnitude that it rounded to 16 bits.
    """

    logits: Array
    experts: dict[int, Array]
    largest: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Error:
    """Errors as shares of the RMS of all wanted logits.

    `rms` of all, the `median` and the `worst` token's own RMS; mean KL(float64 || found) in nats; the share
    of tokens with the same most likely next one; the share `rerouted` of which a gate chose other experts,
    and the `rms` of the others, both None where nobody looked.
    """

    rms: float
    median: float
    worst: float
    kl: float
    same_top: float
    rerouted: float | None
    rms_of_others: float | None


class Yardstick:
    """The windows [B, S] as Hugging Face's layers read them: in float64, and in each of `lanes`."""

    def __init__(self, reference: Reference, windows: Sequence[Sequence[int]], lanes: Sequence[Lane]) -> None:
        self.windows = [list(window) for window in windows]
        passes = reference.forward(self.windows, ["float64", *lanes])
        self._want = _joined(passes["float64"])
        self._size = _rms(self._want.logits)
        self.peers = {lane: self.error(_joined(passes[lane])) for lane in lanes}

    def error(self, found: Found) -> Error:
        """Hold logits against float64."""
        rows = np.concatenate(
            [np.sqrt(np.square(found.logits[at] - self._want.logits[at]).mean(-1)) for at in self._parts()]
        )
        same = [found.logits[at].argmax(-1) == self._want.logits[at].argmax(-1) for at in self._parts()]
        moved = None
        if found.experts:
            pairs = [(found.experts[layer], want) for layer, want in self._want.experts.items()]
            moved = np.logical_or.reduce([(a != b).any(-1) for a, b in pairs])
        return Error(
            rms=_rms(rows) / self._size,
            median=float(np.median(rows)) / self._size,
            worst=float(rows.max()) / self._size,
            kl=float(self.kl(found).mean()),
            same_top=float(np.concatenate(same).mean()),
            rerouted=None if moved is None else float(moved.mean()),
            rms_of_others=None if moved is None else _rms(rows[~moved]) / self._size,
        )

    def kl(self, found: Found) -> Array:
        """Give KL(float64 || found) of each token, in nats: [n]."""
        parts = []
        for at in self._parts():
            got, want = log_softmax(found.logits[at]), log_softmax(self._want.logits[at])
            parts.append((np.exp(want) * (want - got)).sum(-1))
        return np.concatenate(parts)

    def _parts(self) -> list[slice]:
        return [slice(start, start + _ROWS) for start in range(0, len(self._want.logits), _ROWS)]


def _rms(values: Array) -> float:
    return float(np.sqrt(np.square(values).mean()))


def _joined(passes: Sequence[Pass]) -> Found:
    logits = np.concatenate([one.logits for one in passes])
    gates = {layer: [] for layer, routing in enumerate(passes[0].routing) if routing is not None}
    for one in passes:
        for layer, chosen in gates.items():
            routing = one.routing[layer]
            assert routing is not None
            chosen.append(routing.chosen)
    return Found(logits, {layer: np.concatenate(chosen) for layer, chosen in gates.items()})
