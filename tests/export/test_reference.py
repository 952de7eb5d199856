"""The layer-by-layer reference: Hugging Face's numbers, from any file layout, one layer in memory at once."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from mla_export.checkpoint import Checkpoint
from mla_export.reference import CLASSES, Reference, whole_model
from mla_runtime.errors import ConfigError
from tests.checkpoints import FAMILIES, append_mtp, longrope, make_checkpoint, to_fp8

ROWS = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [2], [7, 1, 8, 2]]


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.sqrt(((got - want) ** 2).sum() / (want**2).sum()))


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_one_by_one_are_the_whole_class(tmp_path: Path, family: str):
    reference = Reference(Checkpoint.open(make_checkpoint(tmp_path / "m", family)), max_context=100)
    layered = reference.forward(ROWS)["float32"]
    for one, whole in zip(layered, whole_model(reference, ROWS), strict=True):
        assert relative(one.logits, whole) <= 2e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_precisions_are_what_they_say(tmp_path: Path, family: str):
    reference = Reference(Checkpoint.open(make_checkpoint(tmp_path / "m", family)))
    lanes = reference.forward(ROWS[:1], ["float64", "float32", "float16", "bfloat16"])
    wide, single, half, brain = lanes.values()
    assert 1e-8 < relative(single[0].logits, wide[0].logits) < 1e-5
    assert 1e-4 < relative(half[0].logits, wide[0].logits) < 5e-2
    assert 1e-3 < relative(brain[0].logits, wide[0].logits) < 5e-1


def test_shards_bf16_fp8_and_mtp_are_read(tmp_path: Path):
    plain = make_checkpoint(tmp_path / "plain", "deepseek_v3", dtype=torch.bfloat16)
    sharded = make_checkpoint(tmp_path / "sharded", "deepseek_v3", dtype=torch.bfloat16, shards=3)
    append_mtp(sharded, shards=2)
    wanted = Reference(Checkpoint.open(plain)).forward(ROWS)["float32"]
    found = Reference(Checkpoint.open(sharded)).forward(ROWS)["float32"]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)
    to_fp8(plain)
    coarse = Reference(Checkpoint.open(plain)).forward(ROWS)["float32"]
    assert 1e-3 < relative(coarse[0].logits, wanted[0].logits) < 0.5


def test_only_the_kept_positions_go_through_the_head(tmp_path: Path):
    reference = Reference(Checkpoint.open(make_checkpoint(tmp_path / "m", "youtu")))
    every = reference.forward(ROWS)["float32"]
    kept = reference.forward(ROWS, keep=[[8, 2], [0], [3]])["float32"]
    np.testing.assert_allclose(kept[0].logits, every[0].logits[[8, 2]], rtol=1e-4, atol=1e-4)
    assert [len(p.logits) for p in kept] == [2, 1, 1]


def test_routers_are_seen_where_there_are_any(tmp_path: Path):
    reference = Reference(Checkpoint.open(make_checkpoint(tmp_path / "m", "deepseek_v3")))
    dense, *sparse = reference.forward(ROWS)["float32"][0].routing
    assert dense is None
    assert [(r.logits.shape, r.chosen.shape) for r in sparse if r] == [((9, 8), (9, 3)), ((9, 8), (9, 3))]


def test_one_layer_is_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reference = Reference(
        Checkpoint.open(make_checkpoint(tmp_path / "m", "deepseek_v3", num_hidden_layers=6))
    )
    alive: list[weakref.ref[torch.nn.Module]] = []
    most = 0
    build = Reference.layer

    def watched(self: Reference, *args: object) -> torch.nn.Module:
        nonlocal most
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive) + 1)
        module = build(self, *args)  # type: ignore[arg-type]
        alive.append(weakref.ref(module))
        return module

    monkeypatch.setattr(Reference, "layer", watched)
    reference.forward(ROWS)
    assert len(alive) == 6
    assert most == 1


def test_longrope_factors_are_those_of_the_export_whatever_the_prompt(tmp_path: Path):
    path = make_checkpoint(tmp_path / "m", "minicpm3", rope_parameters=longrope())
    short = Reference(Checkpoint.open(path), max_context=128).forward(ROWS[:1])["float32"][0].logits
    long = Reference(Checkpoint.open(path), max_context=129).forward(ROWS[:1])["float32"][0].logits
    assert relative(short, long) > 1e-2
    row = [5] * 140
    first = Reference(Checkpoint.open(path)).forward([row])["float32"][0].logits[:9]
    alone = Reference(Checkpoint.open(path)).forward([row[:9]])["float32"][0].logits
    assert relative(first, alone) < 1e-5


def test_a_family_without_a_class_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path / "m", "youtu"))
    monkeypatch.delitem(CLASSES, "youtu")
    with pytest.raises(ConfigError, match=r"no class for the family 'youtu'.*known are deepseek_v2"):
        Reference(checkpoint)
