"""Streams and batches: what ends them, what they free, and that a batch changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mla_runtime.errors import BackendError, CapacityError, InputError, NumericsError
from mla_runtime.generate import Limits, Row
from mla_runtime.model import Model
from mla_runtime.sampling import Sampling
from tests.runtime.fake import FakeBackend, V, fake_bundle, greedy

PROMPT = [5, 6, 7]
NEVER: list[int] = []


def model(max_context: int = 64, **kind: Any) -> tuple[Model, FakeBackend]:
    backend = FakeBackend(**kind)
    return Model(fake_bundle(max_context), backend), backend


def test_a_stream_gives_greedy_tokens_and_frees_its_session() -> None:
    m, backend = model()
    stream = m.generate(PROMPT, max_tokens=10, stop_ids=NEVER)
    assert stream.reason is None
    assert [token.id for token in stream] == greedy(PROMPT, 10) == stream.ids
    assert stream.reason == "length"
    assert backend.made[0].closed
    assert len(backend.calls) == 10, "the last token needs no step of its own"
    assert list(stream) == []


def test_a_stop_id_is_the_last_token() -> None:
    ids = greedy(PROMPT, 10)
    m, _ = model()
    stream = m.generate(PROMPT, max_tokens=10, stop_ids=[ids[4]])
    assert [token.id for token in stream] == ids[: ids.index(ids[4]) + 1]
    assert stream.reason == "stop"


def test_the_bundles_stop_ids_are_the_default() -> None:
    m, _ = model()
    for start in range(V):
        if 0 in greedy([start], 60):
            stream = m.generate([start], max_tokens=60)
            assert list(stream)[-1].id == 0
            assert stream.reason == "stop"
            return
    raise AssertionError("no prompt leads to id 0")


@pytest.mark.parametrize("capacity", [3, 4, 9])
def test_a_full_context_ends_with_reason_capacity(capacity: int) -> None:
    m, backend = model()
    stream = m.generate(PROMPT, max_tokens=100, stop_ids=NEVER, max_context=capacity)
    assert [token.id for token in stream] == greedy(PROMPT, capacity - 3 + 1)
    assert stream.reason == "capacity"
    assert backend.made[0].ids_at.shape[1] == capacity


def test_what_cannot_start_raises_before_the_stream() -> None:
    m, backend = model()
    with pytest.raises(CapacityError, match="a prompt of 3 tokens passes the 2 rows of the context"):
        m.generate(PROMPT, max_context=2)
    with pytest.raises(CapacityError, match="max_context 65 passes the bundle's 64"):
        m.generate(PROMPT, max_context=65)
    with pytest.raises(InputError, match="the prompt is empty"):
        m.generate([])
    with pytest.raises(InputError, match="max_tokens is 0"):
        m.generate(PROMPT, max_tokens=0)
    with pytest.raises(InputError, match="the bundle has no tokenizer; give the prompt as token ids"):
        m.generate("text")
    with pytest.raises(InputError, match="stop strings need a tokenizer"):
        m.generate(PROMPT, stop=["x"])
    with pytest.raises(InputError, match="stop is the string 'x'; give a list"):
        m.generate(PROMPT, stop="x")
    with pytest.raises(InputError, match="no prompts"):
        m.complete([])
    assert backend.made == []


def test_closing_a_stream_frees_it() -> None:
    m, backend = model()
    with m.generate(PROMPT, stop_ids=NEVER) as stream:
        next(stream)
        next(stream)
    assert backend.made[0].closed
    assert list(stream) == []
    assert stream.reason is None
    m.generate(PROMPT).close()
    assert len(backend.made) == 1, "a stream that was never read opened a session"


@pytest.mark.parametrize("at", [1, 3])
def test_an_error_frees_the_stream(at: int) -> None:
    m, backend = model()
    backend.fail_at = at
    stream = m.generate(PROMPT, stop_ids=NEVER)
    with pytest.raises(BackendError):
        list(stream)
    assert backend.made[0].closed
    backend.fail_at, backend.poison_at = 0, len(backend.calls) + 2
    with pytest.raises(NumericsError, match="call 1"):
        list(m.generate(PROMPT, stop_ids=NEVER))


def test_a_stream_may_be_read_on_another_thread() -> None:
    m, _ = model()
    stream = m.generate(PROMPT, max_tokens=5, stop_ids=NEVER)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(token.id for token in stream))
    thread.start()
    thread.join()
    assert found == greedy(PROMPT, 5)


def test_threads_share_a_model() -> None:
    m, _ = model()
    results: dict[int, list[int]] = {}

    def work(start: int) -> None:
        results[start] = [token.id for token in m.generate([start], max_tokens=20, stop_ids=NEVER)]

    threads = [threading.Thread(target=work, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {start: greedy([start], 20) for start in range(8)}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=12), min_size=1, max_size=4),
    st.integers(1, 20),
    st.sampled_from([Sampling(), Sampling(temperature=1, seed=3, top_k=5, repetition_penalty=1.3)]),
    st.integers(12, 24),
)
def test_a_batch_gives_what_each_prompt_gives_alone(
    prompts: list[list[int]], max_tokens: int, sampling: Sampling, capacity: int
) -> None:
    m, _ = model()
    stop_ids = range(0, V, 15)
    limits = {"max_tokens": max_tokens, "stop_ids": stop_ids, "max_context": capacity}
    together = m.complete(prompts, sampling=sampling, **limits)  # type: ignore[arg-type]
    for prompt, row in zip(prompts, together, strict=True):
        alone = m.generate(prompt, sampling=sampling, **limits)  # type: ignore[arg-type]
        assert [token.id for token in alone] == list(row.ids)
        assert alone.reason == row.reason


def test_the_penalty_counts_the_prompt_and_what_was_generated() -> None:
    prompt = next(p for p in ([a, b] for a in range(V) for b in range(V)) if greedy(p, 1)[0] in p)
    m, _ = model()
    once = Sampling(repetition_penalty=1e6)
    ids = [token.id for token in m.generate(prompt, max_tokens=30, sampling=once, stop_ids=NEVER)]
    assert ids[0] != greedy(prompt, 1)[0]
    assert len({*prompt, *ids}) == len(set(prompt)) + 30


def test_half_a_character_at_the_end_is_shown_as_broken() -> None:
    def decode(ids: Sequence[int]) -> str:
        return bytes([0xE4, 0x41][i % 2] for i in ids).decode(errors="replace")

    row = Row([1], Sampling(), Limits(2, frozenset()), 64, decode)
    logits = np.zeros(4, dtype=np.float32)
    shown = [row.take(logits).text, row.take(logits).text]
    assert "".join(shown) == row.text == decode([0, 0])
    assert shown[0] == "", "half a character was shown while more ids could complete it"
