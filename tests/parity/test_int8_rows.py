"""INT8 latent rows: what stands in the cache, and that attention reads exactly that."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import mla_runtime
from mla_graphs.lowering.builder import Builder, Constants
from mla_graphs.lowering.ort_cpu.attention import Integers
from mla_graphs.lowering.portable.int8 import Stored
from mla_runtime.errors import NumericsError
from tests.checkpoints import FAMILIES
from tests.parity.pieces import FIRST, in_pieces
from tests.parity.raw_graph import RawGraph
from tests.parity.witness import nmse, token_ids

LATENT = {"cache": "int8"}
BOTH = {"cache": "int8", "cache_rope": "int8"}
ORT_CPU = {"target": "ort-cpu", "cache": "int8"}
ORT_CPU_BOTH = ORT_CPU | {"cache_rope": "int8"}
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


@pytest.mark.parametrize("queries", [3, MANY])
@pytest.mark.parametrize("forms", [ORT_CPU, ORT_CPU_BOTH], ids=["latent", "latent and rope"])
@pytest.mark.parametrize("family", ["deepseek_v2", "minicpm3"])
def test_integer_products_do_what_the_rounding_of_rows_does_and_little_more(
    witness, bundle, family, forms, queries
):
    """On ort-cpu queries are rounded to int8 too, which is as much again as the rows' own rounding."""
    w = witness(family)
    ids = token_ids(w.geometry.vocab_size, MANY + queries)
    graph = RawGraph(bundle(family, forms=forms), "step")
    past = graph([ids[:MANY]])
    rows = {t.past: past[t.present] for t in graph.bundle.cache}
    found = graph([ids[MANY:]], past=rows, past_lengths=[MANY])
    parts = ("latent", "rope") if forms is ORT_CPU_BOTH else ("latent",)
    plain, rounded = w.oracle(ids).logits[MANY:], w.int8_oracle(*parts)(ids).logits[MANY:]
    errors = [((x - plain) ** 2).sum(axis=1) for x in (found["logits"], rounded)]
    assert np.median(errors[0]) < 4 * np.median(errors[1])
    assert past["present.0.latent"].dtype == np.uint8
    assert past["present.0.latent"].min() >= 1


@pytest.mark.parametrize("heads", [16, 17], ids=["rows as they are", "rows in int8"])
def test_many_small_probabilities_keep_their_weight(heads):
    """One row that takes nearly all, and thousands that share the rest: 8 bits would lose them."""
    rng = np.random.default_rng(0)
    probabilities = np.full((1, 2, 4096), 0.1 / 4095, dtype=np.float32)
    probabilities[:, :, 7] = 0.9
    codes = rng.integers(1, 256, (1, 4096, 16)).astype(np.uint8)
    scale = rng.uniform(0.5, 1.5, (1, 4096)).astype(np.float32)
    found = integer_context(probabilities, codes, scale, heads)
    want = probabilities.astype(float) @ ((codes - 128.0) * scale[..., None])
    without_the_tail = 0.9 * (codes[:, 7] - 128.0) * scale[:, 7]
    assert nmse(found, want) < 1e-6
    assert nmse(np.broadcast_to(without_the_tail[:, None], want.shape), want) > 1e-6


def integer_context(
    probabilities: np.ndarray, codes: np.ndarray, scale: np.ndarray, heads: int
) -> np.ndarray:
    """Run `Integers.context` alone, as it is for so many heads."""
    arrays = {"p": probabilities, "c": codes, "s": scale}
    values = {
        name: ir.Value(
            name=name, shape=ir.Shape(a.shape), type=ir.TensorType(ir.DataType.from_numpy(a.dtype))
        )
        for name, a in arrays.items()
    }
    constants = Constants()
    builder = Builder("x", constants, 20)
    stored = Stored(values["c"], values["s"])
    result = Integers(heads).context(builder, values["p"], stored, ir.DataType.FLOAT, "context")
    graph = ir.Graph(
        [*values.values()], [result], nodes=builder.nodes, initializers=constants.initializers,
        opset_imports={"": 20}, name="one",
    )  # fmt: skip
    proto = ir.to_proto(ir.Model(graph, ir_version=10))
    proto.graph.output[0].type.tensor_type.elem_type = 1
    return ort.InferenceSession(proto.SerializeToString()).run(None, arrays)[0]


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
    found, batched = in_pieces(bundle("deepseek_v2", forms=rows), ids, other)
    assert nmse(found, want[FIRST:]) < 1e-6
    assert nmse(batched, want[-1]) < 1e-6


@pytest.mark.parametrize("phase", ["step", "prompt"])
@pytest.mark.parametrize("new", [3, MANY])
@pytest.mark.parametrize("forms", [BOTH, ORT_CPU_BOTH], ids=["portable", "ort-cpu"])
def test_rows_beyond_the_length_have_no_say(witness, bundle, phase, new, forms):
    ids = token_ids(witness("deepseek_v3").geometry.vocab_size, 6 + new)
    graph = RawGraph(bundle("deepseek_v3", forms=forms), phase)
    past = graph.empty(1, rows=16)
    first = graph([ids[:6]])
    for tensor in graph.bundle.cache:
        past[tensor.past][:, :6] = first[tensor.present]
    clean = graph([ids[6:]], past=past, past_lengths=[6])
    for rows in past.values():
        rows[:, 6:] = 127 if rows.dtype.itemsize == 1 else 1e30
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
