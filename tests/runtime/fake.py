"""A backend without an engine: logits are a hash of the rows that count, so any error of the cache shows."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from mla_runtime.backends.base import Call, Float32
from mla_runtime.bundle import Bundle
from mla_runtime.errors import BackendError
from mla_runtime.manifest import digest, parse
from mla_runtime.top import Finite, Top, top_of
from tests.runtime.handmade import manifest

V = 61


def fake_bundle(max_context: int = 64, chunk: int = 7) -> Bundle:
    """A bundle that is a manifest only."""
    raw = manifest()
    raw["model"]["max_context"] = max_context
    raw["graphs"]["prompt"]["chunk"] = chunk
    raw["sha256"] = digest(raw)
    return Bundle(Path("fake"), parse(raw, "fake"), {}, raw, {})


def logits_of(history: list[int]) -> np.ndarray:
    """The logits [V] that the fake model gives after `history`."""
    key = hashlib.sha256(np.array(history, dtype=np.int64).tobytes()).digest()
    return np.random.default_rng(int.from_bytes(key[:8], "little")).standard_normal(V).astype(np.float32)


def greedy(prompt: list[int], count: int) -> list[int]:
    """The first `count` greedy ids after `prompt`, with no session at all."""
    history = list(prompt)
    for _ in range(count):
        history.append(int(logits_of(history).argmax()))
    return history[len(prompt) :]


class FakeBuffers:
    """Rows are the ids and positions themselves; pending ones become rows by `keep` alone."""

    def __init__(self, backend: FakeBackend, batch: int, max_rows: int) -> None:
        self.backend = backend
        self.ids_at = np.full((batch, max_rows, 2), -1, dtype=np.int64)
        self.closed = False

    @property
    def nbytes(self) -> int:
        return self.ids_at.nbytes

    def run(self, call: Call) -> Float32:
        self.backend.calls.append(call)
        if self.backend.fail_at == len(self.backend.calls):
            raise self.backend.failure
        assert call.input_ids.shape == call.position_ids.shape
        assert 1 <= len(call.logit_rows) <= len(self.ids_at)
        width = call.input_ids.shape[1]
        found = []
        for flat in call.logit_rows.tolist():
            index, last = divmod(flat, width)
            assert last < call.new_lengths[index]
            past = self.ids_at[index, : call.past_lengths[index]]
            new = np.stack([call.input_ids[index], call.position_ids[index]], axis=1)[: last + 1]
            seen = np.concatenate([past, new])
            assert seen[:, 1].tolist() == list(range(len(seen))), "positions are not 0, 1, 2, ..."
            found.append(logits_of(seen[:, 0].tolist()))
        logits = np.stack(found)
        if self.backend.poison_at == len(self.backend.calls):
            logits[-1, 3] = self.backend.poison
        return logits

    def top(self, call: Call, count: int) -> tuple[Top, Finite]:
        return top_of(self.run(call), count)

    def keep(self, call: Call) -> None:
        for index, (past, count) in enumerate(zip(call.past_lengths, call.new_lengths, strict=True)):
            self.ids_at[index, past : past + count, 0] = call.input_ids[index, :count]
            self.ids_at[index, past : past + count, 1] = call.position_ids[index, :count]
        if self.backend.fail_keep_at == len(self.backend.calls):
            raise self.backend.failure

    def wipe(self, call: Call) -> None:
        for index, past in enumerate(call.past_lengths):
            self.ids_at[index, past:] = -1
        self.backend.wiped += 1

    def rows(self, sequence: int, count: int) -> dict[str, np.ndarray]:
        return {"past.0.latent": self.ids_at[sequence, :count].copy()}

    def fill(self, rows: int) -> None:
        self.ids_at[:, :rows, 0] = 1
        self.ids_at[:, :rows, 1] = np.arange(rows)

    def close(self) -> None:
        self.closed = True


class FakeBackend:
    """Counts calls; fails or gives a NaN at the call that a test names."""

    name = "fake"
    chunk = 1000

    def __init__(self, bucket: int = 1) -> None:
        self.calls: list[Call] = []
        self.made: list[FakeBuffers] = []
        self.fail_at = self.fail_keep_at = self.poison_at = 0
        self.failure: BaseException = BackendError("the engine stopped")
        self.poison = np.nan
        self.wiped = 0
        self.bucket = bucket

    def width(self, phase: str, new: int) -> int:
        return -(-new // self.bucket) * self.bucket

    def buffers(self, batch: int, max_rows: int) -> FakeBuffers:
        self.made.append(FakeBuffers(self, batch, max_rows))
        return self.made[-1]

    def close(self) -> None:
        pass
