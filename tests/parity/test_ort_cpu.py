"""Target `ort-cpu`: the same numbers in floats, and in blocks what the stored weights say."""

from __future__ import annotations

import numpy as np
import pytest

import mla_runtime
from tests.checkpoints import FAMILIES
from tests.oracle import Oracle
from tests.parity.pieces import FIRST, in_pieces
from tests.parity.raw_graph import RawGraph
from tests.parity.stored import dequantised, in_blocks, median_nmse
from tests.parity.witness import nmse, token_ids

FLOAT = {"target": "ort-cpu"}
INT8 = {"target": "ort-cpu", "weights": "int8"}
INT4 = {"target": "ort-cpu", "weights": "int4"}
INT4_HEAD = INT4 | {"head": "int4"}
FEW, MANY = 3, 30  # with many queries keys and values are rebuilt, with few they are not


@pytest.mark.parametrize("absorb", ["factored", "merged", "expanded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_floats_it_computes_what_the_oracle_does(witness, bundle, family, absorb):
    w = witness(family)
    ids = token_ids(w.geometry.vocab_size, MANY)
    graph = RawGraph(bundle(family, absorb, forms=FLOAT), "step")
    want = w.oracle(ids).logits
    assert nmse(graph([ids])["logits"], want) < 1e-9
    assert nmse(graph([ids[:FEW]])["logits"], want[:FEW]) < 1e-9


@pytest.mark.parametrize("forms", [INT8, INT4], ids=["int8", "int4"])
@pytest.mark.parametrize("family", ["deepseek_v3", "youtu"])
def test_the_stored_weights_are_those_of_the_checkpoint_rounded(witness, bundle, family, forms):
    w, found = witness(family), in_blocks(bundle(family, forms=forms))
    for name, ours in {
        "self_attn.o_proj": "attention.o_proj.weight",
        "mlp.experts.1.down_proj": "moe.experts.down",
        "mlp.down_proj": "mlp.down.weight",
    }.items():
        layer = 1 if ".experts." in name else 0
        theirs = w.tensors.get(f"model.layers.{layer}.{name}.weight")
        if theirs is None:
            continue
        key = f"layers.{layer}.{ours}" + (".1" if ".experts." in name else "")
        if forms is INT8 and family != "youtu" and ours == "mlp.down.weight":
            assert key not in found  # stays float
            continue
        values = found[key][:, : theirs.shape[1]]
        bits = 4 if forms is INT4 and (family == "youtu" or ours != "mlp.down.weight") else 8
        assert 1e-9 < nmse(values, theirs) < {8: 1e-4, 4: 1e-2}[bits], key


@pytest.mark.parametrize("forms", [INT8, INT4], ids=["int8", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_compute_what_their_weights_say_but_for_rounded_activations(witness, bundle, family, forms):
    """The model whose weights are the stored ones, by the oracle: what is left is int8 activations."""
    w = witness(family)
    path = bundle(family, forms=forms)
    rounded = Oracle(w.geometry, dequantised(w, in_blocks(path)))
    ids = token_ids(w.geometry.vocab_size, MANY)
    want = rounded(ids).logits
    # the median row: a gate of random weights often falls the other way
    error = median_nmse(RawGraph(path, "step")([ids])["logits"], want)
    assert error < 5e-3
    if forms is INT4:  # which the checkpoint's own weights are further from
        assert error < median_nmse(want, w.oracle(ids).logits) / 3


def test_a_head_of_four_bits_is_further_off_than_one_of_eight(witness, bundle):
    w = witness("deepseek_v3")
    ids = token_ids(w.geometry.vocab_size, MANY)
    want = w.oracle(ids).logits
    rough, fine = (bundle("deepseek_v3", forms=forms) for forms in (INT4_HEAD, INT4))
    theirs = w.tensors["lm_head.weight"]
    errors = [nmse(in_blocks(path)["head.weight"][:, : theirs.shape[1]], theirs) for path in (rough, fine)]
    assert errors[0] > 1e-3 > 1e-4 > errors[1] > 0
    outputs = [median_nmse(RawGraph(path, "step")([ids])["logits"], want) for path in (rough, fine)]
    assert outputs[0] > outputs[1]


@pytest.mark.parametrize("forms", [FLOAT, INT4 | {"cache": "int8"}], ids=["float", "int4, int8 rows"])
def test_pieces_steps_and_batches_give_what_the_whole_prompt_gives(witness, bundle, forms):
    w = witness("deepseek_v3")
    ids, other = token_ids(w.geometry.vocab_size, 40), token_ids(w.geometry.vocab_size, 17, seed=1)
    path = bundle("deepseek_v3", forms=forms)
    want = RawGraph(path, "prompt")([ids])["logits"]
    found, batched = in_pieces(path, ids, other)
    # rounding of activations and rows follows sums, whose order is not that of the whole prompt
    limit = 1e-9 if forms is FLOAT else 1e-2
    assert nmse(found, want[FIRST:]) < limit
    assert nmse(batched, want[-1]) < limit


def test_padding_and_rows_beyond_the_length_have_no_say(witness, bundle):
    w = witness("deepseek_v3")
    long, short = token_ids(w.geometry.vocab_size, MANY), token_ids(w.geometry.vocab_size, 3, seed=1)
    padding = token_ids(w.geometry.vocab_size, MANY - 3, seed=2)
    graph = RawGraph(bundle("deepseek_v3", forms=INT4), "step")
    one = graph([long, short + [0] * len(padding)], new_lengths=[MANY, 3])
    other = graph([long, short + padding], new_lengths=[MANY, 3])
    rows = range(MANY + 3)
    np.testing.assert_array_equal(one["logits"][rows], other["logits"][rows])


def test_one_graph_serves_both_phases(bundle):
    opened = mla_runtime.Bundle.open(bundle("deepseek_v3", forms=INT4))
    assert opened.manifest.target == "ort-cpu"
    assert opened.graph("step").file == opened.graph("prompt").file == "model.onnx"
    with mla_runtime.open(opened.path) as model:
        backend = model.backend
        assert backend.graph("step", 1) is backend.graph("prompt", 1) is backend.graph("step", 4)
