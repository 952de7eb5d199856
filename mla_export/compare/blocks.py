"""What each block gave: a bundle's graphs run once more with values within them among the outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from mla_export import progress
from mla_export.compare.decode import Layers
from mla_export.open_graph import OneSequence, OpenGraph
from mla_runtime.bundle import Bundle
from mla_runtime.errors import BackendError
from mla_runtime.manifest import PHASES, Phase

_BLOCK = "layers.{}.ffn_residual"  # what a block gives, by the name that every target keeps


def block_outputs(bundle: Bundle, prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> Layers:
    """Run the forced `rows` once more with every block's output in reach: [prompt][layer], each [S, hidden].

    On ONNX Runtime's CPU provider. Raises BackendError where a graph has no value of that name.
    """
    names = [_BLOCK.format(i) for i in range(bundle.model.layers)]
    graphs = {phase: open_values(bundle, phase, names) for phase in PHASES}
    present = [tensor.present for tensor in bundle.cache]
    found: Layers = []
    with progress.task("block by block", len(rows)) as advance:
        for prompt, row in zip(prompts, rows, strict=True):
            sequence, parts = OneSequence(bundle, len(row)), []
            for phase, ids in calls(bundle, len(prompt), row):
                values = graphs[phase].run([*names, *present], sequence.inputs(ids, [len(ids) - 1]))
                parts.append(values[: len(names)])
                sequence.append(values[len(names) :])
            found.append([np.concatenate(layer, axis=1)[0] for layer in zip(*parts, strict=True)])
            advance(1)
    return found


def calls(bundle: Bundle, prompt: int, row: Sequence[int]) -> list[tuple[Phase, Sequence[int]]]:
    """Cut a row into the runs that a session makes of it: chunks of the prompt, then a step a token."""
    starts = range(0, prompt, bundle.chunk)
    chunks: list[tuple[Phase, Sequence[int]]] = [
        ("prompt", row[start : min(start + bundle.chunk, prompt)]) for start in starts
    ]
    return chunks + [("step", row[at : at + 1]) for at in range(prompt, len(row))]


def open_values(bundle: Bundle, phase: Phase, names: Sequence[str]) -> OpenGraph:
    """Load a graph with the values called `names` among its outputs."""

    def change(graph: ir.Graph) -> None:
        values = {value.name: value for node in graph for value in node.outputs}
        for name in names:
            if name not in values:
                raise BackendError(
                    f"{bundle.path}: the {phase} graph has no value {name!r}; export the bundle again"
                )
            if not values[name].is_graph_output():
                graph.outputs.append(values[name])

    return OpenGraph(bundle, phase, change)
