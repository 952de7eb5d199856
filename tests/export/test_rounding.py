"""The peer of a quantised bundle: rounded as plainly as can be, where the bundle is, and nowhere else."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

import mla_export
from mla_export.checkpoint import Checkpoint
from mla_export.export import export
from mla_export.quantize.rule import Scheme
from mla_export.reference import Reference
from mla_export.rounding import Rounded, nearest
from tests.checkpoints import make_checkpoint
from tests.quick_trace import quick_tracing

PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]]


def test_weights_in_blocks_are_judged_by_a_peer_that_rounds_activations_too(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "model", "youtu")  # dense: no routing that rounding turns over
    with quick_tracing():
        bundle = export(checkpoint, tmp_path / "int8", target="ort-cpu", weights="int8", chunk=8)
    report = mla_export.verify(bundle, checkpoint, prompts=PROMPTS, steps=6)
    assert report.passed
    assert report.budget is not None
    assert "int8 weights and int8 activations" in report.budget.peer
    # the peer's error is the bundle's: it is no budget for something else
    assert all(0.6 < ratio < 1.4 for ratio in (found.would_pass for found in report.comparisons))
    scheme = Scheme("ort-cpu", 8, 32)
    plain = Rounded("float32", scheme, activations=False, latent=False, rope=False)
    ids = [list(range(40))]
    both = (plain, dataclasses.replace(plain, activations=True), "float64")
    passes = Reference(Checkpoint.open(checkpoint)).forward(ids, both)
    errors = [np.abs(passes[lane][0].logits - passes["float64"][0].logits).mean() for lane in both[:2]]
    assert errors[1] > 1.05 * errors[0]  # attention and head have finer inputs


def test_the_peer_rounds_what_the_bundle_rounds(tmp_path):
    geometry = Reference(Checkpoint.open(make_checkpoint(tmp_path / "m", "deepseek_v3"))).geometry
    four, eight = (Rounded("float32", Scheme("ort-cpu", bits, 32), True, False, False) for bits in (4, 8))
    matrix = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))

    def levels(rounded: Rounded, layer: int, name: str) -> int:
        found = rounded.weight(layer, name, matrix, geometry)
        if found is matrix:
            return 0
        return 4 if torch.equal(found, nearest(matrix, 4, 32)) else 8

    for layer, name, of_four, of_eight in (
        (0, "mlp.up_proj.weight", 8, 0),
        (1, "self_attn.kv_a_proj_with_mqa.weight", 8, 0),
        (1, "self_attn.q_b_proj.weight", 4, 8),
        (1, "self_attn.o_proj.weight", 4, 8),
        (1, "mlp.experts.3.up_proj.weight", 4, 8),
        (1, "mlp.shared_experts.down_proj.weight", 4, 8),
        (1, "mlp.gate.weight", 0, 0),
        (1, "mlp.gate.e_score_correction_bias", 0, 0),
        (1, "self_attn.q_a_proj.bias", 0, 0),
        (1, "input_layernorm.weight", 0, 0),
        (1, "self_attn.kv_b_proj.weight", 0, 0),
    ):
        assert (levels(four, layer, name), levels(eight, layer, name)) == (of_four, of_eight), name
