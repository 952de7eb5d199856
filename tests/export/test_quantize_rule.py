from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mla_export.checkpoint import Checkpoint
from mla_export.families import family_of
from mla_export.families.tensors import tensor_shapes
from mla_export.quantize.rule import bits_of
from mla_graphs import Geometry
from tests.checkpoints import FAMILIES, make_checkpoint


def geometry_of(path: Path, family: str) -> Geometry:
    config = Checkpoint.open(make_checkpoint(path, family)).config
    return family_of(config).geometry(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_but_the_router_is_quantised(tmp_path: Path, family: str) -> None:
    geometry = geometry_of(tmp_path / family, family)
    for name, shape in tensor_shapes(geometry).items():
        whole = len(shape) == 1 or name.endswith("mlp.gate.weight")
        assert (bits_of(name, geometry, 4) is None) == whole, name
        assert bits_of(name, geometry, 8) == (None if whole else 8), name


def test_what_stays_above_four_bits(tmp_path: Path) -> None:
    geometry = dataclasses.replace(geometry_of(tmp_path / "a", "deepseek_v3"), layer_kinds=("dense", "moe"))

    def bits(name: str) -> int | None:
        return bits_of(f"model.layers.{name}.weight", geometry, 4)

    eight = ["0.mlp.down_proj", "0.mlp.gate_proj", "1.self_attn.kv_b_proj", "1.self_attn.kv_a_proj_with_mqa"]
    four = ["1.mlp.experts.3.down_proj", "1.mlp.shared_experts.up_proj", "0.self_attn.q_b_proj"]
    assert [bits(name) for name in eight] == [8] * 4
    assert [bits(name) for name in four] == [4] * 3
    assert bits_of("lm_head.weight", geometry, 4) == bits_of("model.embed_tokens.weight", geometry, 4) == 8


def test_the_feed_forward_of_a_dense_model_is_its_bulk(tmp_path: Path) -> None:
    geometry = geometry_of(tmp_path / "youtu", "youtu")
    assert bits_of("model.layers.0.mlp.down_proj.weight", geometry, 4) == 4
