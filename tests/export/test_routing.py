"""Margins of a gate against the oracle's, and what counts as a near tie."""

from __future__ import annotations

import numpy as np
import pytest

from mla_export.routing import margins, near_ties
from mla_graphs.geometry import Moe
from tests.oracle import gate


def moe(**changes) -> Moe:
    values = {
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 4,
        "shared_intermediate_size": 4,
        "scoring": "sigmoid",
        "correction_bias": True,
        "group_score": "top2",
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
    }
    return Moe(**{**values, **changes})


CASES = [
    moe(),
    moe(group_score=None, n_group=1, topk_group=1),
    moe(group_score="top2", n_group=1, topk_group=1),
    moe(scoring="softmax", group_score="max"),
    moe(scoring="softmax", group_score=None, n_group=1, topk_group=1),
    moe(group_score=None, n_group=1, topk_group=1, num_experts_per_tok=8),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("biased", [False, True])
def test_margins_are_the_oracles(case, biased):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 8))
    bias = rng.normal(size=8) if biased else None
    _, _, wanted = gate(logits, case, bias)
    np.testing.assert_allclose(margins(logits, case, bias), wanted, rtol=1e-12)


@pytest.mark.parametrize("case", CASES[:-1])
def test_no_choice_changes_beyond_a_near_tie(case):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4000, 8))
    peer = logits + rng.uniform(-0.02, 0.02, size=logits.shape)
    ours, theirs = (np.sort(gate(x, case, None)[0], axis=-1) for x in (logits, peer))
    changed = (ours != theirs).any(axis=-1)
    tied = near_ties(logits, peer, case, None, factor=1.0)
    assert changed.sum() > 20
    assert not (changed & ~tied).any()
    assert tied.mean() < 0.5
