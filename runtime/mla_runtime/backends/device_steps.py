"""One run of a graph on the device, and the recordings of steps.

A step is inputs in, engine, choice, new rows onto the cache, answer out: the same work at the same addresses
each time while T and what comes back stay the same. So it is run as it is the first time, which lets TensorRT
prepare itself for the shapes, recorded as a CUDA graph the second time, and after that only done again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from mla_runtime.backends import kernels
from mla_runtime.backends.base import Call
from mla_runtime.backends.contexts import Context, Engines
from mla_runtime.backends.cuda import Bytes, Stream
from mla_runtime.backends.session_places import (
    Answer,
    SessionPlaces,
    Sizes,
    cache_shapes,
    input_places,
    input_shapes,
)
from mla_runtime.bundle import Bundle
from mla_runtime.errors import EngineError, MlaError
from mla_runtime.manifest import Phase

Want = int | None  # how many of the best logits come back; None: all of them
_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_longlong


class DeviceSteps:
    """What a session runs, at fixed addresses from `base` on.

    `captures` is how many steps were recorded; `uncaptured` says why no more are, where that was refused.
    """

    def __init__(
        self,
        engines: Engines,
        bundle: Bundle,
        stream: Stream,
        sizes: Sizes,
        places: SessionPlaces,
        base: int,
        weights: Mapping[str, int],
        pinned: tuple[Bytes, Bytes],
    ) -> None:
        self._engines = engines
        self._bundle = bundle
        self._stream = stream
        self._sizes = sizes
        self._places = places
        self._base = base
        self._weights = weights
        self._given, self._found = pinned
        self._activation_bytes = places.nbytes - places.activations
        self._prompt: Context | None = None
        self._prompt_shape = (0, 0)
        self._steps: dict[int, Context] = {}
        self._warm: set[int] = set()
        self._graphs: dict[tuple[int, Want], Any] = {}
        self.captures = 0
        self.uncaptured: str | None = None

    def write_table(self) -> None:
        """Tell the device where cache tensors and their new rows lie."""
        table = self._given[: kernels.TABLE_ENTRY * len(self._bundle.cache)].view(np.int64).reshape(-1, 3)
        entries = zip(self._bundle.cache, self._places.cache, self._places.fresh, strict=True)
        for line, (tensor, cache, fresh) in zip(table, entries, strict=True):
            line[:] = (self._base + cache, self._base + fresh, tensor.row_bytes)
        self._stream.copy_in(self._base + self._places.table, table)

    def queue(self, call: Call, rows: int, want: Want) -> None:
        """Queue a call with T = `rows`; what comes back is in the second pinned memory once that is done."""
        self._write_inputs(call)
        if call.phase == "prompt":
            self._queue(self._prompt_context(call.input_ids.shape[1], rows), call, rows, want)
            return
        context = self._step_context(rows)
        graph = self._graphs.get((rows, want))
        if graph is None and rows in self._warm and self.uncaptured is None:
            graph = self._capture(context, call, rows, want)
        if graph is None:
            self._queue(context, call, rows, want)
        else:
            self._stream.replay(graph)
        self._warm.add(rows)

    def close(self) -> None:
        """Forget recordings and contexts."""
        for graph in self._graphs.values():
            self._stream.forget(graph)
        self._graphs.clear()
        self._steps.clear()
        self._prompt = None

    def _write_inputs(self, call: Call) -> None:
        batch, width = call.input_ids.shape
        # As many rows are projected as there are sequences, so that the shape stays: one of them again.
        shown = np.full(batch, call.logit_rows[0])
        shown[: len(call.logit_rows)] = call.logit_rows
        values = {
            "input_ids": call.input_ids,
            "position_ids": call.position_ids,
            "past_lengths": call.past_lengths,
            "new_lengths": call.new_lengths,
            "logit_rows": shown,
        }
        offsets, _ = input_places(self._bundle.manifest.inputs, batch, width)
        for name, offset in offsets.items():
            self._given[offset : offset + values[name].nbytes].view(np.int64)[:] = values[name].reshape(-1)

    def _queue(self, context: Context, call: Call, rows: int, want: Want) -> None:
        batch, width = call.input_ids.shape
        offsets, nbytes = input_places(self._bundle.manifest.inputs, batch, width)
        inputs = self._base + self._places.inputs
        self._stream.copy_in(inputs, self._given[:nbytes])
        context.enqueue(self._stream.handle)
        if want is not None:
            self._choose(want)
        self._stream.launch(
            "append",
            (batch * width, len(self._bundle.cache)),
            (
                (self._base + self._places.table, _POINTER),
                (inputs + offsets["past_lengths"], _POINTER),
                (inputs + offsets["new_lengths"], _POINTER),
                (width, _NUMBER),
                (rows, _NUMBER),
            ),
        )
        if want is None:
            logits = self._found[: 4 * batch * self._sizes.vocab]
            self._stream.copy_out(logits, self._base + self._places.logits)
        else:
            answer = self._found[: Answer(batch, want).nbytes]
            self._stream.copy_out(answer, self._base + self._places.answer)

    def _choose(self, count: int) -> None:
        """Sort windows of the logits, then windows of the best of those, until one is left."""
        batch, vocab = self._sizes.batch, self._sizes.vocab
        answer, layout = self._base + self._places.answer, Answer(batch, count)
        source, target = (self._base + place for place in self._places.keys)
        self._stream.zero(answer + layout.flags, 4 * batch)
        blocks = kernels.windows(vocab)
        logits = ((self._base + self._places.logits, _POINTER), (vocab, _NUMBER))
        kept = ((source, _POINTER), (count, _NUMBER), (answer + layout.flags, _POINTER))
        self._stream.launch("best", (blocks, batch), (*logits, *kept))
        while blocks > 1:
            found = ((source, _POINTER), (blocks * count, _NUMBER))
            blocks = kernels.windows(blocks * count)
            self._stream.launch("merge", (blocks, batch), (*found, (target, _POINTER), (count, _NUMBER)))
            source, target = target, source
        result = ((answer, _POINTER), (answer + layout.logits, _POINTER))
        self._stream.launch("decode", (1, batch), ((source, _POINTER), (count, _NUMBER), *result))

    def _capture(self, context: Context, call: Call, rows: int, want: Want) -> Any:
        """Record a step; None where the engine does not let it, which is then not tried again."""
        if not context.can_capture(self._stream.handle):
            self.uncaptured = "TensorRT says that this engine cannot be recorded as a CUDA graph"
            return None
        self._stream.begin_capture()
        try:
            self._queue(context, call, rows, want)
        except BaseException as cause:
            self._end_failed_capture()
            if not isinstance(cause, MlaError):
                raise
            self.uncaptured = str(cause)
            return None
        try:
            graph = self._stream.end_capture()
        except MlaError as cause:
            self.uncaptured = str(cause)
            return None
        self._graphs[rows, want] = graph
        self.captures += 1
        return graph

    def _end_failed_capture(self) -> None:
        try:
            self._stream.forget(self._stream.end_capture())
        except MlaError:  # which says again that the recording failed
            return

    def _step_context(self, rows: int) -> Context:
        """Give the context of steps at T = `rows`: its shapes never change, so recordings stay true."""
        if rows not in self._steps:
            context = self._engines.context("step", self._stream.handle, fixed=True)
            self._prepare(context, "step", 1, rows)
            self._steps[rows] = context
        return self._steps[rows]

    def _prompt_context(self, width: int, rows: int) -> Context:
        """Give the one context of prompts, in these shapes."""
        if self._prompt is None:
            self._prompt = self._engines.context("prompt", self._stream.handle, fixed=False)
        if self._prompt_shape != (width, rows):
            self._prompt_shape = (0, 0)  # until all of it is set
            self._prepare(self._prompt, "prompt", width, rows)
            self._prompt_shape = (width, rows)
        return self._prompt

    def _prepare(self, context: Context, phase: Phase, width: int, rows: int) -> None:
        batch, bundle = self._sizes.batch, self._bundle
        inputs = input_shapes(bundle.manifest.inputs, batch, width)
        need = context.set_shapes(inputs | cache_shapes(bundle.cache, batch, rows))
        if need > self._activation_bytes:
            msg = f"the {phase} engine wants {need:,} bytes of activations for {batch} × {width} tokens at "
            raise EngineError(f"{msg}T = {rows}, where {self._activation_bytes:,} are for the largest shapes")
        context.give_memory(self._base + self._places.activations, self._activation_bytes)
        offsets, _ = input_places(bundle.manifest.inputs, batch, width)
        addresses = {name: self._base + self._places.inputs + offset for name, offset in offsets.items()}
        for tensor, cache, fresh in zip(bundle.cache, self._places.cache, self._places.fresh, strict=True):
            addresses[tensor.past] = self._base + cache
            addresses[tensor.present] = self._base + fresh
        addresses["logits"] = self._base + self._places.logits
        context.bind(addresses | dict(self._weights))
