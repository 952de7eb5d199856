"""One broken config.json a rule, each with its exact error."""

from __future__ import annotations

from typing import Any

import pytest

from mla_export.families import family_of
from mla_runtime.errors import ConfigError
from tests.checkpoints import hf_config, longrope, yarn

REMOVED = object()
KNOWN = "deepseek_v2, deepseek_v3, kimi_k2, minicpm3, youtu, youtu_llm, glm4_moe_lite"
TO_DO = "export one of these models instead, or leave this one to a runtime that knows it"


def broken(family: str, changes: dict[str, Any]) -> dict[str, Any]:
    config = {**hf_config(family).to_diff_dict(), **changes}
    return {key: value for key, value in config.items() if value is not REMOVED}


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        family_of(config).geometry(config)
    return str(caught.value)


def rope(**changes: Any) -> dict[str, Any]:
    return {"rope_parameters": yarn(**changes)}


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("deepseek_v32", "its sparse attention picks cache rows by a lightning indexer"),
        ("glm_moe_dsa", "its sparse attention picks cache rows by a lightning indexer"),
        ("deepseek_v4", "its attention is compressed and sparse, which is not MLA any more"),
        ("kimi_linear", "most of its layers are linear attention (KDA) with a state in place of a cache"),
        ("longcat_flash", "its layers hold two attentions, zero experts and scaled LoRA ranks"),
        ("mistral4", "its query scale depends on the position"),
    ],
)
def test_relatives_and_hybrids_are_refused_by_name(kind: str, why: str) -> None:
    message = f"model_type {kind!r} is not supported: {why}. Supported are {KNOWN}; {TO_DO}"
    assert refusal({"model_type": kind}) == message


def test_an_unknown_model_type_is_refused_by_name() -> None:
    assert refusal({"model_type": "llama"}) == (
        f"model_type 'llama' is not supported. Supported are {KNOWN}; {TO_DO}"
    )


def test_a_missing_model_type_is_refused() -> None:
    assert refusal({}) == 'config.json: "model_type" is missing; it names the model\'s family'


def test_a_peft_adapter_is_refused() -> None:
    assert refusal({"peft_type": "LORA", "base_model_name_or_path": "x"}) == (
        "this is a PEFT adapter (LORA), not a model; merge it into its base model (merge_and_unload) "
        "and export the merged checkpoint"
    )


@pytest.mark.parametrize(
    ("key", "value", "meaning"),
    [
        ("index_topk", 2048, "sparse attention"),
        ("linear_attn_config", {"kda_layers": [1]}, "linear attention"),
        ("sliding_window", 4096, "sliding-window attention"),
    ],
)
def test_hybrids_under_a_familiar_name_are_refused_by_their_key(
    key: str, value: object, meaning: str
) -> None:
    assert refusal(broken("deepseek_v3", {key: value})) == (
        f'config.json: "{key}" is {value!r}: {meaning} is no part of deepseek_v3 and not supported; {TO_DO}'
    )


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "bitsandbytes"])
@pytest.mark.parametrize("nested", [False, True])
def test_foreign_quantization_is_refused(method: str, nested: bool) -> None:
    config = broken("deepseek_v3", {"quantization_config": {"quant_method": method}})
    if nested:
        config = {"model_type": "kimi_k25", "text_config": config}
    assert refusal(config) == (
        f'config.json: "quantization_config" is of method {method!r}; of quantised checkpoints only '
        "DeepSeek's block-scaled fp8 is read: export the bf16 or fp16 checkpoint instead"
    )


@pytest.mark.parametrize(
    ("fmt", "block"), [("e5m2", [128, 128]), ("e4m3", [64, 128]), ("e4m3", None)], ids=str
)
def test_fp8_of_another_format_is_refused(fmt: str, block: object) -> None:
    section = {"quant_method": "fp8", "fmt": fmt, "weight_block_size": block}
    assert refusal(broken("deepseek_v3", {"quantization_config": section})) == (
        f'config.json: "quantization_config" has format {fmt!r} in blocks of {block!r}; of fp8 only '
        "'e4m3' in blocks of [128, 128] is read: export the bf16 checkpoint instead"
    )


REQUIRED = {
    "deepseek_v2": {"first_k_dense_replace", "topk_method", "n_routed_experts", "moe_intermediate_size"},
    "deepseek_v3": {"n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor", "n_shared_experts"},
    "minicpm3": {"scale_emb", "scale_depth", "dim_model_base"},
    "youtu": {"hidden_act", "rms_norm_eps"},
    "glm4_moe_lite": {"num_experts_per_tok", "n_routed_experts"},
}
SHARED = {
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "intermediate_size",
    "max_position_embeddings",
}


@pytest.mark.parametrize(("family", "key"), sorted((f, k) for f in REQUIRED for k in REQUIRED[f] | SHARED))
def test_a_missing_key_is_named_and_never_guessed(family: str, key: str) -> None:
    message = (
        f'config.json: "{key}" is missing; take the config.json that was published with the weights, '
        "nothing is guessed"
    )
    assert refusal(broken(family, {key: REMOVED})) == message
    assert refusal(broken(family, {key: None})) == message


def test_a_missing_q_lora_rank_is_not_a_null_one() -> None:
    assert refusal(broken("deepseek_v3", {"q_lora_rank": REMOVED})) == (
        'config.json: "q_lora_rank" is missing; write null where the model has none'
    )


def test_a_missing_rope_theta_is_named() -> None:
    assert refusal(broken("deepseek_v3", rope(rope_theta=None))).startswith(
        'config.json: "rope_theta" is missing;'
    )


@pytest.mark.parametrize(
    ("family", "changes", "problem"),
    [
        ("youtu", {"kv_lora_rank": "512"}, "\"kv_lora_rank\" is '512', which is not an integer"),
        ("youtu", {"kv_lora_rank": 0}, '"kv_lora_rank" is 0, below its minimum of 1'),
        ("youtu", {"kv_lora_rank": True}, '"kv_lora_rank" is True, which is not an integer'),
        ("youtu", {"hidden_size": 64.5}, '"hidden_size" is 64.5, which is not an integer'),
        ("youtu", {"rms_norm_eps": "1e-6"}, "\"rms_norm_eps\" is '1e-6', which is not a finite number"),
        ("youtu", {"rms_norm_eps": float("nan")}, '"rms_norm_eps" is nan, which is not a finite number'),
        ("youtu", {"rms_norm_eps": 0}, '"rms_norm_eps" is 0, which is not above zero'),
        ("youtu", {"attention_bias": "no"}, "\"attention_bias\" is 'no', which is not true or false"),
        ("youtu", {"hidden_act": "gelu"}, "\"hidden_act\" is 'gelu'; only 'silu' is supported"),
        (
            "youtu",
            {"num_key_value_heads": 2},
            '"num_key_value_heads" is 2, but must be 4: with MLA every query head has a key head of its own',
        ),
        (
            "youtu",
            {"qk_head_dim": 32},
            '"qk_head_dim" is 32, but must be 24: it is qk_nope_head_dim + qk_rope_head_dim',
        ),
        (
            "youtu",
            {"head_dim": 16},
            '"head_dim" is 16, but must be 8: in these configurations it stands for qk_rope_head_dim',
        ),
        (
            "youtu",
            {"qk_rope_head_dim": 7},
            '"qk_rope_head_dim" is 7; rotary channels come in pairs, it must be even',
        ),
        (
            "youtu",
            {"mlp_bias": True},
            '"mlp_bias" is True, but must be False: this family\'s feed-forward layers have no biases',
        ),
        (
            "youtu",
            {"partial_rotary_factor": 0.5},
            '"partial_rotary_factor" is 0.5, but must be 1.0: all qk_rope_head_dim channels are rotated '
            "in MLA",
        ),
        (
            "deepseek_v2",
            {"norm_topk_prob": True},
            '"norm_topk_prob" is True, but must be False: DeepSeek\'s code then normalises the chosen '
            "weights instead of scaling them, transformers' class scales them and does not; no published "
            "DeepSeek-V2 sets it",
        ),
        (
            "deepseek_v2",
            {"topk_method": "noaux_tc"},
            "\"topk_method\" is 'noaux_tc'; this family knows greedy, group_limited_greedy",
        ),
        (
            "deepseek_v2",
            {"scoring_func": "sigmoid"},
            "\"scoring_func\" is 'sigmoid'; this family's gate is 'softmax'",
        ),
        (
            "deepseek_v2",
            {"rope_interleave": False},
            '"rope_interleave" is False, but must be True: DeepSeek-V2 always stores interleaved pairs',
        ),
        (
            "deepseek_v2",
            {"mlp_bias": True},
            '"mlp_bias" is True, but must be False: transformers has such biases, DeepSeek\'s code has not',
        ),
        (
            "deepseek_v3",
            {"scoring_func": "softmax"},
            "\"scoring_func\" is 'softmax'; this family's gate is 'sigmoid'",
        ),
        (
            "deepseek_v3",
            {"topk_method": "greedy"},
            "\"topk_method\" is 'greedy'; this family's gate is 'noaux_tc'",
        ),
        (
            "deepseek_v3",
            {"moe_layer_freq": 2},
            '"moe_layer_freq" is 2, but must be 1: transformers\' classes know experts in every layer only',
        ),
        (
            "deepseek_v3",
            {"first_k_dense_replace": 4},
            '"first_k_dense_replace" is 4, beyond num_hidden_layers of 3',
        ),
        ("deepseek_v3", {"topk_group": 5}, '"topk_group" is 5, beyond n_group of 4'),
        ("deepseek_v3", {"n_group": 3}, '"n_group" is 3, which does not divide n_routed_experts of 8'),
        (
            "deepseek_v3",
            {"n_group": 8},
            '"n_group" is 8: a group is ranked by its two best experts, but has one',
        ),
        (
            "deepseek_v3",
            {"num_experts_per_tok": 5},
            '"num_experts_per_tok" is 5, but routing can reach only 4 experts',
        ),
        (
            "minicpm3",
            {"rope_interleave": True},
            '"rope_interleave" is True, but must be False: MiniCPM3 rotates halves',
        ),
        (
            "minicpm3",
            {"v_head_dim": REMOVED, "hidden_size": 66},
            '"v_head_dim" is missing and hidden_size 66 does not divide by 4 heads',
        ),
        (
            "glm4_moe_lite",
            {"mlp_layer_types": ["dense", "sparse"]},
            '"mlp_layer_types" must be a list of num_hidden_layers = 3 words',
        ),
        (
            "glm4_moe_lite",
            {"mlp_layer_types": ["dense", "sparse", "linear"]},
            "\"mlp_layer_types\" has 'linear'; known are 'dense' and 'sparse'",
        ),
        (
            "glm4_moe_lite",
            {"first_k_dense_replace": 2},
            '"first_k_dense_replace" is 2, which contradicts mlp_layer_types',
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else None,
)
def test_a_wrong_or_contradictory_key_is_named(family: str, changes: dict[str, Any], problem: str) -> None:
    assert refusal(broken(family, changes)) == f"config.json: {problem}"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            rope(rope_type="dynamic"),
            "config.json: rope_parameters: \"rope_type\" is 'dynamic'; supported are default, linear, yarn, "
            "longrope",
        ),
        (
            rope(type="linear"),
            "config.json: rope_parameters: \"type\" is 'linear', but must be 'yarn': \"rope_type\" says so",
        ),
        (
            rope(rope_type=None),
            'config.json: rope_parameters: "rope_type" is missing, but the section is not empty',
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}, "rope_theta": 10000.0},
            'config.json: rope_parameters: "full_attention" is an object: a rotary embedding per layer '
            "type is not supported",
        ),
        ({"rope_parameters": 3}, 'config.json: "rope_parameters" is 3, which is not an object'),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            'config.json: "rope_scaling" and "rope_parameters" are both there and differ; keep one of them',
        ),
        (
            {"rope_theta": 500.0},
            'config.json: "rope_theta" is 500.0, but must be 10000.0: config.json: rope_parameters says so',
        ),
        (
            {"original_max_position_embeddings": 32},
            'config.json: rope_parameters: "original_max_position_embeddings" is 64, but must be 32: '
            "config.json says so at its top level",
        ),
        (
            rope(factor=0.5),
            'config.json: rope_parameters: "factor" is 0.5, below its minimum of 1',
        ),
        (
            rope(beta_fast=0.5),
            'config.json: rope_parameters: "beta_fast" is 0.5, below beta_slow of 1',
        ),
        (
            rope(mscale=-1),
            'config.json: rope_parameters: "mscale" is -1, below its minimum of 0',
        ),
        (
            rope(truncate="yes"),
            "config.json: rope_parameters: \"truncate\" is 'yes', which is not true or false",
        ),
        (
            {"rope_parameters": longrope(short_factor=[1.0])},
            'config.json: rope_parameters: "short_factor" is 1 long, but must be a list of 4 numbers '
            "(qk_rope_head_dim / 2)",
        ),
        (
            {"rope_parameters": longrope(long_factor=[1.0, 2.0, -3.0, 4.0])},
            'config.json: rope_parameters: "long_factor" is -3.0, which is not above zero',
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else "+".join(value),
)
def test_a_broken_rotary_section_is_named(changes: dict[str, Any], problem: str) -> None:
    assert refusal(broken("deepseek_v3", changes)) == problem


@pytest.mark.parametrize("key", ["factor", "original_max_position_embeddings"])
def test_yarn_without_its_key_is_refused(key: str) -> None:
    assert refusal(broken("deepseek_v3", rope(**{key: None}))) == (
        f'config.json: rope_parameters: "{key}" is missing; take the config.json that was published with '
        "the weights, nothing is guessed"
    )


def test_a_vision_model_without_a_text_config_is_refused() -> None:
    assert refusal({"model_type": "kimi_k25"}) == (
        'config.json: "text_config" of a kimi_k25 model is None, not an object'
    )
