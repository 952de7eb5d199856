"""What INT8 rows cost on real rows: every layer of a checkpoint with the activations of a text.

Hugging Face's layers carry the text from layer to layer in float32. At each of them the comparison's graphs
get the checkpoint's own weights and what that layer's attention is fed with: most of a window first, whose
rows the graph stores, then the rest of it as queries over the stored rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mla_export import progress
from mla_export.attention.cases import Array, tables, weight_shapes
from mla_export.attention.graphs import TARGETS, Graph, check
from mla_export.attention.measure import relative_rms
from mla_export.calibration_text import read_calibration
from mla_export.checkpoint import Checkpoint
from mla_export.params import Recipes
from mla_export.passage import Passage
from mla_export.reference import Reference
from mla_export.text_files import read_text_files
from mla_graphs.baselines import Attention, Cache, Kind, Shape, layer
from mla_graphs.geometry import Geometry
from mla_runtime.errors import ConfigError, InputError

TOKENS = 1024  # of the text
QUERIES = 256  # tokens at the end of each window whose outputs the error is of
# the checkpoint's attention is MLA: it has no MHA, GQA or MQA of its own
CASES: tuple[tuple[Kind, Cache], ...] = (
    ("expanded", "float32"),
    ("expanded", "int8"),
    ("mla", "float32"),
    ("mla", "int8 latent"),
    ("mla", "int8"),
)


@dataclass(frozen=True, slots=True)
class TextError:
    """RMS error of the layers' outputs beside float32 rows, as a share of their RMS: one number a layer."""

    kind: Kind
    cache: Cache
    layers: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Give the mean over layers."""
        return sum(self.layers) / len(self.layers)

    @property
    def worst(self) -> int:
        """Give the layer that is furthest off."""
        return self.layers.index(max(self.layers))


def measure_text(
    model: str | Path, text: str | Path, backend: str, threads: int | None = None
) -> list[TextError]:
    """Measure the int8 caches on `text` in every layer of the checkpoint `model`, on `backend`.

    Raises `InputError` for a text that cannot be read or is too short, `ConfigError` for what these graphs
    lack, and otherwise what reading the checkpoint does.
    """
    check(backend)
    if not Path(model).is_dir() or not any(Path(model).glob("*.safetensors")):
        raise InputError(f"{model}: real rows need a checkpoint with weights; leave --text out, or name one")
    checkpoint = Checkpoint.open(model)
    reference = Reference(checkpoint)
    g = reference.geometry
    if g.attention_bias:
        raise ConfigError(f"{model}: its attention has biases, which the comparison's graphs have not")
    files = read_text_files(checkpoint.path, checkpoint.config, g.vocab_size)
    windows = read_calibration(text, TOKENS, files, g.vocab_size, g.max_context).windows
    if min(map(len, windows)) < 2 * QUERIES:
        raise InputError(f"{text}: has windows of less than {2 * QUERIES} tokens; give a longer text")
    target, codes = TARGETS[backend]
    attentions = [Attention(Shape.of(g), kind, cache, codes) for kind, cache in CASES]
    graphs = [Graph(layer(attention), target, threads) for attention in attentions]
    turn = tables(attentions[0].shape, max(map(len, windows)))
    passage = Passage(reference, "float32", windows)
    found: dict[tuple[Kind, Cache], list[float]] = {case: [] for case in CASES}
    with progress.task("text, layer by layer", g.num_hidden_layers) as advance:
        for index in range(g.num_hidden_layers):
            normed = _normed(passage.hidden, reference, index)
            passed: list[list[Array]] = []
            for attention, graph in zip(attentions, graphs, strict=True):
                weights = {**_weights(reference, g, attention, index), **turn}
                passed.append([_last(graph, attention, weights, x) for x in normed])
            for case, error in _errors(passed).items():
                found[case].append(error)
            passage.apply(index, dict(reference.tensors(index)))
            advance(1)
    return [TextError(*case, tuple(values)) for case, values in found.items() if case[1] != "float32"]


def _normed(hidden: Sequence[torch.Tensor], reference: Reference, index: int) -> list[Array]:
    """Give what attention is fed with: hidden states [1,S,hidden] behind the layer's first norm."""
    weight = reference.tensors(index)["input_layernorm.weight"].float().numpy()
    states = [x.float().numpy() for x in hidden]
    epsilon = reference.geometry.rms_norm_eps
    return [x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + epsilon) * weight for x in states]


def _weights(reference: Reference, g: Geometry, attention: Attention, index: int) -> dict[str, Array]:
    """Read the weights that the graph of `attention` asks for."""
    recipes = Recipes(
        g, "expanded" if attention.kind == "expanded" else "factored", torch.float32, reference.read
    )
    whole = {
        name: torch.cat(list(recipes(f"layers.{index}.{name}"))) for name in weight_shapes(layer(attention))
    }
    return {name: weight.float().contiguous().numpy() for name, weight in whole.items()}


def _last(graph: Graph, attention: Attention, weights: Mapping[str, Array], x: Array) -> Array:
    """Give the outputs of the last tokens of a window [1,S,hidden], which attend to stored rows."""
    split = x.shape[1] - QUERIES
    empty = {
        row.past.name: np.zeros(
            (row.groups, 1, *(d for d in row.past.shape[2:] if isinstance(d, int))), row.past.dtype
        )
        for row in attention.rows
    }
    first = graph({**weights, **empty, **_span(x[:, :split], 0)})
    past = {f"past.{row.name}": first[row.present.name] for row in attention.rows}
    return graph({**weights, **past, **_span(x[:, split:], split)})["output"]


def _span(x: Array, start: int) -> dict[str, Array]:
    count = x.shape[1]
    return {
        "hidden": np.ascontiguousarray(x, dtype=np.float32),
        "position_ids": np.arange(start, start + count)[None],
        "past_lengths": np.array([start]),
        "new_lengths": np.array([count]),
    }


def _errors(passed: Sequence[Sequence[Array]]) -> dict[tuple[Kind, Cache], float]:
    """Hold the outputs of each case, window by window, against those of its kind with float32 rows."""
    found, exact = {}, np.empty(0)
    for case, outputs in zip(CASES, passed, strict=True):
        together = np.concatenate(list(outputs), axis=1)
        if case[1] == "float32":
            exact = together
        found[case] = relative_rms(together, exact)
    return found
