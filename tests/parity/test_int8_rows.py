"""INT8 latent rows: what stands in the cache, and that attention reads exactly that."""

from __future__ import annotations

import numpy as np
import pytest

import mla_runtime
from mla_runtime.errors import NumericsError
from tests.checkpoints import FAMILIES
from tests.parity.raw_graph import RawGraph
from tests.parity.witness import nmse, token_ids

LATENT = {"cache": "int8"}
BOTH = {"cache": "int8", "cache_rope": "int8"}
MANY = 30  # queries from which on the prompt graph rebuilds keys and values


@pytest.mark.parametrize("phase", ["step", "prompt"])
@pytest.mark.parametrize("absorb", ["factored", "merged"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_a_model_with_rounded_latents(witness, bundle, family, absorb, phase):
    w = witness(family)
    ids = token_ids(w.geometry.vocab_size, MANY)
    graph = RawGraph(bundle(family, absorb, forms=LATENT), phase)
    want = w.int8_oracle("latent")(ids)
    found = graph([ids])
    # A code may differ by one where float32 and float64 fall on two sides of a half. In the first layer next
    # to none does; in later ones each moves others, but far less than what rounding itself does.
    assert nmse(found["logits"], want.logits) < nmse(want.logits, w.oracle(ids).logits) / 5
    codes, scale = found["present.0.latent"][0], found["present.0.latent_scale"][0]
    assert codes.dtype == np.int8
    assert (np.abs(codes.astype(int)).max(axis=1) == 127).all()
    off = np.abs(codes - want.latent[0] / scale[:, None])
    assert off.max() < 1.01
    assert (off > 0.01).sum() <= 2
    assert found["present.0.rope"].dtype == np.float32


def test_rotary_keys_in_int8_too(witness, bundle):
    w = witness("deepseek_v3")
    ids = token_ids(w.geometry.vocab_size, MANY)
    want = w.int8_oracle("latent", "rope")(ids)
    for phase in ("step", "prompt"):
        found = RawGraph(bundle("deepseek_v3", forms=BOTH), phase)([ids])
        assert nmse(found["logits"], want.logits) < 1e-6
        codes, scale = found["present.1.rope"][0], found["present.1.rope_scale"][0]
        assert nmse(codes * scale[:, None], want.rope[1]) < 1e-6


@pytest.mark.parametrize("rows", [LATENT, BOTH], ids=["latent", "latent and rope"])
def test_pieces_steps_and_batches_give_what_the_whole_prompt_gives(witness, bundle, rows):
    w = witness("deepseek_v2")
    ids, other = token_ids(w.geometry.vocab_size, 40), token_ids(w.geometry.vocab_size, 17, seed=1)
    want = w.int8_oracle(*(("latent", "rope") if rows is BOTH else ("latent",)))(ids).logits
    with mla_runtime.open(bundle("deepseek_v2", forms=rows)) as model:
        with model.session() as session:
            session.prefill([ids[:33]])
            found = [session.prefill([ids[33:36]])[0].copy()]
            found += [session.step([token])[0].copy() for token in ids[36:]]
        with model.session(batch=2) as session:
            session.prefill([ids[:36], other])
            for token in ids[36:]:
                batched = session.step([token, other[0]])[0].copy()
    assert nmse(np.stack(found), want[35:]) < 1e-6
    assert nmse(batched, want[-1]) < 1e-6


@pytest.mark.parametrize("phase", ["step", "prompt"])
@pytest.mark.parametrize("new", [3, MANY])
def test_rows_beyond_the_length_have_no_say(witness, bundle, phase, new):
    ids = token_ids(witness("deepseek_v3").geometry.vocab_size, 6 + new)
    graph = RawGraph(bundle("deepseek_v3", forms=BOTH), phase)
    past = graph.empty(1, rows=16)
    first = graph([ids[:6]])
    for tensor in graph.bundle.cache:
        past[tensor.past][:, :6] = first[tensor.present]
    clean = graph([ids[6:]], past=past, past_lengths=[6])
    for rows in past.values():
        rows[:, 6:] = 127 if rows.dtype == np.int8 else 1e30
    poisoned = graph([ids[6:]], past=past, past_lengths=[6])
    for name, value in clean.items():
        np.testing.assert_array_equal(poisoned[name], value, err_msg=name)


def test_a_scale_that_is_not_finite_stops_the_step(bundle):
    with mla_runtime.open(bundle("deepseek_v3", forms=LATENT)) as model, model.session() as session:
        session.prefill([[1, 2, 3]])
        scales = next(
            rows
            for rows, tensor in zip(session._buffers._rows, model.bundle.cache, strict=True)
            if tensor.holds == "latent_scale"
        )
        scales[0, 1] = np.inf
        with pytest.raises(NumericsError):
            session.step([4])
        scales[0, 1] = 0.01
        assert np.isfinite(session.step([4])).all()


def test_bundle_says_what_a_row_holds(bundle):
    opened = mla_runtime.Bundle.open(bundle("deepseek_v3", forms=LATENT))
    first = {tensor.holds: tensor for tensor in opened.cache if tensor.layer == 0}
    assert [*first] == ["latent", "latent_scale", "rope"]
    assert (first["latent"].dtype, first["latent_scale"].dtype, first["latent_scale"].row) == (
        "int8", "float32", ()
    )  # fmt: skip
    assert first["latent"].row_format.endswith("value = code · latent_scale")
    assert opened.manifest.precision.words == "float32, cache int8"
    floats = mla_runtime.Bundle.open(bundle("deepseek_v3"))
    latent, rope = (t.row[0] for t in floats.cache if t.layer == 0)
    assert sum(t.row_bytes for t in first.values()) == latent + 4 + 4 * rope
