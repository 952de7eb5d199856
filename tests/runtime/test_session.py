"""Sessions on a backend whose logits hash the rows that count."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_runtime.errors import BackendError, CapacityError, InputError, NumericsError, SessionError
from mla_runtime.session import Session
from tests.runtime.fake import FakeBackend, V, fake_bundle, logits_of

prompts = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=20), min_size=1, max_size=4)


def session(batch: int = 1, limit: int = 64, **kind: Any) -> tuple[Session, FakeBackend]:
    backend = FakeBackend(**kind)
    return Session(backend, fake_bundle(limit), batch), backend


@settings(max_examples=60, deadline=None)
@given(prompts, st.integers(1, 9), st.integers(1, 5), st.data())
def test_any_chunking_and_any_batch_give_the_logits_of_the_whole_history(
    rows: list[list[int]], chunk: int, bucket: int, data: st.DataObject
) -> None:
    backend = FakeBackend(bucket)
    with Session(backend, fake_bundle(64, chunk), len(rows)) as s:
        logits = s.prefill(rows)
        histories = [list(row) for row in rows]
        for _ in range(4):
            for index, history in enumerate(histories):
                if history is not None and logits[index].any():
                    assert np.array_equal(logits[index], logits_of(history))
            ids = data.draw(
                st.lists(st.none() | st.integers(0, V - 1), min_size=len(rows), max_size=len(rows)).filter(
                    lambda given: any(token is not None for token in given)
                )
            )
            logits = s.step(ids)
            for index, token in enumerate(ids):
                assert logits[index].any() == (token is not None)
                if token is not None:
                    histories[index].append(token)
        assert s.lengths == tuple(map(len, histories))
        again = [data.draw(st.lists(st.integers(0, V - 1), min_size=1, max_size=8)) for _ in rows]
        logits = s.prefill(again)
        for index, row in enumerate(again):
            assert np.array_equal(logits[index], logits_of(histories[index] + row))


def test_padding_positions_stay_in_the_rotary_table() -> None:
    s, backend = session(limit=10, bucket=8)
    s.prefill([[1] * 9])
    s.step([2])
    assert max(call.position_ids.max() for call in backend.calls) == 9


@pytest.mark.parametrize("failure", [BackendError("stopped"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("where", ["run", "keep"])
def test_a_failed_step_can_be_run_again_with_the_same_result(failure: BaseException, where: str) -> None:
    s, backend = session(batch=2)
    s.prefill([[1, 2, 3], [4]])
    backend.failure = failure
    setattr(backend, {"run": "fail_at", "keep": "fail_keep_at"}[where], len(backend.calls) + 1)
    with pytest.raises(type(failure)):
        s.step([5, 6])
    assert s.lengths == (3, 1)
    assert backend.wiped == 1
    assert (backend.made[0].ids_at[0, 3:] == -1).all()
    logits = s.step([5, 6])
    assert np.array_equal(logits, [logits_of([1, 2, 3, 5]), logits_of([4, 6])])
    assert s.lengths == (4, 2)


def test_a_prefill_that_fails_in_its_third_chunk_leaves_the_lengths_of_before_it() -> None:
    s, backend = session()
    s.prefill([[9, 8]])
    backend.fail_at = len(backend.calls) + 3
    prompt = list(range(20))
    with pytest.raises(BackendError):
        s.prefill([prompt])
    assert s.lengths == (2,)
    assert np.array_equal(s.prefill([prompt])[0], logits_of([9, 8, *prompt]))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_raise_with_the_step_and_do_not_count(poison: float) -> None:
    s, backend = session(batch=2)
    backend.poison = poison
    s.prefill([[1, 2], [3]])
    backend.poison_at = 2
    with pytest.raises(NumericsError, match=r"call 1 \(step graph\): logits of sequence 1 at depth 1"):
        s.step([5, 6])
    assert s.lengths == (2, 1)
    assert np.array_equal(s.step([5, 6])[1], logits_of([3, 6]))


@pytest.mark.parametrize("bad", [-1, V, 2**63])
def test_ids_outside_the_vocabulary_never_reach_the_backend(bad: int) -> None:
    s, backend = session(batch=2)
    with pytest.raises(InputError, match=rf"sequence 1: token 2 has the id {bad}, .* \[0, {V}\); give"):
        s.prefill([[1], [1, 2, bad]])
    assert backend.calls == []
    s.prefill([[1], [2]])
    with pytest.raises(
        InputError, match=f"step: sequence 0: token 0 has the id {bad}, outside the vocabulary"
    ):
        s.step([bad, 1])
    assert len(backend.calls) == 1


@pytest.mark.parametrize("bad", [True, 1.0, "1", None])
def test_ids_are_integers(bad: Any) -> None:
    s, backend = session()
    with pytest.raises(InputError, match="; give an integer, its id"):
        s.prefill([[bad]])
    assert backend.calls == []


def test_numpy_integers_are_ids() -> None:
    s, _ = session()
    assert np.array_equal(s.prefill([np.array([3, 4])])[0], logits_of([3, 4]))  # type: ignore[list-item]


def test_empty_prompts_and_wrong_counts_are_refused() -> None:
    s, backend = session(batch=2)
    with pytest.raises(InputError, match="the prompt of sequence 1 is empty"):
        s.prefill([[1], []])
    with pytest.raises(InputError, match="1 sequence given to a session with a batch of 2"):
        s.prefill([[1]])
    with pytest.raises(InputError, match="sequence 0 is empty; prefill its prompt first"):
        s.step([1, 2])
    with pytest.raises(InputError, match="every id is None"):
        s.step([None, None])
    assert backend.calls == []


def test_the_cache_never_wraps() -> None:
    s, backend = session(batch=2, limit=5)
    with pytest.raises(CapacityError, match="sequence 1: 0 rows in the cache and 6 new pass the 5 rows"):
        s.prefill([[1], [1] * 6])
    assert backend.calls == []
    s.prefill([[1], [1] * 5])
    with pytest.raises(CapacityError, match="sequence 1: 5 rows in the cache and 1 new pass"):
        s.step([2, 2])
    assert np.array_equal(s.step([2, None])[0], logits_of([1, 2]))
    assert s.lengths == (2, 5)


def test_a_session_asks_for_no_more_than_the_bundle_has() -> None:
    with pytest.raises(CapacityError, match="max_context 65 passes the bundle's 64"):
        Session(FakeBackend(), fake_bundle(64), 1, 65)
    for batch, limit in ((0, 5), (1, 0)):
        with pytest.raises(InputError, match="at least 1"):
            Session(FakeBackend(), fake_bundle(64), batch, limit)


def test_a_second_thread_gets_an_error() -> None:
    s, backend = session()
    s.prefill([[1]])
    errors: list[BaseException] = []

    def intrude() -> None:
        for use in (lambda: s.step([1]), lambda: s.prefill([[1]]), s.reset, s.close, lambda: s.fill(1)):
            try:
                use()
            except SessionError as error:
                errors.append(error)

    thread = threading.Thread(target=intrude)
    thread.start()
    thread.join()
    assert len(errors) == 5
    assert all("belongs to thread" in str(error) for error in errors)
    assert len(backend.calls) == 1
    s.step([1])


def test_a_session_belongs_to_the_thread_that_uses_it_first() -> None:
    s, _ = session()
    thread = threading.Thread(target=lambda: s.prefill([[1]]))
    thread.start()
    thread.join()
    assert s.lengths == (1,)
    with pytest.raises(SessionError):
        s.step([1])


def test_a_closed_session_is_over() -> None:
    s, backend = session()
    s.prefill([[1]])
    s.close()
    s.close()
    assert backend.made[0].closed
    with pytest.raises(SessionError, match="closed"):
        s.step([1])


def test_reset_and_fill_set_the_lengths() -> None:
    s, _ = session(batch=2)
    s.prefill([[1, 2], [3]])
    s.reset()
    assert s.lengths == (0, 0)
    assert np.array_equal(s.prefill([[4], [5]]), [logits_of([4]), logits_of([5])])
    s.fill(10)
    assert s.lengths == (10, 10)
    with pytest.raises(CapacityError):
        s.fill(65)


def test_logits_are_the_callers_to_keep() -> None:
    s, _ = session()
    first = s.prefill([[1]])
    kept = first.copy()
    s.step([2])
    assert np.array_equal(first, kept)


def test_the_cache_can_be_read_and_what_is_read_is_a_copy() -> None:
    s, _ = session(batch=2)
    s.prefill([[4, 5, 6], [7]])
    (found,) = s.rows(0).values()
    assert found[:, 0].tolist() == [4, 5, 6]
    found[:] = 0
    (again,) = s.rows(0).values()
    assert again[:, 0].tolist() == [4, 5, 6]
    assert len(next(iter(s.rows(1).values()))) == 1
    for sequence in (-1, 2):
        with pytest.raises(InputError, match="not in 0 … 1"):
            s.rows(sequence)
