"""The yardstick itself against Hugging Face's classes, which share no line with it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.oracle import Oracle
from tests.parity.witness import CASES, nmse, token_ids

# past LongRoPE's and YaRN's original contexts, so that the long factors and the interpolated pairs count
LENGTH = 150


@pytest.mark.parametrize("case", CASES)
def test_oracle_is_hugging_face_in_float64(witness, case):
    w = witness(case)
    ids = token_ids(w.geometry.vocab_size, LENGTH)
    theirs = w.layered(ids, "float64").logits
    assert nmse(w.oracle(ids).logits, theirs) <= 1e-26


@pytest.mark.parametrize("case", CASES)
def test_oracle_is_hugging_face_in_float32_but_for_rounding(witness, case):
    w = witness(case)
    ids = token_ids(w.geometry.vocab_size, LENGTH)
    found = w.oracle(ids)
    # a few hundred roundings of 2^-24 in each logit; a routing flip would be a thousand times more
    assert nmse(w.hugging_face(ids), found.logits) <= (100 * 2.0**-24) ** 2


def test_first_position_moves_only_the_angles(witness):
    w = witness("deepseek_v3")
    ids = token_ids(w.geometry.vocab_size, 20)
    plain, moved = w.oracle(ids), w.oracle(ids, first_position=100)
    # rotary attention is relative: logits stay, cached rotary keys turn, latents do not care
    assert nmse(moved.logits, plain.logits) <= 1e-24
    np.testing.assert_allclose(moved.latent[0], plain.latent[0], rtol=1e-12)
    assert nmse(moved.rope[0], plain.rope[0]) > 0.1


def test_oracle_is_causal(witness):
    w = witness("glm4_moe_lite")
    ids = token_ids(w.geometry.vocab_size, 30)
    assert nmse(w.oracle(ids).logits[:20], w.oracle(ids[:20]).logits) <= 1e-26


def test_blocked_attention_is_attention(witness, monkeypatch):
    w = witness("youtu")
    ids = token_ids(w.geometry.vocab_size, 50)
    whole = w.oracle(ids).logits
    monkeypatch.setattr("tests.oracle.QUERY_BLOCK", 7)
    assert nmse(w.oracle(ids).logits, whole) <= 1e-26


def test_margin_tells_a_tied_gate(witness):
    w = witness("deepseek_v3")
    ids = token_ids(w.geometry.vocab_size, 10)
    assert np.isfinite(w.oracle(ids).margin).all()
    assert (w.oracle(ids).margin > 0).all()
    tied = dict(w.tensors)
    for layer in (1, 2):
        name = f"model.layers.{layer}.mlp.gate"
        tied[f"{name}.weight"] = np.zeros_like(tied[f"{name}.weight"])
        tied[f"{name}.e_score_correction_bias"] = np.zeros_like(tied[f"{name}.e_score_correction_bias"])
    assert Oracle(w.geometry, tied)(ids).margin.max() == 0.0


@pytest.mark.parametrize(
    "change",
    [
        {"softmax_scale": 0.1},
        {"kv_norm_eps": 1e-2},
        {"rms_norm_eps": 1e-2},
        {"residual_scale": 0.9},
        {"logit_scale": 1.1},
        {"embedding_scale": 0.5},
    ],
    ids=lambda c: next(iter(c)),
)
def test_oracle_heeds_the_geometry(witness, change):
    w = witness("deepseek_v3")
    ids = token_ids(w.geometry.vocab_size, 10)
    other = Oracle(dataclasses.replace(w.geometry, **change), w.tensors)
    assert nmse(other(ids).logits, w.oracle(ids).logits) > 1e-9


@pytest.mark.parametrize("case", CASES)
def test_what_hugging_faces_layers_cache_are_the_oracles_rows(witness, case):
    w = witness(case)
    ids = token_ids(w.geometry.vocab_size, 20)
    trace, seen = w.oracle(ids), []

    def after(layer, lanes):
        (rows,) = lanes["float64"].cached
        seen.append(layer)
        assert nmse(rows.latent.numpy(), trace.latent[layer]) < 1e-24
        assert nmse(rows.rope.numpy(), trace.rope[layer]) < 1e-24

    w.reference.passages([ids], ["float64"], after=after)
    assert seen == list(range(w.geometry.num_hidden_layers))
