"""Whole models in `mla::` operators, computed by the operators' definitions.

In float64 they are held against Hugging Face's unabsorbed layers: the proof that absorbing a checkpoint, in
each form and both phases, changes nothing. In float16 they are held against the lowered graph.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from mla_export import operators
from mla_export.assemble import assemble
from mla_export.layout import layout
from mla_export.params import Recipes
from mla_export.plan import Plan
from mla_export.trace import TracedModel, trace
from mla_graphs.geometry import Absorb, Phase
from tests.checkpoints import FAMILIES
from tests.parity.raw_graph import RawGraph
from tests.parity.witness import CASES, Witness, nmse, token_ids
from tests.quick_trace import quick_tracing

FORMS = ("factored", "merged", "expanded")
PROMPT, STEP = 30, 7  # the first is beyond the 24 queries from which a prompt rebuilds keys and values
Rows = dict[str, torch.Tensor]


@functools.cache
def traced(plan: Plan) -> TracedModel:
    with quick_tracing():
        return trace(plan)


class Model:
    """A witness's checkpoint as graphs of operators in one form, fed with weights in float64."""

    def __init__(self, w: Witness, absorb: Absorb):
        self.witness = w
        self.plan = Plan.floats(w.geometry, absorb, "float32")
        read = functools.partial(lambda names, name: w.checkpoint.read(names[name]), w.names)
        self.recipes = Recipes(w.geometry, absorb, torch.float64, read)

    def graph(self, phase: Phase) -> ir.Graph:
        return assemble(self.plan, phase, traced(self.plan), layout(self.plan), "none").graph

    def weight(self, name: str) -> torch.Tensor:
        return torch.cat(list(self.recipes(name)))

    def empty(self) -> Rows:
        return {
            spec.past.name: torch.zeros(
                1, 1, *(size for size in spec.past.shape[2:] if isinstance(size, int))
            )
            for spec in self.plan.contract.cache
        }

    def feed(self, ids: list[int], length: int) -> Rows:
        count = len(ids)
        return {
            "input_ids": torch.tensor([ids]),
            "position_ids": torch.arange(length, length + count)[None],
            "past_lengths": torch.tensor([length]),
            "new_lengths": torch.tensor([count]),
            "logit_rows": torch.arange(count),
        }

    def __call__(
        self, phase: Phase, ids: list[int], past: Rows, length: int, precision: operators.Precision
    ) -> tuple[np.ndarray, Rows]:
        """Give the logits of all new tokens behind `length` past rows, and the cache with their rows."""
        nodes = operators.run(self.graph(phase), self.feed(ids, length) | past, self.weight, precision)
        found = dict(_values(nodes))
        cache = {
            spec.past.name: torch.cat((past[spec.past.name][:, :length], found[spec.present.name]), dim=1)
            for spec in self.plan.contract.cache
        }
        return found["logits"].numpy(), cache


def _values(nodes: Iterator[tuple[ir.Node, list[torch.Tensor]]]) -> Iterator[tuple[str, torch.Tensor]]:
    for node, outputs in nodes:
        yield from ((str(value.name), x) for value, x in zip(node.outputs, outputs, strict=True))


@pytest.mark.parametrize("absorb", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_a_prompt_and_a_step_are_hugging_faces_layers_in_float64(witness, case, absorb):
    w = witness(case)
    ids = token_ids(w.geometry.vocab_size, PROMPT + STEP)
    want = w.layered(ids, "float64").logits
    model = Model(w, absorb)
    head, cache = model("prompt", ids[:PROMPT], model.empty(), 0, "float64")
    assert nmse(head, want[:PROMPT]) <= 1e-24
    for phase in ("step", "prompt"):
        tail, _ = model(phase, ids[PROMPT:], cache, PROMPT, "float64")
        assert nmse(tail, want[PROMPT:]) <= 1e-24, phase


def test_a_wrong_scale_is_seen(witness):
    w = witness("deepseek_v3")
    ids = token_ids(w.geometry.vocab_size, STEP)
    model = Model(w, "factored")
    graph = model.graph("step")
    for node in graph:
        if node.name == "layers.1.attention":
            node.attributes["scale"] = ir.AttrFloat32(
                "scale", node.attributes["scale"].as_float() * (1 + 1e-6)
            )
    model.graph = lambda phase: graph  # type: ignore[method-assign]
    found, _ = model("step", ids, model.empty(), 0, "float64")
    assert nmse(found, w.layered(ids, "float64").logits) > 1e-20


@pytest.mark.parametrize("absorb", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_as_right_as_hugging_faces(witness, family, absorb):
    w = witness(family)
    ids = token_ids(w.geometry.vocab_size, 40)
    model = Model(w, absorb)
    found, _ = model("step", ids, model.empty(), 0, "float32")
    want, peer = (w.layered(ids, p).logits for p in ("float64", "float32"))
    assert np.sqrt(nmse(found, want)) <= 4 * np.sqrt(nmse(peer, want))


@pytest.mark.parametrize("absorb", FORMS)
@pytest.mark.parametrize("family", ["minicpm3", "youtu"])
def test_float16_is_the_lowered_graph_rounded_node_by_node(witness, bundle, family, absorb):
    """onnx's evaluator computes the lowered graph in its own types; sums may run in another order."""
    w = witness(family)
    ids = token_ids(w.geometry.vocab_size, 40)
    found, _ = (model := Model(w, absorb))("step", ids, model.empty(), 0, "float16")
    lowered = _evaluated(bundle(family, absorb, "fp16"), ids)
    exact = w.layered(ids, "float64").logits
    assert nmse(found, lowered) < 0.5 * min(nmse(found, exact), nmse(lowered, exact))
    assert 0.8 < nmse(found, exact) / nmse(lowered, exact) < 1.25


def _evaluated(bundle: Path, ids: list[int]) -> np.ndarray:
    graph = RawGraph(bundle, "step")
    count = len(ids)
    feed = graph.empty(1) | {
        "input_ids": np.array([ids]),
        "position_ids": np.arange(count)[None],
        "past_lengths": np.array([0]),
        "new_lengths": np.array([count]),
        "logit_rows": np.arange(count),
    }
    found = ReferenceEvaluator(onnx.load(bundle / "step.onnx")).run(["logits"], feed)
    return np.asarray(found[0])


def test_values_are_dropped_after_their_last_use(witness):
    w = witness("youtu")
    model, count = Model(w, "factored"), 4
    asked: list[str] = []

    def weight(name: str) -> torch.Tensor:
        asked.append(name)
        return model.weight(name)

    feed = model.feed(token_ids(w.geometry.vocab_size, count), 0) | model.empty()
    seen: dict[str, weakref.ref[torch.Tensor]] = {}
    most = 0
    for node, outputs in operators.run(model.graph("step"), feed, weight, "float32"):
        seen |= {str(v.name): weakref.ref(x) for v, x in zip(node.outputs, outputs, strict=True)}
        most = max(most, sum(value() is not None for value in seen.values()))
    # what the layers share, a residual, and the inputs and outputs of one operator
    assert most < 20 < len(seen)
    assert sorted(asked) == sorted(set(asked)), "a weight was asked for twice"


def test_a_missing_input_is_named(witness):
    model = Model(witness("youtu"), "factored")
    with pytest.raises(ValueError, match=r"no input input_ids, .*past\.0\.latent, past\.0\.rope"):
        next(operators.run(model.graph("step"), {}, model.weight, "float32"))
