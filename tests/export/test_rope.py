"""Rotary frequencies, attention factor and softmax scale against transformers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mla_export.families import family_of
from mla_graphs.geometry import LongRope, Yarn
from mla_graphs.rotary import attention_factor, inverse_frequencies, rotary_tables
from tests.checkpoints import FAMILIES, VARIANTS, hf_class, hf_config, longrope, yarn

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.json"))
YARNS: dict[str, dict[str, Any]] = {
    "equal": {},
    "unequal": {"mscale": 0.707, "mscale_all_dim": 1.0},
    "larger": {"mscale": 1.3, "mscale_all_dim": 0.5},
    "all_dim_zero": {"mscale_all_dim": 0},
    "mscale_zero": {"mscale": 0},
    "both_zero": {"mscale": 0, "mscale_all_dim": 0},
    "all_dim_absent": {"mscale_all_dim": None},
    "mscale_absent": {"mscale": None},
    "both_absent": {"mscale": None, "mscale_all_dim": None},
    "explicit_attention_factor": {"attention_factor": 1.125},
    "factor_one": {"factor": 1.0},
    "betas_absent": {"beta_fast": None, "beta_slow": None},
    "betas_equal": {"beta_fast": 1.0, "beta_slow": 1.0},
    "not_truncated": {"truncate": False},
    "ramp_beyond_the_last_pair": {"original_max_position_embeddings": 1 << 20},
}
# transformers computes frequencies in float32: a power and a few products, each within half a unit
# in the last place of 2^-23; the power's own error grows with ln(theta).
FREQUENCY_RTOL = 2e-6


def check(family: str, hf: Any, config: dict[str, Any], max_context: int | None = None) -> None:
    """Hold the geometry of `config` against the modules that transformers builds from `hf`."""
    geometry = family_of(config).geometry(config, max_context)
    if isinstance(geometry.rotary.scaling, LongRope):
        frequencies, factor = ROPE_INIT_FUNCTIONS["longrope"](hf, "cpu", seq_len=geometry.max_context)
    else:
        module = hf_class(family, "RotaryEmbedding")(hf)
        frequencies, factor = module.inv_freq, module.attention_scaling
    ours = inverse_frequencies(geometry.rotary, geometry.qk_rope_head_dim)
    np.testing.assert_allclose(ours, frequencies.double().numpy(), rtol=FREQUENCY_RTOL)
    assert attention_factor(geometry.rotary) == pytest.approx(factor, rel=1e-14)
    with torch.device("meta"):
        attention = hf_class(family, "Attention")(hf, layer_idx=0)
    assert geometry.softmax_scale == pytest.approx(attention.scaling, rel=1e-14)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_published_models(path: Path) -> None:
    config = json.loads(path.read_text())
    family = family_of(config).name  # transformers has no kimi_k2: its class is deepseek_v3
    values = json.loads(path.read_text())
    del values["model_type"]
    check(family, AutoConfig.for_model(family, **values), config)


@pytest.mark.parametrize("case", [*FAMILIES, *VARIANTS])
def test_families_and_variants(case: str) -> None:
    family, overrides = VARIANTS.get(case, (case, {}))
    hf = hf_config(family, **overrides)
    check(family, hf, hf.to_diff_dict())


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3", "youtu", "glm4_moe_lite"])
@pytest.mark.parametrize("variant", YARNS)
def test_yarn_variants(family: str, variant: str) -> None:
    hf = hf_config(family, rope_parameters=yarn(**YARNS[variant]))
    check(family, hf, hf.to_diff_dict())


@pytest.mark.parametrize("max_context", [1, 128, 129, 512])
@pytest.mark.parametrize("changes", [{}, {"factor": 2.0}, {"attention_factor": 1.5}], ids=str)
def test_longrope_takes_the_factors_of_max_context(max_context: int, changes: dict[str, float]) -> None:
    hf = hf_config("minicpm3", rope_parameters=longrope(**changes))
    config = hf.to_diff_dict()
    check("minicpm3", hf, config, max_context)
    scaling = family_of(config).geometry(config, max_context).rotary.scaling
    assert isinstance(scaling, LongRope)
    wanted = config["rope_parameters"]["long_factor" if max_context > 128 else "short_factor"]
    assert scaling.factors == tuple(wanted)


def test_tables_equal_those_of_transformers_module() -> None:
    hf = hf_config("deepseek_v3", rope_parameters=yarn(mscale=0.5))
    config = hf.to_diff_dict()
    geometry = family_of(config).geometry(config)
    module = hf_class("deepseek_v3", "RotaryEmbedding")(hf)
    cos, sin = module(torch.zeros(1), torch.arange(512)[None])  # [1, 512, R]: both halves
    ours = rotary_tables(geometry.rotary, geometry.qk_rope_head_dim, 512)
    half = geometry.qk_rope_head_dim // 2
    # an angle of up to 512 in float32 is off by up to 512 times the frequency's relative error
    for mine, theirs in zip(ours, (cos, sin), strict=True):
        np.testing.assert_allclose(mine, theirs[0, :, :half].double().numpy(), atol=512 * FREQUENCY_RTOL)


def test_the_original_context_may_stand_at_the_top_level() -> None:
    inside = hf_config("deepseek_v3").to_diff_dict()
    outside = {**inside, "rope_parameters": yarn(original_max_position_embeddings=None)}
    outside["original_max_position_embeddings"] = 64
    assert family_of(outside).geometry(outside) == family_of(inside).geometry(inside)


def test_rope_scaling_and_rope_parameters_are_read_alike() -> None:
    new = hf_config("deepseek_v3").to_diff_dict()
    parameters = dict(new["rope_parameters"])
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    old["rope_theta"] = parameters.pop("rope_theta")
    old["rope_scaling"] = {"type": parameters.pop("rope_type"), **parameters}
    assert isinstance(family_of(old).geometry(old).rotary.scaling, Yarn)
    assert family_of(old).geometry(old) == family_of(new).geometry(new)
