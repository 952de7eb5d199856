"""Every family in every form of attention computes what Hugging Face's class and the oracle compute."""

from __future__ import annotations

import pytest

from tests.checkpoints import FAMILIES, VARIANTS
from tests.parity.judge import judge_bundle

ABSORB = ("factored", "merged", "expanded")
# one token; less than a chunk; a chunk of 32 and a rest; beyond YaRN's and LongRoPE's original contexts
LENGTHS = (1, 7, 40, 150)


@pytest.mark.parametrize("absorb", ABSORB)
@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_chunks_64_steps_and_ragged_batch(witness, bundle, family, absorb):
    w = witness(family)
    found = judge_bundle(bundle(family, absorb), w, LENGTHS, steps=64)
    assert not found.failed
    assert {c.name for c in found.comparisons} == {
        "prompt",
        "steps",
        "prompt in pieces",
        "token by token",
        "ragged batch",
    }
    if w.geometry.moe is None:
        assert not found.ambiguous or [type(a).__name__ for a in found.ambiguous] == ["Greedy"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_family_can_be_asked_for(witness, bundle, variant):
    # the forms differ in the attention only, where biases and query compression meet them
    for absorb in ABSORB if "biases" in variant or "no_q_lora" in variant else ABSORB[:1]:
        assert not judge_bundle(bundle(variant, absorb), witness(variant), (7, 40), steps=4).failed


@pytest.mark.parametrize("max_context", [100, 400])
def test_longrope_factors_are_fixed_by_the_export(witness, bundle, max_context):
    w = witness("minicpm3", max_context=max_context)
    found = judge_bundle(bundle("minicpm3", "factored", max_context=max_context), w, (7, 40), steps=4)
    assert not found.failed
