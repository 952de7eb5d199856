"""Router ties: exact ones go to the lowest expert in both graphs, near ones are told apart from errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import mla_runtime
from mla_export.checkpoint import Checkpoint
from mla_export.drive import drive
from mla_export.export import export
from mla_export.numerics import Ground, comparisons
from mla_export.reference import Reference
from tests.checkpoints import make_checkpoint, read_tensors, write_tensors
from tests.parity.judge import judge
from tests.parity.raw_graph import RawGraph
from tests.parity.witness import Witness, nmse, token_ids
from tests.quick_trace import quick_tracing

GATES = ("model.layers.1.mlp.gate", "model.layers.2.mlp.gate")


def change_gates(path, change) -> None:
    tensors = read_tensors(path)
    for gate in GATES:
        change(tensors, gate)
    write_tensors(path, tensors)


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3", "glm4_moe_lite"])
def test_exact_ties_go_to_the_lowest_expert_and_group(tmp_path, family):
    path = make_checkpoint(tmp_path / "m", family)

    def level(tensors, gate):
        tensors[f"{gate}.weight"].zero_()
        if f"{gate}.e_score_correction_bias" in tensors:
            tensors[f"{gate}.e_score_correction_bias"].zero_()

    change_gates(path, level)
    w = Witness(path)
    with quick_tracing():
        bundle = export(path, tmp_path / "b", chunk=16)
    ids = token_ids(w.geometry.vocab_size, 12)
    want = w.oracle(ids)
    assert want.margin.max() == 0.0
    for phase in ("step", "prompt"):
        assert nmse(RawGraph(bundle, phase)([ids])["logits"], want.logits) < 1e-9, phase


def test_a_flip_at_a_near_tie_is_ambiguous_and_not_a_failure(tmp_path):
    """Two experts of the last layer tie and are nearly alike, and the bundle's gate prefers the second."""
    path = make_checkpoint(tmp_path / "m", "deepseek_v3", n_group=1, topk_group=1)
    tensors = read_tensors(path)
    gate, experts = GATES[1], GATES[1].removesuffix("gate") + "experts"
    for name in (f"{gate}.weight", f"{gate}.e_score_correction_bias"):
        tensors[name][5] = tensors[name][4]
    for part in ("gate_proj", "up_proj", "down_proj"):
        first = tensors[f"{experts}.4.{part}.weight"]
        noise = torch.randn(first.shape, generator=torch.Generator().manual_seed(0))
        tensors[f"{experts}.5.{part}.weight"] = first * (1 + 1e-2 * noise)
    write_tensors(path, tensors)
    reference = Reference(Checkpoint.open(path))
    # a few units in the last place, so that an export of the original could do this too
    tensors[f"{gate}.e_score_correction_bias"][4] -= 1e-7
    nudged = make_checkpoint(tmp_path / "n", "deepseek_v3", n_group=1, topk_group=1)
    write_tensors(nudged, tensors)
    with quick_tracing():
        bundle = export(nudged, tmp_path / "b", chunk=16)

    prompts = [token_ids(256, length, seed=length) for length in (5, 9, 20)]
    with mla_runtime.open(bundle) as model:
        run = drive(model, prompts, steps=8)
    ground = Ground.of(run, reference, "float32")
    allowed = ground.budget()
    found = {c.name: c for c in comparisons(run, ground, allowed)}
    assert found["steps"].verdict == found["token by token"].verdict == "ambiguous"
    assert 0 < found["steps"].behind_ties < found["steps"].errors.rows / 2
    assert {c.verdict for c in found.values()} <= {"pass", "ambiguous"}
    # without the ties' marks the same rows are errors
    unmarked = [np.zeros_like(tie) for tie in ground.behind_tie]
    strict = comparisons(run, dataclasses.replace(ground, behind_tie=unmarked), allowed)
    assert "fail" in {c.verdict for c in strict}


def test_margins_of_a_random_model_are_no_ties(witness, bundle):
    w = witness("deepseek_v3")
    with mla_runtime.open(bundle("deepseek_v3")) as model:
        run = drive(model, [token_ids(256, 9)], steps=4)
    assert not judge(run, w).ambiguous
