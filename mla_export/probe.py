"""A bundle's prompt graph with its gates in reach: what they chose, or a choice given in their place.

Each gate's TopK gets an input and an output beside it; every other node is the bundle's own, and so are the
weights, read from its file. What a given choice weighs is what the gate's own scores say of those experts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from mla_export.open_graph import OneSequence, OpenGraph
from mla_runtime.bundle import Bundle
from mla_runtime.errors import NumericsError

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

_IDS = re.compile(r"layers\.(\d+)\..*router\.expert_ids")
_GIVEN = ".given"
FREE = -1  # in place of an expert's id: as the gate chooses


def open_gates(graph: ir.Graph) -> dict[int, str]:
    """Let experts be given to every gate of `graph`, in place; give layer -> name of the ids.

    A gate's ids [N,K] become an output, and `NAME.given` [N,K] an input, in which `FREE` takes the gate's;
    [1,1] of it leaves all of them free.
    """
    gates: dict[int, str] = {}
    for node in list(graph):
        found = _IDS.fullmatch(node.outputs[-1].name or "")
        if node.op_type != "TopK" or found is None:
            continue
        ids, name = node.outputs[-1], found[0]
        users = list(ids.uses())
        ids.dtype, ids.shape = ir.DataType.INT64, ir.Shape([None, None])
        given = ir.Value(name=name + _GIVEN, shape=ir.Shape([None, None]), type=ids.type)
        least = ir.node("Constant", [], {"value": ir.tensor(np.array(0))}, name=f"{name}.least")
        free = ir.node("Less", [given, least.outputs[0]], name=f"{name}.free")
        taken = ir.node("Where", [free.outputs[0], ids, given], name=f"{name}.taken")
        for user, place in users:
            user.replace_input_with(place, taken.outputs[0])
        graph.insert_after(node, [least, free, taken])
        graph.inputs.append(given)
        graph.outputs.append(ids)
        gates[int(found[1])] = name
    return gates


class Probe:
    """The prompt graph of a bundle, its gates in reach.

    `gates` are the layers that have one, `threads` those of the engine (None: its own choice). The bundle's
    files must have been hashed. Raises BackendError for what does not load.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None):
        names: dict[int, str] = {}
        self.bundle = bundle
        self._graph = OpenGraph(bundle, "prompt", lambda graph: names.update(open_gates(graph)), threads)
        self.gates = tuple(names)
        self._ids = tuple(names.values())

    def run(self, inputs: dict[str, Array]) -> tuple[Array, list[Array], list[Array]]:
        """Compute logits [N,V], the new rows of each cache tensor, and each gate's choice [N,K]."""
        present = [tensor.present for tensor in self.bundle.cache]
        logits, *rest = self._graph.run(["logits", *present, *self._ids], inputs)
        return logits, rest[: len(present)], rest[len(present) :]

    def given(self, choices: Sequence[Array] | None) -> dict[str, Array]:
        """Give the inputs of the gates: a choice [N,K] for each, or leave all of them free."""
        free = np.full((1, 1), FREE)
        given = [free] * len(self._ids) if choices is None else choices
        return {name + _GIVEN: ids for name, ids in zip(self._ids, given, strict=True)}


class Reading:
    """One sequence on its way through a probe, chunk by chunk, with a cache of up to `rows` rows."""

    def __init__(self, probe: Probe, rows: int):
        self._probe = probe
        self._sequence = OneSequence(probe.bundle, rows)

    def __call__(
        self, ids: Sequence[int], choices: Sequence[Array] | None = None
    ) -> tuple[Array, list[Array]]:
        """Append `ids` and give the logits [S,V] after each, and the choice [S,K] that each gate made.

        `choices`, a [S,K] for each gate, are taken in place of the gates' own. Raises NumericsError for
        logits that are not finite.
        """
        inputs = self._sequence.inputs(ids, range(len(ids))) | self._probe.given(choices)
        logits, present, chosen = self._probe.run(inputs)
        if not np.isfinite(logits).all():
            bad = self._sequence.length + int((~np.isfinite(logits)).any(axis=1).argmax())
            raise NumericsError(f"logits at position {bad} are not finite; export it in fp32 and compare")
        self._sequence.append(present)
        return logits, chosen
