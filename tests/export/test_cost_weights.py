"""Bytes of weights and cache rows, against published sizes and against what an export writes."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from mla_export import costs
from mla_export.families import family_of
from mla_export.layout import layout
from mla_export.plan import Bulk, Plan, Target
from mla_export.weight_bytes import Formats, Weights, cache_token_bytes, stored, weight_bytes
from mla_graphs import CacheTypes, Geometry
from mla_graphs.geometry import Absorb, Float
from tests.checkpoints import FAMILIES, VARIANTS, hf_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ALL = {**{family: (family, {}) for family in FAMILIES}, **VARIANTS}
FACTORED = Formats("factored", "float", "float", "float", "float16")


def published(name: str) -> Geometry:
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    return family_of(config).geometry(config)


def small(name: str) -> Geometry:
    family, own = ALL[name]
    config = json.loads(hf_config(family, **own).to_json_string(use_diff=False))
    return family_of(config).geometry(config)


@pytest.mark.parametrize("name", ALL)
def test_bytes_are_those_that_a_layout_places(name: str):
    geometry = small(name)
    absorbs: tuple[Absorb, ...] = ("factored", "merged", "expanded")
    weights: tuple[Weights, ...] = ("float", "int8", "int4")
    floats: tuple[Float, ...] = ("float32", "float16")
    targets: tuple[Target, ...] = ("portable", "ort-cpu")
    for absorb, kind, dtype, (group, head), target in product(
        absorbs, weights, floats, ((32, 8), (128, 4)), targets
    ):
        formats = Formats(absorb, kind, "float", "float", dtype, group, head, target)
        bulk = None if kind == "float" else Bulk({"int8": 8, "int4": 4}[kind], group)
        plan = Plan(geometry, absorb, dtype, CacheTypes.of(dtype), bulk, target, head)
        placed = layout(plan)
        assert weight_bytes(geometry, formats) == sum(weight.nbytes for weight in placed.weights), formats
        elements = sum(entry.layers * entry.elements for entry in stored(geometry, formats))
        assert elements == sum(_elements(parameter.shape) for parameter in placed.parameters)


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def test_deepseek_v2_lite_by_hand():
    g = published("DeepSeek-V2-Lite")
    # every parameter in 2 bytes, routers in 4, and the rotary tables of 163,840 positions
    routers, rotary = 26 * 2048 * 64, 163_840 * 32 * 2
    assert weight_bytes(g, FACTORED) == 2 * 15_706_484_224 + 2 * routers + 4 * rotary
    experts = 26 * 64 * 3 * 2048 * 1408
    (gate_up, down) = (e for e in stored(g, FACTORED) if e.part == "experts")
    assert 26 * (gate_up.nbytes + down.nbytes) == 2 * experts
    int4 = Formats("factored", "int4", "float", "float", "float16")
    by_name = {entry.name: entry for entry in stored(g, int4)}
    assert by_name["layers.1.moe.experts.down"].nbytes == 64 * 1408 * 2048 * (4 * 32 + 16) // (8 * 32)
    # one step above the bulk, or in floats
    assert by_name["head.weight"].nbytes == 102_400 * 2048 * (32 + 2) // 32
    assert by_name["layers.0.mlp.down.weight"].nbytes == 10_944 * 2048 * (32 + 2) // 32
    assert by_name["layers.1.attention.w_uk"].nbytes == 16 * 128 * 512 * 2


def test_rows_of_the_cache_by_hand():
    g = published("DeepSeek-V2-Lite")
    rows = {
        ("float", "float", "float16"): (512 + 64) * 2,
        ("float", "float", "float32"): (512 + 64) * 4,
        ("int8", "float", "float16"): 512 + 4 + 64 * 2,
        ("int8", "int8", "float16"): 512 + 4 + 64 + 4,
    }
    for (cache, rope, floats), row in rows.items():
        assert cache_token_bytes(g, Formats("factored", "float", cache, rope, floats)) == 27 * row
    inspected = [costs.cache_token_bytes(g, "latent", kind) for kind in ("float16", "int8")]
    shown = [Formats("factored", "float", rows, "float", "float16") for rows in ("float", "int8")]
    assert inspected == [cache_token_bytes(g, formats) for formats in shown]
    expanded = Formats("expanded", "int4", "float", "float", "float16")
    assert cache_token_bytes(g, expanded) == 27 * 16 * (128 + 64 + 128) * 2


@pytest.mark.parametrize("name", [path.stem for path in sorted(CONFIGS.glob("*.json"))])
def test_finer_weights_take_more(name: str):
    g = published(name)
    sizes = [
        weight_bytes(g, Formats("factored", kind, "float", "float", "float16")) for kind in ("int4", "int8")
    ]
    assert sizes[0] < sizes[1] < weight_bytes(g, FACTORED)
    wide = weight_bytes(g, Formats("factored", "int4", "float", "float", "float16", group=128))
    assert wide < sizes[0]
    assert weight_bytes(g, Formats("factored", "int4", "float", "float", "float32")) > sizes[0]
