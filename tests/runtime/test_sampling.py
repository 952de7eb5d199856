"""Sampling: what each parameter keeps, that ties go to the lowest id, and that a seed reproduces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mla_runtime.errors import InputError
from mla_runtime.sampling import Sampler, Sampling, candidates, penalised

# few distinct values, so that ties are common
logits = hnp.arrays(np.float32, st.integers(1, 40), elements=st.integers(-6, 6).map(float))
temperatures = st.sampled_from([0.01, 0.5, 1.0, 3.0])


def softmax(values: np.ndarray, temperature: float) -> np.ndarray:
    scaled = values.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return np.asarray(weights / weights.sum())


def by_rank(values: np.ndarray) -> list[int]:
    """Ids from the best to the worst, ties by id."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


@given(logits)
def test_temperature_zero_takes_the_lowest_of_the_best_ids(values: np.ndarray) -> None:
    assert Sampler(Sampling()).pick(values) == by_rank(values)[0]


@given(logits, temperatures)
def test_without_cuts_all_ids_keep_their_softmax(values: np.ndarray, temperature: float) -> None:
    ids, probabilities = candidates(values, Sampling(temperature=temperature))
    assert ids.tolist() == list(range(len(values)))
    np.testing.assert_allclose(probabilities, softmax(values, temperature), rtol=1e-12)


@given(logits, temperatures, st.integers(1, 50))
def test_top_k_keeps_the_k_best(values: np.ndarray, temperature: float, k: int) -> None:
    ids, probabilities = candidates(values, Sampling(temperature=temperature, top_k=k))
    # at a low temperature hopeless ids underflow to weight 0 and tie with each other
    kept = [i for i, p in zip(ids.tolist(), probabilities, strict=True) if p > 0]
    assert kept == [i for i in by_rank(values)[:k] if softmax(values, temperature)[i] > 0] or k >= len(values)
    assert len(ids) == min(k, len(values))
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-12)


@given(logits, temperatures, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_ids_that_reach_p(
    values: np.ndarray, temperature: float, top_p: float
) -> None:
    ids, _ = candidates(values, Sampling(temperature=temperature, top_p=top_p))
    assert ids.tolist() == by_rank(values)[: len(ids)]
    mass = softmax(values, temperature)[ids]
    assert mass.sum() >= top_p - 1e-12
    assert mass[:-1].sum() < top_p + 1e-12


@given(logits, temperatures, st.floats(0, 1))
def test_min_p_keeps_what_is_near_the_best(values: np.ndarray, temperature: float, min_p: float) -> None:
    ids, _ = candidates(values, Sampling(temperature=temperature, min_p=min_p))
    p = softmax(values, temperature)
    kept = set(ids.tolist())
    assert by_rank(values)[0] in kept
    assert all((p[i] >= min_p * p.max() * (1 - 1e-12)) for i in kept)
    assert all((p[i] <= min_p * p.max() * (1 + 1e-12)) for i in set(range(len(values))) - kept)


@given(logits, st.integers(1, 8), st.floats(0.05, 0.95), st.floats(0, 0.5), st.integers(0, 2**32))
def test_what_is_drawn_is_a_candidate_and_a_seed_reproduces_it(
    values: np.ndarray, k: int, top_p: float, min_p: float, seed: int
) -> None:
    sampling = Sampling(temperature=0.8, top_k=k, top_p=top_p, min_p=min_p, seed=seed)
    first, second = Sampler(sampling), Sampler(sampling)
    drawn = [first.pick(values) for _ in range(10)]
    assert drawn == [second.pick(values) for _ in range(10)]
    assert set(drawn) <= set(candidates(values, sampling)[0].tolist())


def test_draws_have_the_frequencies_of_their_probabilities() -> None:
    values = np.log(np.array([0.5, 0.25, 0.125, 0.125], dtype=np.float32))
    for sampling in (Sampling(temperature=1, seed=1), Sampling(temperature=1, top_k=4, top_p=0.9999, seed=1)):
        sampler = Sampler(sampling)
        counts = np.bincount([sampler.pick(values) for _ in range(4000)], minlength=4)
        # four standard deviations of a binomial of 4,000 draws
        np.testing.assert_allclose(counts / 4000, [0.5, 0.25, 0.125, 0.125], atol=4 * (0.25 / 4000) ** 0.5)


def test_seeds_differ_and_no_seed_is_a_fresh_one() -> None:
    values = np.zeros(10**6, dtype=np.float32)
    seeds = [*range(20), None, None]
    assert len({Sampler(Sampling(temperature=1, seed=seed)).pick(values) for seed in seeds}) == 22


@given(logits, st.sets(st.integers(0, 39)), st.floats(1.01, 3))
def test_the_penalty_lowers_seen_ids_only(values: np.ndarray, seen: set[int], penalty: float) -> None:
    seen = {i for i in seen if i < len(values)}
    before = values.copy()
    result = penalised(values, seen, penalty)
    assert np.array_equal(values, before), "the caller's logits were changed"
    for i, value in enumerate(values):
        if i not in seen:
            assert result[i] == value
        elif value > 0:
            assert result[i] == pytest.approx(value / penalty, rel=1e-6)
        else:
            assert result[i] == pytest.approx(value * penalty, rel=1e-6)


def test_the_penalty_changes_a_greedy_choice() -> None:
    values = np.array([1.0, 1.1, 0.0], dtype=np.float32)
    sampler = Sampler(Sampling(repetition_penalty=1.2))
    assert sampler.pick(values) == 1
    assert sampler.pick(values, {1}) == 0


def test_a_tiny_temperature_does_not_overflow() -> None:
    values = np.array([1e4, 9.9e3, -1e4], dtype=np.float32)
    assert Sampler(Sampling(temperature=1e-300, seed=0)).pick(values) == 0


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("seed", -1),
    ],
)
def test_parameters_out_of_range_are_named(parameter: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{parameter} is {value!r}; it must be"):
        Sampling(**{parameter: value})
