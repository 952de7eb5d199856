"""What stays above 4 bits, and what stays in floats."""

from __future__ import annotations

import dataclasses

import pytest

from mla_export.layout import layout
from mla_export.plan import Bulk, Plan
from mla_export.quantize.rule import bits_of, has_fine_inputs
from mla_graphs.storage import Blocks
from tests.graphs import golden


@pytest.mark.parametrize("plan", [golden.FACTORED, golden.MERGED, golden.EXPANDED], ids=lambda p: p.absorb)
@pytest.mark.parametrize("bits", [4, 8])
def test_every_matrix_of_a_model_has_its_bits(plan: Plan, bits: int) -> None:
    quantised = dataclasses.replace(plan, weights=Bulk(bits, 32))
    for parameter in layout(quantised).parameters:
        name = parameter.name
        floats = (
            len(parameter.shape) == 1
            or name.startswith("rotary.")
            or name.endswith(("router.weight", "w_uk", "w_uv"))
        )
        sensitive = name.endswith("kv_down.weight") or ".mlp." in name
        assert (parameter.storage is None) == (floats or (sensitive and bits == 8)), name
        if parameter.storage is not None:
            assert parameter.storage.bits in (bits, 8), name


def test_what_stays_above_four_bits() -> None:
    g = golden.GEOMETRY  # a dense layer, then one of experts
    eight = ["embed.weight", "head.weight", "layers.0.mlp.down.weight", "layers.1.attention.kv_down.weight"]
    four = [
        "layers.1.moe.experts.down",
        "layers.1.moe.shared.gate_up.weight",
        "layers.0.attention.q_up.weight",
    ]
    assert [bits_of(name, g, 4) for name in eight] == [8] * 4
    assert [bits_of(name, g, 4) for name in four] == [4] * 3
    assert [bits_of(name, g, 8) for name in eight] == [8, 8, None, None]
    assert [bits_of(name, g, 4, head=4) for name in eight] == [8, 4, 8, 8]


def test_the_feed_forward_of_a_dense_model_is_its_bulk() -> None:
    dense = dataclasses.replace(golden.GEOMETRY, moe=None, layer_kinds=("dense", "dense"))
    assert bits_of("layers.0.mlp.down.weight", dense, 4) == 4


def test_which_inputs_are_fine() -> None:
    g = golden.GEOMETRY
    fine = ["head.weight", "layers.1.attention.q_up.weight", "layers.0.attention.o_proj.weight"]
    coarse = ["layers.1.moe.shared.down.weight", "layers.1.moe.experts.down", "layers.0.mlp.down.weight"]
    assert all(has_fine_inputs(name, g, 8) for name in fine)
    assert not any(has_fine_inputs(name, g, 8) for name in coarse)
    assert not any(has_fine_inputs(name, g, 4) for name in fine)
    dense = dataclasses.replace(g, moe=None, layer_kinds=("dense", "dense"))
    assert not any(has_fine_inputs(name, dense, 8) for name in fine)
    tied = dataclasses.replace(g, tie_word_embeddings=True)
    assert has_fine_inputs("embed.weight", tied, 8)
    plan = dataclasses.replace(golden.FACTORED, target="ort-cpu", weights=Bulk(8, 32))
    for parameter in layout(plan).parameters:
        if parameter.storage is not None:
            assert isinstance(parameter.storage, Blocks)
            assert parameter.storage.fine == has_fine_inputs(parameter.name, g, 8), parameter.name
