"""Measuring the cases in turns: what a step caches, how long it takes, how far INT8 rows are off."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mla_export import progress
from mla_export.attention.cases import (
    CASES,
    Array,
    drawn_rows,
    drawn_weights,
    stored,
    tables,
    weight_shapes,
)
from mla_export.attention.graphs import TARGETS, Graph, check
from mla_runtime.errors import CapacityError
from mla_runtime.memory import memory_limit

if TYPE_CHECKING:
    from mla_graphs.baselines import Attention, Cache, Kind, Shape

ROUNDS = 15  # fewest timed calls of each graph at each depth, of which the median counts
SECONDS = 2.0  # that all calls of a depth take together, where so few would take less
MOST_ROUNDS = 101
QUERIES = 8  # tokens whose outputs the error is of
_SHARE = 0.6  # of the memory here that rows and weights may take


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of attention with a kind of cache, one layer.

    `cache_bytes` are those of the rows that the graph gave back for one token, scales included; `elements`
    the numbers among them, without scales. `weights` are the elements a token is multiplied with.
    """

    kind: Kind
    cache: Cache
    groups: int
    elements: int
    cache_bytes: int
    weights: int


@dataclass(frozen=True, slots=True)
class Point:
    """A case at one depth: medians of a step in seconds, attention alone and with its projections.

    `core_ratio` and `layer_ratio` are those times in those of absorbed MLA with a float32 cache, from the
    same rounds. `error` is the RMS error of the layer's output beside that with float32 rows, as a share of
    the latter's RMS (None: that is this one).
    """

    kind: Kind
    cache: Cache
    depth: int
    core_seconds: float
    layer_seconds: float
    core_ratio: float
    layer_ratio: float
    error: float | None


@dataclass(frozen=True, slots=True)
class Measured:
    """All cases on one backend."""

    backend: str
    cases: tuple[Case, ...]
    points: tuple[Point, ...]


class _Loaded:
    """Both graphs of a case, and the layer's weights with their rotary tables."""

    def __init__(
        self, attention: Attention, weights: dict[str, Array], target: str, threads: int | None
    ) -> None:
        from mla_graphs.baselines import core, layer

        self.attention, self.weights = attention, weights
        self.layer = Graph(layer(attention), target, threads)
        self.core = Graph(core(attention), target, threads)

    def inputs(self, depth: int, past: Mapping[str, Array]) -> dict[str, Array]:
        """Give all that both graphs take for one new token at `depth`, but the new token itself."""
        return {
            **self.weights,
            **past,
            "position_ids": np.array([[depth]]),
            "past_lengths": np.array([depth]),
            "new_lengths": np.array([1]),
        }

    def core_inputs(self) -> dict[str, Array]:
        """Draw a query and new rows from N(0, 1)."""
        from mla_graphs.baselines import queries

        rng = np.random.default_rng(1)
        heads = self.attention.shape.num_attention_heads
        found = {}
        for spec in queries(self.attention):
            width = int(spec.shape[-1])
            shape = (self.attention.groups, 1, width) if len(spec.shape) == 3 else (1, heads, 1, width)
            found[spec.name] = rng.standard_normal(shape, dtype=np.float32)
        return found


def measure(
    shape: Shape, depths: Sequence[int], backend: str, threads: int | None = None, seconds: float = SECONDS
) -> Measured:
    """Measure all cases on `backend`, at each of `depths` rows of cache before the step.

    Rows are drawn, not computed. At each depth every graph is called once unmeasured, then all in turns, for
    `seconds` and at least `ROUNDS` rounds. Raises `BackendError` where the backend is not there,
    `CapacityError` where rows and weights do not fit.
    """
    from mla_graphs.baselines import Attention

    check(backend)
    target, codes = TARGETS[backend]
    attentions = [Attention(shape, kind, cache, codes) for kind, cache in CASES]
    _check_memory(attentions, max(depths))
    with progress.task(f"attention on {backend}", len(CASES) + len(depths)) as advance:
        weights: dict[Kind, dict[str, Array]] = {}
        loaded = []
        for attention in attentions:
            if attention.kind not in weights:
                weights[attention.kind] = _weights(attention, max(depths) + 1)
            loaded.append(_Loaded(attention, weights[attention.kind], target, threads))
            advance(1)
        points = []
        for depth in depths:
            points += _at_depth(loaded, depth, seconds)
            advance(1)
    return Measured(backend, tuple(map(_case, loaded)), tuple(points))


def _weights(attention: Attention, positions: int) -> dict[str, Array]:
    from mla_graphs.baselines import layer

    return {**drawn_weights(attention, layer(attention)), **tables(attention.shape, positions)}


def _check_memory(attentions: Sequence[Attention], depth: int) -> None:
    """Refuse a depth whose rows would not fit; those of float32 are there while others are made of them."""
    from mla_graphs.baselines import layer

    limit = memory_limit()
    rows = depth * sum(a.groups * sum(a.widths.values()) * 4 for a in attentions)
    layers = {a.kind: weight_shapes(layer(a)) for a in attentions}
    weights = sum(4 * math.prod(shape) for shapes in layers.values() for shape in shapes.values())
    if limit is not None and rows + weights > limit * _SHARE:
        raise CapacityError(
            f"all kinds together take {rows / 1e9:.1f} GB of cache at depth {depth} and "
            f"{weights / 1e9:.1f} GB of weights, more than {_SHARE:.0%} of the {limit / 1e9:.1f} GB here; "
            "measure at a smaller depth, or like a smaller model"
        )


def _case(loaded: _Loaded) -> Case:
    """Count what one step gives back to be appended."""
    attention = loaded.attention
    past = stored(attention, drawn_rows(attention, 1))
    hidden = np.ones((1, 1, attention.shape.hidden_size), dtype=np.float32)
    made = loaded.layer({**loaded.inputs(1, past), "hidden": hidden})
    rows = {name: array for name, array in made.items() if name.startswith("present.")}
    numbers = [array.size for name, array in rows.items() if not name.endswith("_scale")]
    weights = [w.size for name, w in loaded.weights.items() if w.ndim > 1 and not name.startswith("rotary.")]
    total = sum(array.nbytes for array in rows.values())
    return Case(attention.kind, attention.cache, attention.groups, sum(numbers), total, sum(weights))


def _at_depth(loaded: Sequence[_Loaded], depth: int, seconds: float) -> list[Point]:
    rng = np.random.default_rng(depth)
    hidden = rng.standard_normal((QUERIES, 1, 1, loaded[0].attention.shape.hidden_size), dtype=np.float32)
    rows: dict[str, dict[str, Array]] = {}
    calls: list[tuple[Graph, dict[str, Array]]] = []
    errors: list[float | None] = []
    exact: Array = np.empty(0)
    for case in loaded:
        attention = case.attention
        if attention.kind not in rows:
            rows = {attention.kind: drawn_rows(attention, depth)}  # those of the kind before are let go
        given = case.inputs(depth, stored(attention, rows[attention.kind]))
        found = np.stack([case.layer({**given, "hidden": x})["output"] for x in hidden])
        if attention.cache == "float32":
            exact = found
        errors.append(None if attention.cache == "float32" else relative_rms(found, exact))
        calls += [(case.core, {**given, **case.core_inputs()}), (case.layer, {**given, "hidden": hidden[0]})]
    medians = [float(x) for x in np.median(_in_turns(calls, seconds), axis=0)]
    core, layer = medians[::2], medians[1::2]
    base = next(
        i for i, c in enumerate(loaded) if (c.attention.kind, c.attention.cache) == ("mla", "float32")
    )
    return [
        Point(
            case.attention.kind,
            case.attention.cache,
            depth,
            core[i],
            layer[i],
            core[i] / core[base],
            layer[i] / layer[base],
            errors[i],
        )
        for i, case in enumerate(loaded)
    ]


def _in_turns(calls: Sequence[tuple[Graph, Mapping[str, Array]]], seconds: float) -> list[list[float]]:
    """Give the seconds of each call, a round a list: what disturbs the machine meets all of them.

    Every other round goes backwards, so that no call always follows the same one.
    """
    for graph, given in calls:
        graph(given)
    times: list[list[float]] = []
    began = time.perf_counter()
    while len(times) < ROUNDS or (len(times) < MOST_ROUNDS and time.perf_counter() - began < seconds):
        spent = [0.0] * len(calls)
        for i in range(len(calls))[:: -1 if len(times) % 2 else 1]:
            graph, given = calls[i]
            start = time.perf_counter()
            graph(given)
            spent[i] = time.perf_counter() - start
        times.append(spent)
    return times


def relative_rms(found: Array, exact: Array) -> float:
    """Give the RMS of what `found` is off, as a share of the RMS of `exact`."""
    off = np.square(found.astype(np.float64) - exact).mean()
    return float(np.sqrt(off / np.square(exact.astype(np.float64)).mean()))
