"""A bundle fed with tokens in two precisions at once: as a card rounds, and without rounding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import torch

from mla_export.emulate.graph import Graph, Precision
from mla_export.emulate.watch import Calling, Watch
from mla_export.emulate.weights import Weights
from mla_export.open_graph import OneSequence
from mla_runtime.bundle import Bundle
from mla_runtime.manifest import Phase
from mla_runtime.text import Text, load_text

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


class Lane:
    """A bundle's graphs in one precision, and the caches of some sequences; float32 keeps them in float32."""

    def __init__(self, bundle: Bundle, precision: Precision, weights: Weights) -> None:
        self.watch = Watch(Calling("prompt", ((0, 0),), 1))
        self._bundle, self._widened = bundle, precision == "float32"
        phases: tuple[Phase, ...] = ("prompt", "step")
        self._graphs = {
            phase: Graph(_read(bundle, phase), weights, precision, self.watch) for phase in phases
        }
        self._sequences: list[OneSequence] = []

    def begin(self, rows: int) -> None:
        """Begin a sequence of up to `rows` tokens beside those that there are."""
        self._sequences.append(OneSequence(self._bundle, rows, widened=self._widened))

    def prompt(self, ids: Sequence[int]) -> Array:
        """Append ids to the sequence that was begun last; give the logits [S, V], finite or not."""
        place, sequence = len(self._sequences) - 1, self._sequences[-1]
        self.watch.calling = Calling("prompt", ((place, sequence.length),), len(ids))
        return self._run("prompt", [sequence], sequence.inputs(ids, range(len(ids))))

    def step(self, tokens: Sequence[int]) -> Array:
        """Append a token to every sequence, all in one batch; give the logits [B, V] after each."""
        sequences = self._sequences
        self.watch.calling = Calling("step", tuple((i, s.length) for i, s in enumerate(sequences)), 1)
        shown = max(1, *(sequence.length for sequence in sequences))
        inputs = [
            {
                name: _padded(array, shown) if name.startswith("past.") else array
                for name, array in one.items()
            }
            for one in (s.inputs([token], [0]) for s, token in zip(sequences, tokens, strict=True))
        ]
        joined = {name: np.concatenate([one[name] for one in inputs]) for name in inputs[0]}
        return self._run("step", sequences, joined | {"logit_rows": np.arange(len(sequences))})

    def _run(self, phase: Phase, sequences: Sequence[OneSequence], inputs: dict[str, Array]) -> Array:
        found = self._graphs[phase]({name: torch.from_numpy(array) for name, array in inputs.items()})
        present = [found[tensor.present].numpy() for tensor in self._bundle.cache]
        for row, sequence in enumerate(sequences):
            sequence.append([new[row : row + 1] for new in present])
        logits: Array = found["logits"].numpy()
        return logits


class Both:
    """A bundle whose files were hashed, as a card computes it (`rounded`) and without rounding (`exact`)."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        weights = Weights(bundle)
        self.rounded = Lane(bundle, "float16", weights)
        self.exact = Lane(bundle, "float32", weights)
        bundle.check_unchanged()

    @cached_property
    def text(self) -> Text | None:
        """The tokenizer, or None where the bundle works on ids alone."""
        return load_text(self.bundle)

    def begin(self, rows: int) -> None:
        """Begin a sequence of up to `rows` tokens beside those that there are."""
        for lane in (self.rounded, self.exact):
            lane.begin(rows)

    def prompt(self, ids: Sequence[int]) -> tuple[Array, Array]:
        """Append ids to the sequence that was begun last; give the logits [S, V]: rounded, and exact."""
        return self.rounded.prompt(ids), self.exact.prompt(ids)

    def step(self, tokens: Sequence[int]) -> tuple[Array, Array]:
        """Append a token to every sequence; give the logits [B, V]: rounded, and exact."""
        return self.rounded.step(tokens), self.exact.step(tokens)


def _padded(rows: Array, count: int) -> Array:
    """Give `count` rows of a cache [1, T, ...], zeros behind those that there are."""
    return np.pad(rows, [(0, 0), (0, count - rows.shape[1]), *[(0, 0)] * (rows.ndim - 2)])


def _read(bundle: Bundle, phase: Phase) -> ir.Graph:
    return ir.load(bundle.paths[bundle.graph(phase).file]).graph
