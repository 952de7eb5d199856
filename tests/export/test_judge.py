"""Metrics by hand, and every verdict at its edge."""

from __future__ import annotations

import numpy as np
import pytest

from mla_export.judge import (
    MAX_KL_BEHIND_TIE,
    MAX_LOSS_BEHIND_TIE,
    Budget,
    budget,
    compare,
    divergence,
    errors,
    greedy,
    log_softmax,
    ratio,
)

WANT = np.array([[0.0, 1.0, 2.0], [3.0, 0.0, -1.0], [0.0, 0.0, 5.0], [1.0, 4.0, 0.0]])
ALLOWED = Budget(factor=4.0, max_abs=0.1, rms=0.05, judges="largest", peer="p")
FREE = np.zeros(4, dtype=bool)
TIED = np.ones(4, dtype=bool)


def moved(*amounts: float) -> np.ndarray:
    """WANT with one logit of each row moved."""
    got = WANT.copy()
    got[:, 0] += amounts
    return got


def test_errors_are_what_they_say():
    got = WANT.copy()
    got[1, 1] += 0.3
    found = errors(got, WANT)
    assert found.rows == 4
    assert found.max_abs == pytest.approx(0.3)
    assert found.rms == pytest.approx(0.3 / np.sqrt(12))
    assert found.cosine == pytest.approx(10 / np.sqrt(10 * (10 + 0.09)))
    assert found.rank == 1


def test_rank_is_the_worst_place_of_the_wanted_top_token():
    got = WANT.copy()
    got[2] = [9.0, 8.0, 5.0]
    assert errors(got, WANT).rank == 3


def test_divergence_is_of_distributions():
    np.testing.assert_allclose(divergence(WANT + 7.0, WANT), 0.0, atol=1e-15)
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    found = divergence(np.log(q)[None], np.log(p)[None])
    assert found[0] == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1))


def test_budget_is_a_multiple_of_the_peers_error():
    found = budget(moved(0.1, 0.0, 0.0, 0.0), WANT, 4.0, "peer", "largest")
    assert found.max_abs == pytest.approx(0.4)
    assert found.rms == pytest.approx(0.4 / np.sqrt(12))


def test_within_the_budget_passes_and_says_what_would_have():
    found = compare("x", moved(0.05, 0.0, 0.0, 0.0), WANT, ALLOWED, FREE)
    assert found.verdict == "pass"
    assert found.would_pass == pytest.approx(2.0)  # half of the largest error that 4 times allows


def test_one_row_beyond_the_largest_error_fails():
    found = compare("x", moved(0.11, 0.0, 0.0, 0.0), WANT, ALLOWED, FREE)
    assert (found.verdict, found.behind_ties) == ("fail", 0)
    assert found.would_pass == pytest.approx(4.4)


def test_many_rows_within_the_largest_error_fail_by_rms():
    assert compare("x", moved(0.09, 0.09, 0.09, 0.09), WANT, ALLOWED, FREE).verdict == "fail"


def test_the_largest_error_is_not_judged_in_fp16():
    allowed = Budget(2.0, 0.1, 0.1, judges="rms", peer="p")
    assert compare("x", moved(0.2, 0.0, 0.0, 0.0), WANT, allowed, FREE).verdict == "pass"
    assert compare("x", moved(0.4, 0.0, 0.0, 0.0), WANT, allowed, TIED).verdict == "fail"


def test_of_quantised_bundles_the_median_row_is_judged():
    peer = moved(0.1, 0.1, 0.1, 5.0)
    allowed = budget(peer, WANT, 2.0, "peer", "median")
    assert allowed.max_abs == pytest.approx(0.2)
    assert compare("x", moved(0.15, 0.1, 9.0, 0.1), WANT, allowed, FREE).verdict == "pass"
    found = compare("x", moved(0.3, 0.3, 0.3, 0.0), WANT, allowed, FREE)
    assert (found.verdict, found.would_pass) == ("fail", pytest.approx(3.0))


def test_a_row_behind_a_tie_is_ambiguous_if_its_distribution_stays():
    found = compare("x", moved(0.11, 0.0, 0.0, 0.0), WANT, ALLOWED, TIED)
    assert (found.verdict, found.behind_ties) == ("ambiguous", 1)
    assert compare("x", moved(3.0, 0.0, 0.0, 0.0), WANT, ALLOWED, TIED).verdict == "fail"


def test_when_most_rows_hide_behind_ties_nothing_was_shown():
    assert compare("x", moved(0.11, 0.11, 0.0, 0.0), WANT, ALLOWED, TIED).verdict == "ambiguous"
    assert compare("x", moved(0.11, 0.11, 0.11, 0.0), WANT, ALLOWED, TIED).verdict == "fail"
    assert compare("x", moved(0.11, 0.11, 0.11, 0.11), WANT, ALLOWED, TIED).verdict == "fail"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_fail(value):
    found = compare("x", moved(value, 0.0, 0.0, 0.0), WANT, ALLOWED, TIED)
    assert (found.verdict, found.would_pass) == ("fail", np.inf)


def test_greedy_tokens_agree_or_are_near_ties_or_wrong():
    agreed = greedy("x", [2, 0, 2, 1], WANT, 0.5, FREE)
    assert (agreed.verdict, agreed.agreed, agreed.first_difference) == ("pass", 4, None)
    close = WANT.copy()
    close[2, 1] = 4.8
    near = greedy("x", [2, 0, 1, 1], close, 0.5, FREE)
    assert (near.verdict, near.agreed, near.first_difference) == ("ambiguous", 3, 2)
    assert near.margin == pytest.approx(0.2)
    assert greedy("x", [2, 0, 1, 1], close, 0.1, FREE).verdict == "fail"
    assert near.behind_ties == 0


def test_a_token_behind_a_tie_may_lose_by_little_probability():
    close = WANT.copy()
    close[2, 1] = 4.8
    excused = greedy("x", [2, 0, 1, 1], close, 0.1, TIED)
    assert (excused.verdict, excused.behind_ties, excused.agreed) == ("ambiguous", 1, 3)
    # 5.0 against 0.0 is a token of another sentence, whatever the router did before it
    wrong = greedy("x", [2, 0, 1, 1], WANT, 0.1, TIED)
    assert (wrong.verdict, wrong.behind_ties, wrong.margin) == ("fail", 0, 5.0)


def test_when_most_tokens_hide_behind_ties_nothing_was_shown():
    close = np.array([[1.0, 0.8, -9.0]] * 4)
    assert greedy("x", [1, 1, 0, 0], close, 0.1, TIED).verdict == "ambiguous"
    many = greedy("x", [1, 1, 1, 0], close, 0.1, TIED)
    assert (many.verdict, many.behind_ties) == ("fail", 3)
    # within the budget no tie is needed
    assert greedy("x", [1, 1, 1, 1], close, 0.3, TIED).verdict == "ambiguous"


def test_no_distribution_within_the_bound_prefers_a_token_that_lost_by_more():
    random = np.random.default_rng(0)
    want = random.normal(size=(20_000, 4))
    got = want + random.normal(scale=0.1, size=want.shape)
    near = divergence(got, want) <= MAX_KL_BEHIND_TIE
    p = np.exp(log_softmax(want))
    lost = p.max(axis=-1) - np.take_along_axis(p, got.argmax(axis=-1)[:, None], axis=-1)[:, 0]
    assert (lost[near] > 0).any()
    assert lost[near].max() <= MAX_LOSS_BEHIND_TIE


@pytest.mark.parametrize(
    ("value", "limit", "share"), [(0.0, 0.0, 0.0), (1e-30, 0.0, np.inf), (1.0, 2.0, 0.5), (0.0, 2.0, 0.0)]
)
def test_a_limit_of_nothing_allows_nothing(value, limit, share):
    assert ratio(value, limit) == share


def test_a_peer_without_any_error_allows_none():
    exact = budget(WANT, WANT, 4.0, "p", "largest")
    found = compare("x", WANT, WANT, exact, FREE)
    assert (found.verdict, found.would_pass) == ("pass", 0.0)
    off = compare("x", moved(0.0, 1e-9, 0.0, 0.0), WANT, exact, FREE)
    assert (off.verdict, off.would_pass) == ("fail", np.inf)
