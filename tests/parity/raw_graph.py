"""Run a bundle's graphs by their contract alone, without the runtime: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from mla_runtime.backends.ort_codes import CodedWeights
from mla_runtime.bundle import Bundle


class RawGraph:
    def __init__(self, bundle: Path, phase: str):
        self.bundle = Bundle.open(bundle)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        more = CodedWeights.of(self.bundle).apply(options)
        file = bundle / self.bundle.manifest.graphs[phase].file
        self.session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"], **more)

    def empty(self, batch: int, rows: int = 1) -> dict[str, np.ndarray]:
        """A cache of `rows` zero rows, none of which counts unless `past_lengths` says so."""
        return {t.past: np.zeros((batch, rows, *t.row), dtype=t.dtype) for t in self.bundle.cache}

    def __call__(
        self,
        ids: Sequence[Sequence[int]],
        *,
        past: dict[str, np.ndarray] | None = None,
        past_lengths: Sequence[int] | None = None,
        new_lengths: Sequence[int] | None = None,
        positions: np.ndarray | None = None,
        logit_rows: Sequence[int] | None = None,
    ) -> dict[str, np.ndarray]:
        """Give every output by name. By default all rows count, follow the cache, and go through the head."""
        input_ids = np.asarray(ids, dtype=np.int64)
        batch, width = input_ids.shape
        lengths = np.asarray([0] * batch if past_lengths is None else past_lengths, dtype=np.int64)
        rows = range(batch * width) if logit_rows is None else logit_rows
        feed: dict[str, Any] = {
            "input_ids": input_ids,
            "position_ids": lengths[:, None] + np.arange(width) if positions is None else positions,
            "past_lengths": lengths,
            "new_lengths": np.asarray(
                [width] * batch if new_lengths is None else new_lengths, dtype=np.int64
            ),
            "logit_rows": np.asarray(list(rows), dtype=np.int64),
            **(self.empty(batch) if past is None else past),
        }
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, feed), strict=True))

    def appended(self, past: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The cache with all new rows behind it."""
        return {t.past: np.concatenate([past[t.past], found[t.present]], axis=1) for t in self.bundle.cache}
