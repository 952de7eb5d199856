"""ONNX Runtime for real, on a hand-made bundle: no copies, no memory, no trace of rows that do not count."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mla_runtime
from mla_runtime.backends.ort_buffers import BucketBuffers, SlotBuffers
from mla_runtime.errors import (
    BackendError,
    CapacityError,
    NumericsError,
)
from tests.runtime.handmade import V, make_bundle, reference

IDS = np.random.default_rng(3).integers(0, V, 60).tolist()
# fp32 against float64: scores reach 30, whose rounding of 4 × 2^-24 × 30 is the relative error of a
# probability; times logits of 5 and two layers that is 7e-5. One wrong row of a cache gives 1e-2.
CLOSE = {"atol": 1e-4, "rtol": 0}


def buffers(session: mla_runtime.Session) -> Any:
    return session._buffers


def test_prompt_and_steps_match_the_float64_reference(model: mla_runtime.Model) -> None:
    want = reference(IDS)
    with model.session() as s:
        np.testing.assert_allclose(s.prefill([IDS[:17]])[0], want[16], **CLOSE)
        for n in range(17, 60):
            np.testing.assert_allclose(s.step([IDS[n]])[0], want[n], **CLOSE)


@pytest.mark.parametrize("cuts", [(1, 2, 3), (7, 14), (8, 9, 30), (30,)])
def test_chunks_do_not_change_the_logits(model: mla_runtime.Model, cuts: tuple[int, ...]) -> None:
    with model.session() as s:
        for start, end in zip((0, *cuts), (*cuts, 40), strict=True):
            logits = s.prefill([IDS[start:end]])
    np.testing.assert_allclose(logits[0], reference(IDS[:40])[-1], **CLOSE)


def test_a_row_in_a_ragged_batch_equals_the_row_alone(model: mla_runtime.Model) -> None:
    rows = [IDS[:1], IDS[5:35], IDS[10:22]]
    with model.session(3) as s:
        logits = s.prefill(rows)
        for step in range(80):
            for b, row in enumerate(rows):
                if logits[b].any():
                    np.testing.assert_allclose(logits[b], reference(row)[-1], **CLOSE)
            # the second sequence rests every third step, so lengths part further
            ids = [IDS[step % 60], None if step % 3 == 0 else 5, 7]
            logits = s.step(ids)
            rows = [row if token is None else [*row, token] for row, token in zip(rows, ids, strict=True)]
        assert s.lengths == tuple(map(len, rows))
        assert isinstance(buffers(s), BucketBuffers)


def test_one_sequence_computes_new_rows_into_their_slots(
    model: mla_runtime.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: dict[str, tuple[tuple[int, ...], int]] = {}
    monkeypatch.setattr(
        "mla_runtime.backends.ort_buffers.bind",
        lambda method, name, array: (
            bound.__setitem__(name, (array.shape, array.ctypes.data)),
            method(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data),
        ),
    )
    with model.session() as s:
        assert isinstance(buffers(s), SlotBuffers)
        s.prefill([IDS[:5]])
        for tensor, rows in zip(model.bundle.cache, buffers(s)._rows, strict=True):
            assert bound[tensor.past][0] == (1, 1, *tensor.row), "an empty cache is one row"
            assert bound[tensor.past][1] != rows.ctypes.data, "the empty row is the slot being written"
            assert bound[tensor.present] == ((1, 5, *tensor.row), rows.ctypes.data)
        before = [rows.ctypes.data for rows in buffers(s)._rows]
        s.step([1])
        for tensor, rows in zip(model.bundle.cache, buffers(s)._rows, strict=True):
            assert bound[tensor.past] == ((1, 5, *tensor.row), rows.ctypes.data)
            assert bound[tensor.present] == ((1, 1, *tensor.row), rows[:, 5:].ctypes.data)
            assert rows[0, 5].any(), "the new row is not in its slot"
            assert not rows[0, 6:].any(), "something was written beyond the new row"
        assert [rows.ctypes.data for rows in buffers(s)._rows] == before


@pytest.mark.parametrize("batch", [1, 2])
def test_poison_beyond_the_length_changes_nothing(model: mla_runtime.Model, batch: int) -> None:
    clean, poisoned = model.session(batch, 64), model.session(batch, 64)
    prompts = [IDS[:9], IDS[20:23]][:batch]
    clean.prefill(prompts)
    poisoned.prefill(prompts)
    # A single sequence is shown its exact length, so even NaN may lie behind; several share a stride,
    # and rows behind a short one are masked but multiplied by zero: finite, as the contract says.
    poison = np.nan if batch == 1 else 1e4
    for rows in buffers(poisoned)._rows:
        for index, prompt in enumerate(prompts):
            rows[index, len(prompt) :] = poison
    ids = [3, 4][:batch]
    assert np.array_equal(clean.step(ids), poisoned.step(ids))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_failed_step_leaves_finite_rows_and_can_be_run_again(
    model: mla_runtime.Model, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, ids = [IDS[:9], IDS[20:23]][:batch], [3, 4][:batch]
    with model.session(batch) as twin:
        twin.prefill(prompts)
        want = twin.step(ids)
    with model.session(batch) as s:
        s.prefill(prompts)
        held = buffers(s)
        run = type(held).run

        def fails(self: Any, call: Any) -> Any:
            logits = run(self, call)
            for rows in self._rows:  # what a broken kernel may leave behind
                for index, past in enumerate(call.past_lengths):
                    rows[index, past : past + 1] = np.nan
            logits[0, 0] = np.inf
            return logits

        with monkeypatch.context() as patch:
            patch.setattr(type(held), "run", fails)
            with pytest.raises(NumericsError, match="step graph"):
                s.step(ids)
        assert s.lengths == tuple(map(len, prompts))
        assert all(np.isfinite(rows).all() for rows in held._rows)
        assert np.array_equal(s.step(ids), want)


def test_an_engine_error_names_graph_and_depth(
    model: mla_runtime.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with model.session() as s:
        s.prefill([IDS[:9]])
        with monkeypatch.context() as patch:
            patch.setattr(s, "_positions", 10**6)
            patch.setattr(s._lengths, "limit", 10**6)
            patch.setattr(s, "_vocab", 10**6)
            with pytest.raises(BackendError, match="step graph, 1 × 1 new tokens at depth 9: "):
                s.step([V + 5])
        assert s.lengths == (9,)
        np.testing.assert_allclose(s.step([IDS[9]])[0], reference(IDS[:10])[-1], **CLOSE)


def test_memory_that_runs_short_is_a_capacity_error(
    model: mla_runtime.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with model.session() as s:
        s.prefill([IDS[:9]])
        graph = model.backend.graph("step", 1)  # type: ignore[attr-defined]

        class Short:
            io_binding = graph.io_binding

            def run_with_iobinding(self, binding: Any) -> None:
                raise RuntimeError("Failed to allocate memory for requested buffer of size 5")

        with monkeypatch.context() as patch:
            patch.setattr(s._buffers._graphs, "graph", lambda phase, batch: Short())  # type: ignore[attr-defined]
            with pytest.raises(CapacityError, match="at depth 9: memory is short"):
                s.step([1])
        np.testing.assert_allclose(s.step([IDS[9]])[0], reference(IDS[:10])[-1], **CLOSE)


def test_threads_share_a_model(model: mla_runtime.Model) -> None:
    found: dict[int, np.ndarray] = {}

    def work(start: int) -> None:
        with model.session() as s:
            s.prefill([IDS[start : start + 10]])
            for token in IDS[:20]:
                found[start] = s.step([token])[0]

    threads = [threading.Thread(target=work, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for start in range(6):
        want = reference([*IDS[start : start + 10], *IDS[:20]])[-1]
        np.testing.assert_allclose(found[start], want, **CLOSE)


def test_two_sessions_of_a_model_do_not_mix(model: mla_runtime.Model) -> None:
    with model.session() as a, model.session() as b:
        a.prefill([IDS[:9]])
        b.prefill([IDS[30:35]])
        first, second = a.step([1]), b.step([1])
    np.testing.assert_allclose(first[0], reference([*IDS[:9], 1])[-1], **CLOSE)
    np.testing.assert_allclose(second[0], reference([*IDS[30:35], 1])[-1], **CLOSE)


def test_an_fp16_cache_halves_the_bytes(tmp_path: Path, model: mla_runtime.Model) -> None:
    with mla_runtime.open(make_bundle(tmp_path / "half", cache="float16"), threads=1) as half:
        with half.session(2, 64) as s, model.session(2, 64) as full:
            s.prefill([IDS[:9], IDS[:4]])
            full.prefill([IDS[:9], IDS[:4]])
            logits, exact = s.step([3, 4]), full.step([3, 4])
            assert 2 * s.nbytes == full.nbytes
        # rows of about 1 rounded to 11 bits, through two layers of softmax over products of about 4
        np.testing.assert_allclose(logits, exact, atol=1e-2)
        assert not np.array_equal(logits, exact)
        with half.session() as alone:
            alone.prefill([IDS[:9]])
            np.testing.assert_allclose(alone.step([3])[0], logits[0], **CLOSE)


# in a process of its own: what earlier tests left behind is freed, and taken, whenever Python likes
GROWTH = """
import sys
import mla_runtime

def private():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")

def steps(session):
    session.fill(1)
    for step in range(500):
        session.step([step % 61] * session.batch)

with mla_runtime.open(sys.argv[1], threads=1) as model, model.session(int(sys.argv[2])) as session:
    for _ in range(3):  # arenas and row memory reach their sizes
        steps(session)
    before = private()
    for _ in range(2):
        steps(session)
    print(private() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("batch", [1, 2])
def test_memory_is_flat_over_a_thousand_steps(bundle: Path, batch: int) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(mla_runtime.__file__).parents[1])}
    command = [sys.executable, "-c", GROWTH, str(bundle), str(batch)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=300)
    grown = int(done.stdout)
    assert grown < 256 * 1024, f"{grown} bytes more after 1,000 steps"


def test_a_cache_larger_than_memory_is_a_capacity_error(
    model: mla_runtime.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(np, "zeros", no_memory)
    with pytest.raises(CapacityError, match=r"cache rows of 1 × 64 tokens take 8192 bytes"):
        model.backend.buffers(1, 64)


def test_a_step_that_finds_no_memory_is_a_capacity_error(
    model: mla_runtime.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError

    for batch, allocate, message in [
        (2, "zeros", "cache rows of 2 × 7 tokens take 1792 bytes"),
        (1, "empty", "logits of 1 × 61 take 244 bytes"),
    ]:
        with model.session(batch) as s, monkeypatch.context() as patch:
            call = s._call("prompt", [IDS[:7]] * batch, list(range(batch)))
            patch.setattr(np, allocate, no_memory)
            with pytest.raises(CapacityError, match=message):
                buffers(s).run(call)
