"""A graph of the comparison, lowered for a backend and loaded there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mla_runtime.errors import BackendError

if TYPE_CHECKING:
    import onnx_ir as ir

    from mla_graphs.baselines import Codes

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

# a backend, the target its graphs are written for, and the 8-bit type of that target's rows
TARGETS: dict[str, tuple[str, Codes]] = {"ort:cpu": ("ort-cpu", "uint8")}


def check(backend: str) -> None:
    """Raise `BackendError`, which says why, where graphs cannot be run on `backend`."""
    if backend not in TARGETS:
        raise BackendError(f"no backend {backend!r} for single graphs; known are {', '.join(TARGETS)}")
    try:
        import onnxruntime  # noqa: F401 - to fail here, with what to do
    except ImportError as cause:
        raise BackendError(
            f"backend {backend}: onnxruntime is not installed; install onnxruntime (extra `cpu`)"
        ) from cause


class Graph:
    """A model of `mla::` operators, lowered to `target` and loaded in ONNX Runtime with `threads` of its own.

    Weights without values become inputs: several graphs then share the same arrays, and a model of any size
    loads without being written down. One row is multiplied as fast as with weights in the graph, as it is in
    a bundle, whose step graph is not pre-packed either.
    """

    def __init__(self, model: ir.Model, target: str, threads: int | None = None) -> None:
        import onnx_ir as ir
        import onnxruntime

        from mla_graphs.lowering import lower

        model = lower(model, target, "step")
        graph = model.graph
        for name, value in list(graph.initializers.items()):
            if value.const_value is None:
                del graph.initializers[name]
                graph.inputs.append(value)
        options = onnxruntime.SessionOptions()
        options.enable_mem_pattern = False
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # the threads of a graph that has finished would wait in a loop, on the cores of the one that is timed
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        content = ir.to_proto(model).SerializeToString()
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._inputs = [value.name for value in self._session.get_inputs()]
        self.outputs: list[str] = [value.name for value in self._session.get_outputs()]

    def __call__(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """Run with the inputs of the graph among `given` and give the outputs by name."""
        found = self._session.run(None, {name: given[name] for name in self._inputs})
        return dict(zip(self.outputs, found, strict=True))
