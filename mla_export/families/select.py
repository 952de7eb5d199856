"""From a config.json to its family; what is not supported is refused by name, with what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mla_export.families.deepseek_v2 import DeepseekV2
from mla_export.families.deepseek_v3 import DeepseekV3
from mla_export.families.family import Family, text_config
from mla_export.families.glm4_moe_lite import Glm4MoeLite
from mla_export.families.minicpm3 import MiniCPM3
from mla_export.families.youtu import Youtu
from mla_runtime.errors import ConfigError

FAMILIES: tuple[Family, ...] = (DeepseekV2(), DeepseekV3(), MiniCPM3(), Youtu(), Glm4MoeLite())

# Relatives of MLA that a reader may well bring, and what each needs that is not built.
_REFUSED = {
    "deepseek_v32": "its sparse attention picks cache rows by a lightning indexer",
    "glm_moe_dsa": "its sparse attention picks cache rows by a lightning indexer",
    "deepseek_v4": "its attention is compressed and sparse, which is not MLA any more",
    "kimi_linear": "most of its layers are linear attention (KDA) with a state in place of a cache",
    "longcat_flash": "its layers hold two attentions, zero experts and scaled LoRA ranks",
    "mistral4": "its query scale depends on the position",
}
_REFUSED_KEYS = {
    "index_topk": "sparse attention",
    "linear_attn_config": "linear attention",
    "sliding_window": "sliding-window attention",
}
_TO_DO = "export one of these models instead, or leave this one to a runtime that knows it"


def family_of(config: Mapping[str, Any]) -> Family:
    """Give the family of a config.json; raises ConfigError for what is not supported.

    Works on the whole file, also where the text model's own keys stand in its `text_config`.
    """
    if "peft_type" in config:
        raise ConfigError(
            f"this is a PEFT adapter ({config['peft_type']}), not a model; merge it into its base model "
            "(merge_and_unload) and export the merged checkpoint"
        )
    text = text_config(config)
    kind = text.get("model_type")
    if not isinstance(kind, str):
        raise ConfigError('config.json: "model_type" is missing; it names the model\'s family')
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    if kind in _REFUSED:
        raise ConfigError(
            f"model_type {kind!r} is not supported: {_REFUSED[kind]}. Supported are {known}; {_TO_DO}"
        )
    for family in FAMILIES:
        if kind in family.model_types:
            _refuse_keys(text, kind)
            _refuse_quantization(config, text)
            return family
    raise ConfigError(f"model_type {kind!r} is not supported. Supported are {known}; {_TO_DO}")


def _refuse_keys(text: Mapping[str, Any], kind: str) -> None:
    for key, meaning in _REFUSED_KEYS.items():
        if text.get(key) is not None:
            raise ConfigError(
                f'config.json: "{key}" is {text[key]!r}: {meaning} is no part of {kind} and not supported; '
                f"{_TO_DO}"
            )


def _refuse_quantization(config: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    for place in (config, text):
        quantization = place.get("quantization_config")
        if quantization is None:
            continue
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        if method != "fp8":
            raise ConfigError(
                f'config.json: "quantization_config" is of method {method!r}; of quantised checkpoints only '
                "DeepSeek's block-scaled fp8 is read: export the bf16 or fp16 checkpoint instead"
            )
        if quantization.get("weight_block_size") != [128, 128] or quantization.get("fmt", "e4m3") != "e4m3":
            raise ConfigError(
                f'config.json: "quantization_config" has format {quantization.get("fmt")!r} in blocks of '
                f"{quantization.get('weight_block_size')!r}; of fp8 only 'e4m3' in blocks of [128, 128] is "
                "read: export the bf16 checkpoint instead"
            )
