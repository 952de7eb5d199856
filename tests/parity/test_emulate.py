"""Bundles computed node by node: without rounding as ONNX Runtime computes them, with it as onnx's evaluator.

onnx's reference evaluator runs standard operators in NumPy in the graph's own types.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from mla_export.emulate import Both
from mla_export.emulate.graph import Graph, Held
from mla_export.emulate.watch import Calling, Watch
from mla_export.emulate.weights import Weights
from mla_runtime.bundle import Bundle
from tests.checkpoints import FAMILIES
from tests.parity.raw_graph import RawGraph
from tests.parity.witness import nmse, token_ids

PROMPT, STEPS = 30, 4  # beyond the 24 queries from which a prompt rebuilds keys and values
FEW = 7
FORMS = {"float": {}, "int8": {"cache": "int8", "cache_rope": "int8"}}
# their sums run in an order of their own, their exponentials are libraries' own
SUMS = {"MatMul", "Gemm", "ReduceSum", "ReduceMean", "Softmax", "Sigmoid"}


@pytest.mark.parametrize(
    ("family", "absorb", "form"),
    [
        *((family, "factored", form) for family in FAMILIES for form in FORMS),
        ("deepseek_v3", "merged", "float"),
        ("deepseek_v3", "expanded", "float"),
    ],
)
def test_without_rounding_it_is_what_onnxruntime_computes(witness, bundle, family, absorb, form):
    """Both phases, both branches of a prompt's attention, two sequences of different lengths in a step."""
    made = bundle(family, absorb, "fp32", forms=FORMS[form])
    vocab = witness(family).geometry.vocab_size
    lane = Both(Bundle.open(made)).exact
    rows = [token_ids(vocab, count, seed=count) for count in (PROMPT + STEPS, FEW + STEPS)]
    found: list[list[np.ndarray]] = []
    for row in rows:
        lane.begin(len(row))
        found.append([lane.prompt(row[:-STEPS])])
    for step in range(-STEPS, 0):
        for logits, own in zip(lane.step([row[step] for row in rows]), found, strict=True):
            own.append(logits[None])
    for row, own in zip(rows, found, strict=True):
        want = _by_onnxruntime(made, row)
        # a code that falls the other way moves what follows
        assert nmse(np.concatenate(own), want) < (1e-9 if form == "float" else 1e-5)


def _by_onnxruntime(made, ids: list[int]) -> np.ndarray:
    graphs = {phase: RawGraph(made, phase) for phase in ("prompt", "step")}
    past, logits = graphs["prompt"].empty(1), []
    starts = [0, *range(len(ids) - STEPS, len(ids))]
    for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
        graph = graphs["step" if start else "prompt"]
        out = graph([ids[start:stop]], past=past, past_lengths=[start])
        logits.append(out["logits"])
        past = (
            {t.past: out[t.present] for t in graph.bundle.cache} if not start else graph.appended(past, out)
        )
    return np.concatenate(logits)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_node_rounds_as_onnxs_evaluator_does(witness, bundle, family, form):
    """Of a step graph, each from the same inputs: float16 bit for bit, sums to the last bit or two."""
    made = Bundle.open(bundle(family, "factored", "fp16", forms=FORMS[form]))
    raw, ids = RawGraph(made.path, "step"), token_ids(witness(family).geometry.vocab_size, 12)
    feed = {
        "input_ids": np.array([ids]),
        "position_ids": np.arange(len(ids))[None],
        "past_lengths": np.zeros(1, np.int64),
        "new_lengths": np.array([len(ids)]),
        "logit_rows": np.arange(len(ids)),
        **raw.empty(1),
    }
    path = made.paths[made.graph("step").file]
    known = ReferenceEvaluator(onnx.load(path)).run(None, feed, intermediate=True)
    assert isinstance(known, dict)
    graph, weights = ir.load(path).graph, Weights(made)
    computed = Graph(graph, weights, "float16", Watch(Calling("step", ((0, 0),), len(ids))))
    rounded = 0
    for node in graph:
        inputs = [None if value is None else _held(value, known, weights) for value in node.inputs]
        for value, held in zip(node.outputs, computed._plain(node, inputs), strict=True):
            want, got = known[str(value.name)], held.tensor.numpy()
            assert got.dtype == want.dtype, node.name
            assert held.half == (want.dtype == np.float16), node.name
            if want.dtype == np.float32 or (node.op_type in SUMS and want.dtype == np.float16):
                step = np.spacing(np.maximum(np.abs(want), np.abs(got))).astype(np.float64)
                apart = np.abs(got.astype(np.float64) - want.astype(np.float64))
                # NumPy's evaluator rounds inside of a sigmoid, and sums experts in float16
                steps = 4 if node.op_type == "Sigmoid" else 1
                wide = 2**-10 if node.op_type == "ReduceSum" and want.dtype == np.float16 else 1e-6
                assert (apart <= steps * step + wide * np.abs(want).max()).all(), node.name
            else:
                np.testing.assert_array_equal(got, want, err_msg=str(node.name))
            rounded += want.dtype == np.float16
    assert rounded > 100


def _held(value: ir.Value, known: dict[str, np.ndarray], weights: Weights) -> Held:
    if value.is_initializer():
        return Held(weights(value), value.dtype == ir.DataType.FLOAT16)
    array = np.asarray(known[str(value.name)])
    return Held(torch.from_numpy(array.copy()), array.dtype == np.float16)
