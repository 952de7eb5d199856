"""A side's verdict from logits alone: what the median token does not see, and how wide a near tie is."""

from __future__ import annotations

import numpy as np
import pytest

from mla_export.compare.decode import Decoded
from mla_export.compare.held import Held
from mla_export.compare.result import Gate, Side
from mla_export.compare.verdicts import judged
from mla_export.judge import Budget, Judged

PROMPTS = [[1, 2], [3]]
TOKENS, VOCAB = 20, 50
RNG = np.random.default_rng(0)
WANT = [RNG.normal(size=(TOKENS, VOCAB)) * 3 for _ in PROMPTS]
PEER = [want + RNG.normal(size=want.shape) * 0.1 for want in WANT]


def verdict(got: list[np.ndarray], judges: Judged = "median", peer: list[np.ndarray] | None = PEER) -> Side:
    """Judge logits whose own tokens are the reference's."""
    budget = Budget(2.0, 1.0, 0.2, judges, "a peer")
    none = [np.zeros(TOKENS, bool)] * len(PROMPTS)
    held = Held(Gate("computed", judges, 2.0, 1.0, 0.2, "words"), budget, WANT, none, WANT, none, peer)
    decoded = Decoded(got, [want.argmax(-1).tolist() for want in WANT])
    return judged(Side("a", "a", "ort:cpu", None, None, None, "pass"), decoded, held, PROMPTS)


def off(share: float, by: float, prompts: tuple[int, ...] = (0, 1)) -> list[np.ndarray]:
    """Logits as far off as the peer's, and in the first `share` of a prompt's tokens by more."""
    got = [want + RNG.normal(size=want.shape) * 0.1 for want in WANT]
    for prompt in prompts:
        got[prompt][: int(share * TOKENS)] += RNG.normal(size=(int(share * TOKENS), VOCAB)) * by
    return got


def test_rounding_like_the_peers_passes():
    found = verdict(off(0.0, 0.0))
    assert found.verdict == "pass"
    assert found.bulk.kl < 0.5 * found.bulk.kl_allowed
    assert found.bulk.prompt_rms < 0.75 * found.bulk.prompt_allowed


def test_a_quarter_of_the_tokens_is_seen_though_the_median_is_not_moved():
    found = verdict(off(0.25, 2.0))
    assert found.logits.verdict == "pass"
    assert found.verdict == "fail"
    assert found.bulk.kl > found.bulk.kl_allowed


def test_a_prompt_of_its_own_is_seen_though_it_is_fewer_than_half():
    found = verdict(off(0.9, 0.25, prompts=(1,)))
    assert found.logits.verdict == "pass"
    assert found.verdict == "fail"
    assert found.bulk.prompt == 1
    assert found.bulk.prompt_rms > found.bulk.prompt_allowed


def test_single_tokens_that_were_routed_otherwise_are_not_rounding():
    assert verdict(off(0.05, 5.0)).verdict == "pass"


@pytest.mark.parametrize("judges", ["largest", "rms"])
def test_where_all_tokens_are_judged_there_is_nothing_beside(judges):
    assert verdict(off(0.0, 0.0), judges).bulk is None
    assert verdict(off(0.0, 0.0), peer=None).bulk is None


def test_a_near_tie_is_no_wider_than_the_peers_own_error():
    wild = off(0.05, 5.0)
    largest = max(float(np.abs(peer - want).max()) for peer, want in zip(PEER, WANT, strict=True))
    found = verdict(wild)
    assert found.logits.errors.max_abs > 4.0
    assert found.greedy[0].limit == pytest.approx(2 * max(largest, 1.0))
    assert verdict(wild, peer=None).greedy[0].limit == 2 * found.logits.errors.max_abs
