"""What stands in the cache, and that only the rows that count have a say."""

from __future__ import annotations

import numpy as np
import pytest

from tests.checkpoints import FAMILIES
from tests.parity.raw_graph import RawGraph
from tests.parity.witness import nmse, token_ids

PHASES = ("step", "prompt")
# few and many new tokens: with many the prompt graph rebuilds keys and values, with few it attends to latents
FEW, MANY = 8, 30


@pytest.fixture(params=PHASES)
def phase(request) -> str:
    return request.param


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_the_latent_after_its_norm_and_the_rotated_key(witness, bundle, family, phase):
    w = witness(family)
    ids = token_ids(w.geometry.vocab_size, MANY)
    trace = w.oracle(ids)
    for absorb in ("factored", "merged"):
        found = RawGraph(bundle(family, absorb), phase)([ids])
        assert nmse(found["logits"], trace.logits) < 1e-9
        for layer in range(w.geometry.num_hidden_layers):
            assert nmse(found[f"present.{layer}.latent"][0], trace.latent[layer]) < 1e-10
            assert nmse(found[f"present.{layer}.rope"][0], trace.rope[layer]) < 1e-10


def test_rotated_keys_stand_at_their_positions(witness, bundle, phase):
    # attention sees differences of positions only, so that logits would not show an offset of all of them
    w = witness("deepseek_v3")
    ids = token_ids(w.geometry.vocab_size, 8)
    graph = RawGraph(bundle("deepseek_v3", "factored"), phase)
    found = graph([ids], positions=np.arange(300, 308)[None])
    trace = w.oracle(ids, first_position=300)
    assert nmse(found["present.2.rope"][0], trace.rope[2]) < 1e-10
    assert nmse(found["present.2.rope"][0], w.oracle(ids, first_position=301).rope[2]) > 1e-2


@pytest.mark.parametrize("new", [FEW, MANY])
@pytest.mark.parametrize("absorb", ["factored", "merged", "expanded"])
def test_rows_beyond_the_length_have_no_say_however_large(witness, bundle, phase, absorb, new):
    w = witness("deepseek_v3")
    ids = token_ids(w.geometry.vocab_size, 6 + new)
    graph = RawGraph(bundle("deepseek_v3", absorb), phase)
    past = graph.empty(1, rows=16)
    first = graph([ids[:6]])
    for tensor in graph.bundle.cache:
        past[tensor.past][:, :6] = first[tensor.present]
    clean = graph([ids[6:]], past=past, past_lengths=[6])
    for rows in past.values():
        rows[:, 6:] = 1e30
    poisoned = graph([ids[6:]], past=past, past_lengths=[6])
    for name, value in clean.items():
        np.testing.assert_array_equal(poisoned[name], value, err_msg=name)
    assert nmse(clean["logits"], w.oracle(ids).logits[6:]) < 1e-9
    # the same rows do poison when they count, so the test can fail
    counted = graph([ids[6:]], past=past, past_lengths=[7])
    assert not np.allclose(counted["logits"], clean["logits"])


@pytest.mark.parametrize("new", [FEW, MANY])
@pytest.mark.parametrize("absorb", ["factored", "expanded"])
def test_padding_among_the_new_rows_has_no_say(witness, bundle, phase, absorb, new):
    w = witness("deepseek_v3")
    long, short = token_ids(w.geometry.vocab_size, new), token_ids(w.geometry.vocab_size, 3, seed=1)
    padding = token_ids(w.geometry.vocab_size, new - 3, seed=2)
    graph = RawGraph(bundle("deepseek_v3", absorb), phase)
    one = graph([long, short + [0] * len(padding)], new_lengths=[new, 3])
    other = graph([long, short + padding], new_lengths=[new, 3])
    rows = range(new + 3)
    np.testing.assert_array_equal(one["logits"][rows], other["logits"][rows])
    assert nmse(one["logits"][:new], w.oracle(long).logits) < 1e-9
    assert nmse(one["logits"][new : new + 3], w.oracle(short).logits) < 1e-9


def test_padding_does_not_reach_the_experts(bundle, phase):
    graph = RawGraph(bundle("deepseek_v3", "factored"), phase)
    shown = graph([[5, 6, 7, 8]], new_lengths=[4])["logits"]
    hidden = graph([[5, 6, 7, 8]], new_lengths=[2])["logits"]
    np.testing.assert_array_equal(shown[:2], hidden[:2])
    # a padded row that went through its experts would give the same logits as when it counts
    assert not np.allclose(shown[2:], hidden[2:])


def test_rows_of_a_batch_are_the_rows_alone(witness, bundle, phase):
    w = witness("deepseek_v3")
    graph = RawGraph(bundle("deepseek_v3", "factored"), phase)
    for new in (FEW, MANY):
        rows = [token_ids(w.geometry.vocab_size, new, seed=s) for s in range(3)]
        batch = graph(rows)["logits"].reshape(3, new, -1)
        for together, row in zip(batch, rows, strict=True):
            assert nmse(together, graph([row])["logits"]) < 1e-11


def test_only_the_rows_that_are_asked_for_go_through_the_head(bundle, phase):
    graph = RawGraph(bundle("youtu", "factored"), phase)
    every = graph([[1, 2, 3, 4]])["logits"]
    some = graph([[1, 2, 3, 4]], logit_rows=[3, 1])["logits"]
    np.testing.assert_allclose(some, every[[3, 1]], rtol=1e-5, atol=1e-5)
