"""Geometry of the published models, and of every variant against transformers' own classes."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mla_export.families import family_of
from mla_graphs.geometry import Geometry
from mla_runtime.errors import ConfigError
from tests.checkpoints import FAMILIES, VARIANTS, hf_class, hf_config

CONFIGS = Path(__file__).parent.parent / "configs"
CASES = {**{family: (family, {}) for family in FAMILIES}, **VARIANTS}
YARN_40 = 0.1 * math.log(40) + 1


def published(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return config


def geometry_of(config: dict[str, Any], max_context: int | None = None) -> Geometry:
    return family_of(config).geometry(config, max_context)


@pytest.mark.parametrize(
    ("name", "family", "parameters", "scale"),
    [
        ("DeepSeek-V2-Lite", "deepseek_v2", 15_706_484_224, (0.0707 * math.log(40) + 1) ** 2 / 192**0.5),
        ("DeepSeek-V2", "deepseek_v2", 235_741_434_880, (0.0707 * math.log(40) + 1) ** 2 / 192**0.5),
        ("DeepSeek-V3", "deepseek_v3", 671_026_419_200, YARN_40**2 / 192**0.5),
        ("Moonlight-16B-A3B", "deepseek_v3", 15_960_110_208, 192**-0.5),
        ("Kimi-K2", "deepseek_v3", 1_026_408_232_448, (0.1 * math.log(32) + 1) ** 2 / 192**0.5),
        ("MiniCPM3-4B", "minicpm3", 4_073_875_968, 96**-0.5),
        ("Youtu-LLM-2B", "youtu", 1_961_560_064, 192**-0.5),
        ("GLM-4.7-Flash", "glm4_moe_lite", 29_943_393_920, 256**-0.5),
    ],
)
def test_published_models_have_their_size_and_scale(
    name: str, family: str, parameters: int, scale: float
) -> None:
    config = published(name)
    found = family_of(config)
    geometry = found.geometry(config)
    assert found.name == geometry.family == family
    assert sum(math.prod(shape) for shape in found.tensors(geometry).values()) == parameters
    assert geometry.softmax_scale == pytest.approx(scale, rel=1e-15)
    assert geometry.max_context == config["max_position_embeddings"]
    assert geometry.rms_norm_eps == config["rms_norm_eps"]


def test_deepseek_v3_in_full() -> None:
    geometry = dataclasses.asdict(geometry_of(published("DeepSeek-V3"), 16384))
    assert geometry.pop("layer_kinds") == ("dense",) * 3 + ("moe",) * 58
    assert geometry.pop("softmax_scale") == pytest.approx(0.1352337788608801, rel=1e-14)
    assert geometry == {
        "family": "deepseek_v3",
        "hidden_size": 7168,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "vocab_size": 129280,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "intermediate_size": 18432,
        "moe": {
            "n_routed_experts": 256,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2048,
            "shared_intermediate_size": 2048,
            "scoring": "sigmoid",
            "correction_bias": True,
            "group_score": "top2",
            "n_group": 8,
            "topk_group": 4,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
        },
        "rms_norm_eps": 1e-6,
        "q_norm_eps": 1e-6,
        "kv_norm_eps": 1e-6,
        "rotary": {
            "theta": 10000.0,
            "interleaved": True,
            "scaling": {
                "factor": 40.0,
                "original_max_position_embeddings": 4096,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "attention_factor": 1.0,
                "truncate": True,
            },
        },
        "max_context": 16384,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "embedding_scale": 1.0,
        "residual_scale": 1.0,
        "logit_scale": 1.0,
    }


def test_gates_of_the_published_models() -> None:
    lite, v2, kimi = (geometry_of(published(n)).moe for n in ("DeepSeek-V2-Lite", "DeepSeek-V2", "Kimi-K2"))
    assert lite
    assert v2
    assert kimi
    assert (lite.scoring, lite.group_score, lite.correction_bias) == ("softmax", None, False)
    assert (v2.scoring, v2.group_score, v2.n_group, v2.topk_group) == ("softmax", "max", 8, 3)
    assert (v2.routed_scaling_factor, v2.norm_topk_prob) == (16.0, False)
    # one group of one is no limit
    assert (kimi.scoring, kimi.group_score, kimi.n_group, kimi.topk_group) == ("sigmoid", None, 1, 1)


def test_pairs_are_interleaved_in_all_but_minicpm3() -> None:
    ways = {
        path.stem: geometry_of(published(path.stem)).rotary.interleaved for path in CONFIGS.glob("*.json")
    }
    assert len(ways) == 8
    assert {name for name, interleaved in ways.items() if not interleaved} == {"MiniCPM3-4B"}


def test_minicpm3_scalings_tied_head_and_halves() -> None:
    geometry = geometry_of(published("MiniCPM3-4B"))
    assert geometry.embedding_scale == 12.0
    assert geometry.residual_scale == pytest.approx(1.4 / math.sqrt(62), rel=1e-15)
    assert geometry.logit_scale == pytest.approx(256 / 2560, rel=1e-15)
    assert geometry.tie_word_embeddings
    assert not geometry.rotary.interleaved
    assert geometry.rotary.theta == 10000.0
    assert geometry.v_head_dim == 64


@pytest.mark.parametrize("case", CASES)
def test_eps_of_the_latent_norms_is_that_of_transformers_modules(case: str) -> None:
    family, overrides = CASES[case]
    config = hf_config(family, **overrides)
    geometry = geometry_of(config.to_diff_dict())
    with torch.device("meta"):
        attention = hf_class(family, "Attention")(config, layer_idx=0)
    assert geometry.kv_norm_eps == attention.kv_a_layernorm.variance_epsilon
    assert (geometry.q_lora_rank is None) == (attention.q_a_layernorm is None)
    if geometry.q_lora_rank is not None:
        assert geometry.q_norm_eps == attention.q_a_layernorm.variance_epsilon
    assert geometry.rms_norm_eps == config.rms_norm_eps


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_has_the_kind_that_transformers_builds(family: str) -> None:
    config = hf_config(family)
    with torch.device("meta"):
        layers = [
            hf_class(family, "DecoderLayer")(config, layer_idx=i) for i in range(config.num_hidden_layers)
        ]
    kinds = tuple("moe" if hasattr(layer.mlp, "experts") else "dense" for layer in layers)
    assert geometry_of(config.to_diff_dict()).layer_kinds == kinds


def test_minicpm3_scalings_are_those_of_transformers_modules() -> None:
    config = hf_config("minicpm3")
    geometry = geometry_of(config.to_diff_dict())
    with torch.device("meta"):
        layer = hf_class("minicpm3", "DecoderLayer")(config, layer_idx=0)
    assert geometry.embedding_scale == config.scale_emb
    assert geometry.residual_scale == pytest.approx(layer.residual_scale, rel=1e-15)
    assert geometry.logit_scale == pytest.approx(1 / config.logits_scaling, rel=1e-15)


def test_kimi_with_a_vision_part_is_read_from_its_text_config() -> None:
    text = published("Kimi-K2")
    whole = {"model_type": "kimi_k25", "text_config": text, "vision_config": {"hidden_size": 1152}}
    assert geometry_of(whole) == geometry_of(text)


def test_max_context_bounds_the_geometry() -> None:
    config = published("DeepSeek-V2-Lite")
    assert geometry_of(config, 4096).max_context == 4096
    with pytest.raises(
        ConfigError, match=re.escape("max_context is 163841, beyond the model's max_position")
    ):
        geometry_of(config, 163841)
    with pytest.raises(ConfigError, match="max_context is 0; it must be at least 1"):
        geometry_of(config, 0)


def test_glm_layer_kinds_come_from_mlp_layer_types() -> None:
    config = published("GLM-4.7-Flash")
    assert geometry_of(config).layer_kinds == ("dense",) + ("moe",) * 46
    config["mlp_layer_types"] = ["dense"] * 2 + ["sparse"] * 45
    del config["first_k_dense_replace"]
    assert geometry_of(config).layer_kinds == ("dense",) * 2 + ("moe",) * 45


def test_reading_changes_nothing_in_the_configuration() -> None:
    config = published("Kimi-K2")
    before = copy.deepcopy(config)
    geometry_of(config, 1024)
    assert config == before
