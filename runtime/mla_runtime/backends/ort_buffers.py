"""Cache buffers in host memory for ONNX Runtime: bound in place for one sequence, in buckets for more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mla_runtime.backends.base import Call, Float32
from mla_runtime.backends.stand_in import stand_in
from mla_runtime.bundle import Bundle
from mla_runtime.cache import bucket
from mla_runtime.errors import BackendError, CapacityError
from mla_runtime.manifest import Phase
from mla_runtime.top import Finite, Top, top_of

Array = npt.NDArray[Any]


class Graphs(Protocol):
    """Where the buffers get the graphs that they bind themselves to."""

    def graph(self, phase: Phase, batch: int) -> Any:
        """Give the inference session of a phase."""


class _Buffers:
    """What both kinds share: the call's inputs, the logits, and errors in the tree of the toolkit."""

    def __init__(self, graphs: Graphs, bundle: Bundle, batch: int, max_rows: int) -> None:
        self._graphs = graphs
        self._tensors = bundle.cache
        self._vocab = bundle.model.vocab_size
        self._batch = batch
        self._max_rows = max_rows
        self._rows: list[Array] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers; rows of a single sequence that were never written are not resident."""
        return sum(rows.nbytes for rows in self._rows)

    def run(self, call: Call) -> Float32:
        """Compute logits; each kind shows its cache in its own way."""
        raise NotImplementedError

    def top(self, call: Call, count: int) -> tuple[Top, Finite]:
        """Compute logits and find the best of them: they are in this memory anyway."""
        return top_of(self.run(call), count)

    def rows(self, sequence: int, count: int) -> dict[str, Array]:
        """Copy the first `count` rows [count, *row] of a sequence out, by the name of their `past` input."""
        pairs = zip(self._tensors, self._rows, strict=True)
        return {tensor.past: rows[sequence, :count].copy() for tensor, rows in pairs}

    def fill(self, rows: int) -> None:
        """Write `rows` rows of small random numbers in each sequence."""
        random = np.random.default_rng(0)
        for buffer in self._rows:
            # Numbers, not zeros: rows never written share one page, and reading that measures nothing.
            numbers = stand_in(random, (min(rows, 64), *buffer.shape[2:]), buffer.dtype)
            for start in range(0, rows, 64):
                count = min(64, rows - start)
                buffer[:, start : start + count] = numbers[:count]

    def close(self) -> None:
        """Free the buffers."""
        self._rows = []

    def _allocate(self, rows: int) -> list[Array]:
        """Allocate zeroed [B, rows, *row] for every cache tensor."""
        need = sum(self._batch * rows * t.row_bytes for t in self._tensors)
        with _or_capacity(f"cache rows of {self._batch} × {rows} tokens", need):
            return [np.zeros((self._batch, rows, *t.row), dtype=t.dtype) for t in self._tensors]

    def _run(self, call: Call, bind_cache: Callable[[Any], None]) -> Float32:
        """Bind the inputs, let `bind_cache` bind the cache, and run the graph."""
        graph = self._graphs.graph(call.phase, self._batch)
        binding = graph.io_binding()
        inputs = {
            "input_ids": call.input_ids,
            "position_ids": call.position_ids,
            "past_lengths": call.past_lengths,
            "new_lengths": call.new_lengths,
            "logit_rows": call.logit_rows,
        }
        for name, value in inputs.items():
            bind(binding.bind_input, name, value)
        shown = (len(call.logit_rows), self._vocab)
        with _or_capacity(f"logits of {shown[0]} × {shown[1]}", 4 * math.prod(shown)):
            logits: Float32 = np.empty(shown, dtype=np.float32)
        bind(binding.bind_output, "logits", logits)
        bind_cache(binding)
        try:
            graph.run_with_iobinding(binding)
        except Exception as cause:  # onnxruntime's errors share no base class of their own
            batch, width = call.input_ids.shape
            where = (
                f"{call.phase} graph, {batch} × {width} new tokens at depth {int(call.past_lengths.max())}"
            )
            if "allocat" in str(cause).lower():
                msg = f"{where}: memory is short ({cause}); use shorter chunks or a smaller max_context"
                raise CapacityError(msg) from cause
            raise BackendError(f"{where}: {cause}") from cause
        return logits


class SlotBuffers(_Buffers):
    """One sequence: T is its exact length and new rows are computed straight into their slots.

    Room for `max_rows` is reserved at once. The system backs rows with memory when they are first
    written, so a short sequence stays small, and no row is ever moved.
    """

    def __init__(self, graphs: Graphs, bundle: Bundle, batch: int, max_rows: int) -> None:
        super().__init__(graphs, bundle, batch, max_rows)
        self._rows = self._allocate(max_rows)
        # An empty cache is shown as one masked row that is not the slot which the step writes.
        self._empty = [np.zeros((1, 1, *t.row), dtype=t.dtype) for t in self._tensors]

    def run(self, call: Call) -> Float32:
        """Compute logits; the new rows land behind the valid ones."""
        past = int(call.past_lengths[0])
        end = past + call.input_ids.shape[1]

        def bind_cache(binding: Any) -> None:
            for tensor, rows, empty in zip(self._tensors, self._rows, self._empty, strict=True):
                bind(binding.bind_input, tensor.past, rows[:, :past] if past else empty)
                bind(binding.bind_output, tensor.present, rows[:, past:end])

        return self._run(call, bind_cache)

    def keep(self, call: Call) -> None:
        """Do nothing: the rows are in their slots already."""

    def wipe(self, call: Call) -> None:
        """Zero the slots of `call`."""
        past = int(call.past_lengths[0])
        for rows in self._rows:
            rows[:, past : past + call.input_ids.shape[1]] = 0


class BucketBuffers(_Buffers):
    """Several sequences: T is the row stride of buffers that grow by buckets; new rows are copied in.

    New rows of sequences of different lengths lie at no one stride in the cache, so the graph writes to
    buffers of its own and `keep` appends the rows that count.
    """

    def __init__(self, graphs: Graphs, bundle: Bundle, batch: int, max_rows: int) -> None:
        super().__init__(graphs, bundle, batch, max_rows)
        self._rows = self._allocate(bucket(1, max_rows))
        self._new: list[Array] = []

    def run(self, call: Call) -> Float32:
        """Compute logits; the new rows wait in their own buffers."""
        self._reserve(int((call.past_lengths + call.new_lengths).max()))
        width = call.input_ids.shape[1]
        if not self._new or self._new[0].shape[1] != width:
            self._new = self._allocate(width)

        def bind_cache(binding: Any) -> None:
            for tensor, rows, new in zip(self._tensors, self._rows, self._new, strict=True):
                bind(binding.bind_input, tensor.past, rows)
                bind(binding.bind_output, tensor.present, new)

        return self._run(call, bind_cache)

    def keep(self, call: Call) -> None:
        """Append to each sequence the rows that count."""
        pairs = zip(call.past_lengths.tolist(), call.new_lengths.tolist(), strict=True)
        for index, (past, count) in enumerate(pairs):
            if count:
                for rows, new in zip(self._rows, self._new, strict=True):
                    rows[index, past : past + count] = new[index, :count]

    def wipe(self, call: Call) -> None:
        """Zero the rows that `keep` may have begun to append."""
        pairs = zip(call.past_lengths.tolist(), call.new_lengths.tolist(), strict=True)
        for index, (past, count) in enumerate(pairs):
            for rows in self._rows:
                rows[index, past : past + count] = 0

    def fill(self, rows: int) -> None:
        """Write `rows` rows of small random numbers in each sequence."""
        self._reserve(rows)
        super().fill(rows)

    def _reserve(self, rows: int) -> None:
        """Grow to a bucket that holds `rows`; the old rows move, the new ones are zero."""
        have = self._rows[0].shape[1]
        if rows <= have:
            return
        grown = self._allocate(bucket(rows, self._max_rows))
        for old, new in zip(self._rows, grown, strict=True):
            new[:, :have] = old
        self._rows = grown


@contextmanager
def _or_capacity(what: str, nbytes: int) -> Iterator[None]:
    """Turn a `MemoryError` into the `CapacityError` that says what took how much."""
    try:
        yield
    except MemoryError as cause:
        msg = f"{what} take {nbytes} bytes, which are not there; "
        raise CapacityError(msg + "open the session with a smaller max_context or batch") from cause


def bind(method: Callable[..., None], name: str, array: Array) -> None:
    """Bind the memory of a contiguous array; the caller keeps it alive until the run is over."""
    method(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
