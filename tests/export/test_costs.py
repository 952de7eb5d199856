"""Costs against published sizes: dimensions and totals of models that people know."""

from __future__ import annotations

from typing import Any

import pytest

from mla_export import costs
from mla_graphs import Geometry, Moe, Rotary

DEEPSEEK_HEADS = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}


def geometry(*, layers: int, dense: int | None = None, moe: Moe | None = None, **sizes: Any) -> Geometry:
    dense = layers if dense is None else dense
    fixed: dict[str, Any] = {
        "family": "test",
        "num_hidden_layers": layers,
        "q_lora_rank": None,
        "intermediate_size": 4 * sizes["hidden_size"],
        "layer_kinds": ("dense",) * dense + ("moe",) * (layers - dense),
        "moe": moe,
        "rms_norm_eps": 1e-6,
        "q_norm_eps": 1e-6,
        "kv_norm_eps": 1e-6,
        "rotary": Rotary(theta=1e4, interleaved=True, scaling=None),
        "softmax_scale": 0.1,
        "max_context": 4096,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "embedding_scale": 1.0,
        "residual_scale": 1.0,
        "logit_scale": 1.0,
    }
    return Geometry(**{**fixed, **sizes})


def moe(experts: int, chosen: int, width: int, shared: int, *, bias: bool) -> Moe:
    return Moe(
        n_routed_experts=experts,
        num_experts_per_tok=chosen,
        moe_intermediate_size=width,
        shared_intermediate_size=shared,
        scoring="sigmoid",
        correction_bias=bias,
        group_score=None,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
    )


V2_LITE = geometry(
    layers=27,
    dense=1,
    moe=moe(64, 6, 1408, 2816, bias=False),
    hidden_size=2048,
    num_attention_heads=16,
    vocab_size=102400,
    intermediate_size=10944,
    **DEEPSEEK_HEADS,
)
V3 = geometry(
    layers=61,
    dense=3,
    moe=moe(256, 8, 2048, 2048, bias=True),
    hidden_size=7168,
    num_attention_heads=128,
    vocab_size=129280,
    q_lora_rank=1536,
    intermediate_size=18432,
    **DEEPSEEK_HEADS,
)
MINICPM3 = geometry(
    layers=62,
    hidden_size=2560,
    num_attention_heads=40,
    vocab_size=73448,
    q_lora_rank=768,
    intermediate_size=6400,
    kv_lora_rank=256,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
    tie_word_embeddings=True,
)
GLM_FLASH = geometry(
    layers=47,
    hidden_size=2048,
    num_attention_heads=20,
    vocab_size=154880,
    q_lora_rank=768,
    kv_lora_rank=512,
    qk_nope_head_dim=192,
    qk_rope_head_dim=64,
    v_head_dim=256,
)
YOUTU = geometry(
    layers=32, hidden_size=2048, num_attention_heads=16, vocab_size=128256, q_lora_rank=1536, **DEEPSEEK_HEADS
)

# attention weights a layer in millions, merged / factored for W_UK alone and for both, expanded / latent
# cache, latent KiB a token of the whole model in float16
PUBLISHED = [
    pytest.param(V2_LITE, 13.8, 1.84, 2.68, 8.9, 30.4, id="DeepSeek-V2-Lite"),
    pytest.param(MINICPM3, 13.5, 1.39, 2.79, 22.2, 34.9, id="MiniCPM3-4B"),
    pytest.param(GLM_FLASH, 21.8, 1.14, 1.50, 17.8, 52.9, id="GLM-4.7-Flash"),
    pytest.param(YOUTU, 15.3, 1.55, 2.30, 8.9, 36.0, id="Youtu-2B"),
    pytest.param(V3, 187.1, 1.36, 3.20, 71.1, 68.6, id="DeepSeek-V3"),
]


@pytest.mark.parametrize(("model", "millions", "merged_uk", "merged", "cache", "kib"), PUBLISHED)
def test_absorption_table(
    model: Geometry, millions: float, merged_uk: float, merged: float, cache: float, kib: float
):
    factored = costs.attention_elements(model, "factored")
    assert factored / 1e6 == pytest.approx(millions, abs=0.05)
    assert costs.attention_elements(model, "expanded") == factored
    assert costs.attention_elements(model, "merged_uk") / factored == pytest.approx(merged_uk, abs=0.005)
    assert costs.attention_elements(model, "merged") / factored == pytest.approx(merged, abs=0.005)
    rows = {form: costs.cache_row_elements(model, form) for form in ("latent", "expanded")}
    assert rows["expanded"] / rows["latent"] == pytest.approx(cache, abs=0.05)
    assert costs.cache_token_bytes(model, "latent", "float16") / 1024 == pytest.approx(kib, abs=0.05)


def test_int8_latent_keeps_the_rotary_key_in_float16():
    assert costs.cache_token_bytes(V2_LITE, "latent", "int8") == 27 * (512 + 4 + 64 * 2)
    assert costs.cache_token_bytes(V3, "latent", "int8") / 1024 == pytest.approx(38.4, abs=0.05)


def test_expanded_cache_bytes():
    assert costs.cache_token_bytes(V2_LITE, "expanded", "float32") == 27 * 16 * (192 + 128) * 4
    assert costs.cache_token_bytes(V2_LITE, "expanded", "int8") == 27 * (16 * (192 + 128) + 8)


@pytest.mark.parametrize(
    ("model", "thousands"), [(V2_LITE, 40), (MINICPM3, 84), (GLM_FLASH, 19), (YOUTU, 35)]
)
def test_merging_breaks_even_late(model: Geometry, thousands: int):
    assert costs.merge_break_even(model, "merged") / 1000 == pytest.approx(thousands, abs=0.7)
    assert costs.merge_break_even(model, "factored") == 0


@pytest.mark.parametrize(
    ("model", "total", "active"),
    [
        pytest.param(V2_LITE, 15.7e9, 2.4e9, id="DeepSeek-V2-Lite"),
        pytest.param(V3, 671e9, 37e9, id="DeepSeek-V3"),
        pytest.param(MINICPM3, 4.07e9, 4.07e9, id="MiniCPM3-4B"),
    ],
)
def test_parameters_match_model_cards(model: Geometry, total: float, active: float):
    counted = costs.parameters(model)
    assert counted.total == pytest.approx(total, rel=0.02)
    assert counted.active == pytest.approx(active, rel=0.03)


def test_tied_head_is_counted_once():
    tied = geometry(layers=1, hidden_size=8, num_attention_heads=2, vocab_size=32, **DEEPSEEK_HEADS)
    untied = costs.parameters(tied)
    tied_count = costs.parameters(
        geometry(
            layers=1,
            hidden_size=8,
            num_attention_heads=2,
            vocab_size=32,
            tie_word_embeddings=True,
            **DEEPSEEK_HEADS,
        )
    )
    assert untied.total - tied_count.total == 32 * 8
    assert untied.active == tied_count.active
