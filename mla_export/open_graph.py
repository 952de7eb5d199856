"""A bundle's graph with more of its values in reach, run on one sequence by ONNX Runtime's CPU provider.

The nodes and weights are the bundle's own; what is added are inputs and outputs. The graph is loaded as the
backend `ort:cpu` loads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from mla_runtime.backends.ort_codes import CodedWeights
from mla_runtime.bundle import Bundle
from mla_runtime.errors import BackendError
from mla_runtime.manifest import Phase

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"


class OpenGraph:
    """The graph of a phase, changed by `change` before it is loaded.

    `threads` are those of the engine (None: its own choice). The bundle's files must have been hashed.
    Raises BackendError for what does not load.
    """

    def __init__(
        self, bundle: Bundle, phase: Phase, change: Callable[[ir.Graph], None], threads: int | None = None
    ) -> None:
        import onnxruntime

        self.bundle, self.phase = bundle, phase
        file = bundle.graph(phase).file
        model = ir.load(bundle.paths[file])
        change(model.graph)
        options = onnxruntime.SessionOptions()
        options.enable_mem_pattern = False
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or 0  # 0: its own choice
        other: Phase = "step" if phase == "prompt" else "prompt"
        codes = CodedWeights.of(bundle)
        more = codes.apply(options)
        if (
            file != bundle.graph(other).file and not codes.must_be_packed
        ):  # as the backend: a graph of its own runs on mapped weights
            options.add_session_config_entry("session.disable_prepacking", "1")
        # the graph comes from memory, its weights from where they are
        folder = str(bundle.path.resolve())
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        content = ir.to_proto(model).SerializeToString()
        bundle.check_unchanged()
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"], **more
            )
        except Exception as cause:  # onnxruntime's errors share no base class of their own
            where = f"{bundle.paths[file]} with more outputs"
            raise BackendError(f"{where} does not load: {cause}") from cause
        bundle.check_unchanged()

    def run(self, outputs: Sequence[str], inputs: dict[str, Array]) -> list[Array]:
        """Compute the values called `outputs`; raises BackendError where the graph fails."""
        try:
            found: list[Array] = self._session.run(list(outputs), inputs)
        except Exception as cause:  # as above
            msg = f"{self.bundle.path}: {self.phase} graph with more outputs: {cause}"
            raise BackendError(msg) from cause
        return found


class OneSequence:
    """One sequence and its cache of up to `rows` rows, shown to graphs and appended to.

    With `widened` float16 rows are kept in float32.
    """

    def __init__(self, bundle: Bundle, rows: int, *, widened: bool = False) -> None:
        self.length = 0
        self._tensors = bundle.cache
        dtypes = ["float32" if widened and t.dtype == "float16" else t.dtype for t in bundle.cache]
        # an empty cache is shown as one masked row
        shapes = [(1, max(1, rows), *t.row) for t in bundle.cache]
        self._cache = [np.zeros(*pair) for pair in zip(shapes, dtypes, strict=True)]

    def inputs(self, ids: Sequence[int], logit_rows: Sequence[int]) -> dict[str, Array]:
        """Give a graph's inputs for new `ids` behind what is cached."""
        past, count = self.length, len(ids)
        shown = {t.past: rows[:, : max(1, past)] for t, rows in zip(self._tensors, self._cache, strict=True)}
        return {
            "input_ids": np.array([ids], dtype=np.int64),
            "position_ids": np.arange(past, past + count)[None],
            "past_lengths": np.array([past]),
            "new_lengths": np.array([count]),
            "logit_rows": np.array(logit_rows),
            **shown,
        }

    def append(self, present: Sequence[Array]) -> None:
        """Append the new rows of every cache tensor, in the bundle's order."""
        count = present[0].shape[1]
        for rows, new in zip(self._cache, present, strict=True):
            rows[:, self.length : self.length + count] = new
        self.length += count
