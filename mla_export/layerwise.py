"""Running a model over its weights file block by block: one layer is in memory at a time.

Each block is a graph of its own, written as in the whole graphs, so that its kernels are the same. What a
call has come to is handed from block to block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mla_export.assemble import assemble_block, tied_names
from mla_export.layout import Layout
from mla_export.plan import Plan
from mla_export.trace import Traced, TracedModel
from mla_graphs.contract import CacheSpec
from mla_graphs.geometry import Phase
from mla_graphs.lowering import lower
from mla_runtime.backends.ort_codes import CodedWeights
from mla_runtime.errors import ExportError

Array = npt.NDArray[Any]


@dataclass(slots=True)
class Call:
    """New ids of one sequence behind `past` rows; `values` are hidden [1,S,hidden] and what layers share."""

    phase: Phase
    ids: Sequence[int]
    past: int
    values: list[Array] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Layerwise:
    """A model whose weights are in the file `weights`; `single` where one graph serves both phases."""

    plan: Plan
    traced: TracedModel
    layout: Layout
    weights: Path
    single: bool

    def logits(self, calls: Sequence[Call], *, watched: bool = False) -> list[npt.NDArray[np.float32]]:
        """Make the calls of one sequence in turn and give the logits [V] after each one's last id.

        Raises `ExportError` where a block gives what is not finite, naming the block, or with `watched` the
        operator: all float16 values are then rounded to float16 and looked at.
        """
        for call, block in self._blocks(calls, "", watched):
            call.values = block(self._prelude_inputs(call))
        for i in range(self.plan.geometry.num_hidden_layers):
            specs = [spec for spec in self.plan.contract.cache if spec.layer == i]
            rows = [_zeros(spec, 0) for spec in specs]
            for call, block in self._blocks(calls, f"layers.{i}.", watched):
                shown = rows if call.past else [_zeros(spec, 1) for spec in specs]
                call.values[0], *new = block([*call.values, *shown])
                rows = [np.concatenate(pair, axis=1) for pair in zip(rows, new, strict=True)]
        found = []
        for call, block in self._blocks(calls, "head.", watched):
            last = np.array([len(call.ids) - 1], dtype=np.int64)
            found.append(block([call.values[0], last])[0][0])
        return found

    def _blocks(self, calls: Sequence[Call], prefix: str, watched: bool) -> Iterator[tuple[Call, _Block]]:
        """Give each call with the block for its phase; neighbours share it, and only one is there at once."""
        for phase, group in groupby(calls, self._phase):
            block = self._block(prefix, phase, watched)
            for call in group:
                yield call, block
            block.close()  # whoever iterates still holds it

    def _phase(self, call: Call) -> Phase:
        return "prompt" if self.single else call.phase

    def _block(self, prefix: str, phase: Phase, watched: bool) -> _Block:
        renamed: Mapping[str, str] = {}
        traced: Traced
        if prefix == "":
            traced = self.traced.prelude
        elif prefix == "head.":
            traced, renamed = self.traced.head, tied_names(self.plan)
        else:
            kind = self.plan.geometry.layer_kinds[int(prefix.split(".")[1])]
            traced = self.traced.layer(kind, phase)
        model = assemble_block(self.plan, traced, prefix, self.layout, self.weights.name, renamed)
        model = lower(model, self.plan.target, phase)
        name = prefix.rstrip(".") or "embedding"
        weights = self.plan.weights if self.plan.target == "portable" else None
        bits = None if weights is None else weights.bits
        codes = CodedWeights(bits, written_out=bits is not None)  # a block is small
        return _Block(name, model, self.weights.parent, codes, packed=self.single, watched=watched)

    def _prelude_inputs(self, call: Call) -> list[Array]:
        count = len(call.ids)
        return [
            np.array([call.ids], dtype=np.int64),
            np.arange(call.past, call.past + count, dtype=np.int64)[None],
            np.array([call.past], dtype=np.int64),
            np.array([count], dtype=np.int64),
            _zeros(self.plan.contract.cache[0], max(call.past, 1)),
        ]


class _Block:
    """A block loaded in ONNX Runtime; inputs and outputs are in the order of its graph."""

    def __init__(
        self, name: str, model: ir.Model, folder: Path, codes: CodedWeights, *, packed: bool, watched: bool
    ) -> None:
        import onnxruntime

        graph = model.graph
        self._name = name
        self._inputs = [str(value.name) for value in graph.inputs]
        self._outputs = [str(value.name) for value in graph.outputs]
        self._watched: dict[str, str] = {}  # a value's name to what the whole graph calls it
        if watched:
            halves = [v for node in graph for v in node.outputs if v.dtype == ir.DataType.FLOAT16]
            self._watched = {str(v.name): _known_as(v) for v in halves}
            graph.outputs.extend(value for value in halves if not value.is_graph_output())
        options = onnxruntime.SessionOptions()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False  # it grows in powers of two
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        more = codes.apply(options)
        if not packed:
            options.add_session_config_entry("session.disable_prepacking", "1")
        content = ir.to_proto(model).SerializeToString()
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(content, options, providers=providers, **more)

    def close(self) -> None:
        """Free graph and weights."""
        del self._session

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """Run the block; raises `ExportError` where a result is not finite."""
        names = list(dict.fromkeys([*self._outputs, *self._watched]))
        results = self._session.run(names, dict(zip(self._inputs, inputs, strict=True)))
        found = dict(zip(names, results, strict=True))
        for name, known_as in self._watched.items():
            if not np.isfinite(found[name]).all():
                msg = (
                    f"{known_as}: its result is not finite in float16 (limit {np.finfo(np.float16).max:.0f}) "
                    f"for the first tokens of a text; export with --dtype fp32"
                )
                raise ExportError(msg)
        outputs = [found[name] for name in self._outputs]
        if not np.isfinite(outputs[0]).all():
            msg = f"{self._name}: its result is not finite in {outputs[0].dtype} for the first tokens of a "
            raise ExportError(msg + "text; the checkpoint is damaged, or needs a wider type")
        return outputs


def _known_as(value: ir.Value) -> str:
    """Give an output of the block its operator's name, and any other value its own."""
    node = value.producer()
    return str(node.name if node is not None and value.is_graph_output() else value.name)


def _zeros(spec: CacheSpec, rows: int) -> Array:
    row = [size for size in spec.past.shape[2:] if isinstance(size, int)]
    return np.zeros((1, rows, *row), dtype=spec.past.dtype)
