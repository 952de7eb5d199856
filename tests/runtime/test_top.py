"""The best logits alone are enough to choose from, and choose what all of them would."""

from __future__ import annotations

import numpy as np
import pytest

import mla_runtime
from mla_runtime.errors import InputError, NumericsError
from mla_runtime.generate import Limits, Row
from mla_runtime.sampling import Sampler, Sampling
from mla_runtime.session import Session
from mla_runtime.top import MOST, best_places, top_of
from tests.runtime.fake import FakeBackend, V, fake_bundle

ENOUGH = [
    Sampling(),
    Sampling(0.7, top_k=5, seed=3),
    Sampling(1.3, top_k=40, top_p=0.8, seed=4),
    Sampling(0.9, top_k=7, min_p=0.1, top_p=0.9, seed=5),
    Sampling(1e-9, top_k=3, seed=6),
]


def by_sorting(logits: np.ndarray, count: int) -> list[int]:
    return sorted(range(len(logits)), key=lambda place: (-logits[place], place))[:count]


@pytest.mark.parametrize("count", [1, 2, 7, 60, 61])
def test_best_places_are_those_of_a_sort_with_ties_to_the_lower(count: int) -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        logits = random.integers(-4, 4, V).astype(np.float32)
        logits[random.integers(V)] = -0.0
        assert best_places(logits, count).tolist() == by_sorting(logits, count)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [1, 5])
def test_rows_that_are_not_finite_are_found_wherever_the_number_stands(bad: float, count: int) -> None:
    logits = np.random.default_rng(0).standard_normal((3, V)).astype(np.float32)
    want, _ = top_of(logits, count)
    logits[1, 60] = bad
    top, finite = top_of(logits, count)
    assert finite.tolist() == [True, False, True]
    assert top.ids[[0, 2]].tolist() == want.ids[[0, 2]].tolist()


@pytest.mark.parametrize("sampling", ENOUGH, ids=str)
def test_a_sampler_draws_the_same_from_the_best_as_from_all(sampling: Sampling) -> None:
    count = Sampler(sampling).needs(V)
    assert count is not None
    random = np.random.default_rng(1)
    logits = (random.standard_normal((200, V)) * 3).round(1).astype(np.float32)
    for more in (0, 9):  # another row of the batch may need more
        whole, few = Sampler(sampling), Sampler(sampling)
        top, _ = top_of(logits, min(count + more, V))
        for line, best, ids in zip(logits, top.logits, top.ids, strict=True):
            assert few.pick(best, ids=ids) == whole.pick(line)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(repetition_penalty=1.1), Sampling(0.5), Sampling(0.5, top_p=0.9), Sampling(0.5, top_k=V)],
    ids=str,
)
def test_what_may_change_any_logit_or_draw_any_needs_all(sampling: Sampling) -> None:
    assert Sampler(sampling).needs(V) is None


def test_more_than_a_device_sorts_needs_all() -> None:
    assert Sampler(Sampling(1.0, top_k=MOST)).needs(10**6) == MOST
    assert Sampler(Sampling(1.0, top_k=MOST + 1)).needs(10**6) is None


@pytest.mark.parametrize("sampling", ENOUGH[:3], ids=str)
def test_generation_is_that_of_whole_logits(model: mla_runtime.Model, sampling: Sampling) -> None:
    prompts = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7]]
    rows = [Row(prompt, sampling, Limits(30, frozenset()), 512, None) for prompt in prompts]
    with model.session(2) as session:
        logits = session.prefill(prompts)
        while rows[0].reason is None:
            for row, line in zip(rows, logits, strict=True):
                row.take(line)
            logits = session.step([row.ids[-1] for row in rows])
    found = model.complete(prompts, max_tokens=30, sampling=sampling, stop_ids=[])
    assert [list(row.ids) for row in found] == [row.ids for row in rows]
    for prompt, row in zip(prompts, rows, strict=True):
        stream = model.generate(prompt, max_tokens=30, sampling=sampling, stop_ids=[])
        assert [token.id for token in stream] == row.ids


def test_a_row_without_an_id_has_no_best() -> None:
    backend = FakeBackend()
    with Session(backend, fake_bundle(), 2, 40) as session:
        session.prefill([[1, 2], [3]])
        whole = session.step([None, 4])
        session.reset()
        session.prefill([[1, 2], [3]])
        top = session.step_top([None, 4], 2)
    assert top.ids[1].tolist() == by_sorting(whole[1], 2)
    assert not top.ids[0].any()
    assert not top.logits[0].any()


def test_not_finite_raises_and_the_step_can_be_taken_again() -> None:
    backend = FakeBackend()
    with Session(backend, fake_bundle(), 1, 40) as session:
        session.prefill_top([[1, 2, 3]], 1)
        backend.poison_at = 2
        with pytest.raises(NumericsError, match=r"call 1 \(step graph\): logits of sequence 0 at depth 3"):
            session.step_top([4], 1)
        assert session.lengths == (3,)
        assert session.step_top([4], 1).ids.shape == (1, 1)


@pytest.mark.parametrize("count", [0, -1, V + 1])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    refused = pytest.raises(InputError, match=f"count is {count}; the best {V} logits can be had")
    with Session(FakeBackend(), fake_bundle(), 1, 40) as session, refused:
        session.prefill_top([[1]], count)
