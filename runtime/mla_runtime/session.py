"""A session: the state of decoding a batch, on any backend."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from mla_runtime.backends.base import Backend, Call, Float32
from mla_runtime.bundle import Bundle
from mla_runtime.cache import Lengths
from mla_runtime.errors import CapacityError, InputError, NumericsError, SessionError
from mla_runtime.manifest import Phase
from mla_runtime.top import MOST, Finite, Top
from mla_runtime.wording import counted

Arrays = tuple[npt.NDArray[Any], ...]


def context_limit(bundle: Bundle, max_context: int | None) -> int:
    """Give the most rows of a sequence: `max_context`, or the bundle's own limit for None.

    Raises `InputError` below 1 and `CapacityError` beyond the bundle's limit.
    """
    most = bundle.model.max_context
    limit = most if max_context is None else max_context
    if limit < 1:
        raise InputError(f"max_context is {limit}; it must be at least 1")
    if limit > most:
        msg = f"max_context {limit} passes the bundle's {most}; ask for less, or export the model "
        raise CapacityError(msg + "with a larger --max-context")
    return limit


class Session:
    """Decodes B sequences of different lengths over one cache.

    A call either succeeds and moves the lengths, or raises and leaves the session as it was, so that
    the same call can be made again. The first thread that uses a session owns it.
    """

    def __init__(
        self, backend: Backend, bundle: Bundle, batch: int = 1, max_context: int | None = None
    ) -> None:
        limit = context_limit(bundle, max_context)
        if batch < 1:
            raise InputError(f"batch is {batch}; it must be at least 1")
        self.batch = batch
        self._backend = backend
        self._vocab = bundle.model.vocab_size
        self._positions = bundle.model.max_context
        self._chunk = min(bundle.chunk, backend.chunk)
        self._lengths = Lengths(batch, limit)
        self._buffers = backend.buffers(batch, limit)
        self._owner: int | None = None
        self._owning = threading.Lock()
        self._closed = False
        self._calls = 0

    @property
    def lengths(self) -> tuple[int, ...]:
        """The rows that count in the cache, for each sequence."""
        return tuple(self._lengths.rows.tolist())

    @property
    def vocab(self) -> int:
        """How many logits a row has."""
        return self._vocab

    @property
    def max_context(self) -> int:
        """The most rows that a sequence may have."""
        return self._lengths.limit

    @property
    def nbytes(self) -> int:
        """Bytes of the cache's buffers."""
        return self._buffers.nbytes

    def prefill(self, rows: Sequence[Sequence[int]]) -> Float32:
        """Append `rows[b]`, at least one id, to sequence b; give the logits [B, V] after each row's last id.

        Runs the prompt graph in chunks. If any chunk fails, the lengths are those of before the call.
        Raises `InputError`, `CapacityError`, `NumericsError` or `BackendError`.
        """
        return self._prefill(rows, None)[0]

    def prefill_top(self, rows: Sequence[Sequence[int]], count: int) -> Top:
        """As `prefill`, but give only the `count` best logits of each row, [B, count]."""
        self._check_top(count)
        return Top(*self._prefill(rows, count))

    def step(self, ids: Sequence[int | None]) -> Float32:
        """Append one id to each sequence, none where `ids[b]` is None; give the logits [B, V].

        Rows of sequences that got no id are zero. Raises as `prefill` does.
        """
        return self._step(ids, None)[0]

    def step_top(self, ids: Sequence[int | None], count: int) -> Top:
        """As `step`, but give only the `count` best logits of each row, [B, count]."""
        self._check_top(count)
        return Top(*self._step(ids, count))

    def rows(self, sequence: int = 0) -> dict[str, npt.NDArray[Any]]:
        """Copy the cache's rows of a sequence out: for each cache tensor, by its `past` name, [length, *row].

        8-bit rows come as codes, their scales [length] beside them (docs/bundle.md). Raises `InputError` for
        a sequence that is not there.
        """
        self._enter()
        if not 0 <= sequence < self.batch:
            raise InputError(f"rows: sequence {sequence} is not in 0 … {self.batch - 1}")
        return self._buffers.rows(sequence, int(self._lengths.rows[sequence]))

    def fill(self, rows: int) -> None:
        """Make every sequence `rows` rows of random numbers long, without computing them.

        For measuring speed at a depth: what a model says after such rows means nothing.
        """
        self._enter()
        self.reset()
        self._lengths.check_room([rows] * self.batch)
        self._buffers.fill(rows)
        self._lengths.commit(np.full(self.batch, rows, dtype=np.int64))

    def reset(self) -> None:
        """Make every sequence empty; the buffers stay."""
        self._enter()
        self._lengths.commit(np.zeros(self.batch, dtype=np.int64))

    def close(self) -> None:
        """Free the cache. Closing twice is fine; any other use after it raises `SessionError`."""
        if not self._closed:
            self._enter()
            self._closed = True
            self._buffers.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prefill(self, rows: Sequence[Sequence[int]], count: int | None) -> Arrays:
        self._enter()
        self._check_count(len(rows), "prefill")
        for index, row in enumerate(rows):
            if len(row) == 0:
                raise InputError(
                    f"prefill: the prompt of sequence {index} is empty; give at least one token id"
                )
            self._check_ids(row, f"prefill: sequence {index}")
        self._lengths.check_room([len(row) for row in rows])
        before = self._lengths.rows
        result: Arrays = ()
        try:
            for start in range(0, max(map(len, rows)), self._chunk):
                parts = [row[start : start + self._chunk] for row in rows]
                done = [b for b, row in enumerate(rows) if start < len(row) <= start + self._chunk]
                # A graph projects at least one row; where no sequence ends in this chunk it is thrown away.
                shown = done or [b for b, part in enumerate(parts) if part][:1]
                found = self._advance("prompt", parts, shown, count)
                if done:
                    result = self._spread(found, done, result)
        except BaseException:
            self._lengths.commit(before)
            raise
        return result

    def _step(self, ids: Sequence[int | None], count: int | None) -> Arrays:
        self._enter()
        self._check_count(len(ids), "step")
        parts = [[] if token is None else [token] for token in ids]
        shown = [b for b, part in enumerate(parts) if part]
        if not shown:
            raise InputError("step: every id is None; give at least one sequence a token id")
        for index in shown:
            self._check_ids(parts[index], f"step: sequence {index}")
            if self._lengths.rows[index] == 0:
                raise InputError(f"step: sequence {index} is empty; prefill its prompt first")
        self._lengths.check_room([len(part) for part in parts])
        return self._spread(self._advance("step", parts, shown, count), shown)

    def _spread(self, found: Arrays, shown: Sequence[int], onto: Arrays = ()) -> Arrays:
        """Put what was found of the sequences `shown` in rows of [B, ...]; others are zero, or `onto`'s."""
        if len(shown) == self.batch:
            return found
        whole = onto or tuple(np.zeros((self.batch, *part.shape[1:]), part.dtype) for part in found)
        for rows, part in zip(whole, found, strict=True):
            rows[shown] = part
        return whole

    def _advance(
        self, phase: Phase, parts: Sequence[Sequence[int]], shown: Sequence[int], count: int | None
    ) -> Arrays:
        """Run one graph over `parts`; the lengths move as the very last act.

        Gives the logits, or the ids and logits of the `count` best.
        """
        call = self._call(phase, parts, shown)
        found: Arrays
        try:
            if count is None:
                logits = self._buffers.run(call)
                # max and min carry a NaN through and meet an infinity, at one read each and no temporary.
                finite = np.isfinite(logits.max(axis=1)) & np.isfinite(logits.min(axis=1))
                found = (logits,)
            else:
                top, finite = self._buffers.top(call, count)
                found = (top.ids, top.logits)
            self._check_finite(finite, call, shown)
            self._buffers.keep(call)
        except BaseException:
            self._buffers.wipe(call)
            raise
        self._calls += 1
        self._lengths.commit(call.past_lengths + call.new_lengths)
        return found

    def _call(self, phase: Phase, parts: Sequence[Sequence[int]], shown: Sequence[int]) -> Call:
        width = self._backend.width(phase, max(map(len, parts)))
        past = self._lengths.rows
        new = np.array([len(part) for part in parts], dtype=np.int64)
        ids = np.zeros((self.batch, width), dtype=np.int64)
        for index, part in enumerate(parts):
            ids[index, : len(part)] = part
        positions = past[:, None] + np.arange(width, dtype=np.int64)
        np.minimum(positions, self._positions - 1, out=positions)  # padding must not index past rotary tables
        last = np.array([index * width + len(parts[index]) - 1 for index in shown], dtype=np.int64)
        return Call(phase, ids, positions, past, new, last)

    def _check_finite(self, finite: Finite, call: Call, shown: Sequence[int]) -> None:
        if finite.all():
            return
        bad = next(b for b, good in zip(shown, finite, strict=True) if not good)
        depth = int(call.past_lengths[bad])
        msg = (
            f"call {self._calls} ({call.phase} graph): logits of sequence "
            f"{bad} at depth {depth} are not finite; "
            "the model overflows in this precision: export it in fp32 and compare"
        )
        raise NumericsError(msg)

    def _check_top(self, count: int) -> None:
        if not 1 <= count <= min(MOST, self._vocab):
            raise InputError(f"count is {count}; the best {min(MOST, self._vocab)} logits can be had, or all")

    def _check_count(self, count: int, where: str) -> None:
        if count != self.batch:
            raise InputError(
                f"{where}: {counted(count, 'sequence')} given to a session with a batch of {self.batch}"
            )

    def _check_ids(self, ids: Sequence[int], where: str) -> None:
        for place, token in enumerate(ids):
            # A bool is an int to Python, and True as token 1 is never what was meant.
            if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
                raise InputError(f"{where}: token {place} is {token!r}; give an integer, its id")
            if not 0 <= token < self._vocab:
                msg = f"{where}: token {place} has the id {token}, outside the vocabulary [0, {self._vocab})"
                raise InputError(f"{msg}; give ids of this model's tokenizer")

    def _enter(self) -> None:
        """Refuse a closed session and any thread but the one that used it first."""
        if self._closed:
            raise SessionError("this session is closed; open another one from the model")
        caller = threading.get_ident()
        with self._owning:
            if self._owner is None:
                self._owner = caller
        if self._owner != caller:
            msg = (
                f"this session belongs to thread {self._owner}, not {caller}; open a session for each thread"
            )
            raise SessionError(msg)
