"""Portable bundles with weights in codes compute exactly what the stored weights say."""

from __future__ import annotations

import numpy as np
import pytest

import mla_runtime
from mla_runtime.backends import ort_codes
from tests.checkpoints import FAMILIES
from tests.oracle import Oracle
from tests.parity.pieces import FIRST, in_pieces
from tests.parity.raw_graph import RawGraph
from tests.parity.stored import dequantised, in_columns, median_nmse
from tests.parity.witness import nmse, token_ids

INT8, INT4 = {"weights": "int8"}, {"weights": "int4"}
MANY = 30


@pytest.mark.parametrize("forms", [INT8, INT4], ids=["int8", "int4"])
@pytest.mark.parametrize("absorb", ["factored", "expanded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_of_the_stored_weights(witness, bundle, family, absorb, forms):
    w = witness(family)
    path = bundle(family, absorb, forms=forms)
    stored = in_columns(path)
    ids = token_ids(w.geometry.vocab_size, MANY)
    want = Oracle(w.geometry, dequantised(w, stored))(ids).logits
    for phase in ("step", "prompt"):
        assert nmse(RawGraph(path, phase)([ids])["logits"], want) < 1e-9, phase
    own = median_nmse(want, w.oracle(ids).logits)
    assert own > 1e-6  # it is another model than the checkpoint's


@pytest.mark.parametrize(
    ("family", "absorb", "forms", "limit"),
    [
        ("deepseek_v2", "merged", INT8, 5e-3),
        ("minicpm3", "merged", INT4, 2e-1),
        ("deepseek_v3", "factored", INT4 | {"head": "int4"}, 2e-1),
        ("youtu", "factored", INT4 | {"cache": "int8", "cache_rope": "int8"}, 2e-1),
        ("glm4_moe_lite", "factored", INT8 | {"cache": "int8"}, 5e-3),
    ],
)
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_other_forms_are_near_the_checkpoint(witness, bundle, family, absorb, forms, limit, dtype):
    """By the median row: gates of random weights often fall the other way."""
    w = witness(family)
    ids = token_ids(w.geometry.vocab_size, MANY)
    path = bundle(family, absorb, dtype, forms=forms)
    for phase in ("step", "prompt"):
        found = RawGraph(path, phase)([ids])["logits"]
        assert 0 < median_nmse(found, w.oracle(ids).logits) < limit, phase


def test_what_does_not_fill_its_groups_has_eight_bits(bundle):
    """Of the small families q_lora_rank, 40, and an expert's width, 24, are no multiples of 32."""
    codes = RawGraph(bundle("deepseek_v3", forms=INT4), "step").bundle.manifest
    assert (codes.opset, codes.precision.group, codes.precision.activations) == (21, 32, "float32")
    stored = in_columns(bundle("deepseek_v3", forms=INT4))
    levels = {name: len(np.unique(np.abs(stored[name][0]))) for name in ("layers.1.attention.q_up.weight",)}
    assert levels["layers.1.attention.q_up.weight"] > 17  # more than two groups of 4 bits have
    assert RawGraph(bundle("deepseek_v3", forms=INT8), "step").bundle.manifest.precision.group is None


@pytest.mark.parametrize("forms", [INT8, INT4 | {"cache": "int8"}], ids=["int8", "int4, int8 rows"])
def test_pieces_steps_and_batches_give_what_the_whole_prompt_gives(witness, bundle, forms):
    w = witness("deepseek_v3")
    ids, other = token_ids(w.geometry.vocab_size, 40), token_ids(w.geometry.vocab_size, 17, seed=1)
    path = bundle("deepseek_v3", forms=forms)
    want = RawGraph(path, "prompt")([ids])["logits"]
    found, batched = in_pieces(path, ids, other)
    assert nmse(found, want[FIRST:]) < 1e-9
    assert nmse(batched, want[-1]) < 1e-9


@pytest.mark.parametrize("forms", [INT8, INT4], ids=["int8", "int4"])
def test_weights_stay_exact_where_memory_is_short(witness, bundle, monkeypatch, forms):
    w = witness("deepseek_v3")
    ids = token_ids(w.geometry.vocab_size, MANY)
    path = bundle("deepseek_v3", forms=forms)
    want = RawGraph(path, "prompt")([ids])["logits"]
    monkeypatch.setattr(ort_codes, "memory_limit", lambda: 1 << 20)
    with mla_runtime.open(path) as model, model.session() as session:
        codes = model.backend._codes
        four = forms is INT4
        assert (codes.bits, codes.written_out, codes.must_be_packed) == (4 if four else 8, False, four)
        assert nmse(session.prefill([ids])[0], want[-1]) < 1e-9
