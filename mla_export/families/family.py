"""What a family is: configuration to geometry, and the names and shapes of the tensors it consumes."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from mla_export.families.fields import Fields
from mla_export.families.rope import Rope
from mla_export.families.tensors import tensor_shapes
from mla_graphs.geometry import Geometry, LayerKind, Moe
from mla_runtime.errors import ConfigError

# Every supported class builds q_a_layernorm and kv_a_layernorm with the default eps of its RMSNorm,
# whatever rms_norm_eps says; the models' own published code does the same.
LORA_NORM_EPS = 1e-6

# Models with a vision part around a text model of a supported family: the text model is exported.
_WRAPPERS = ("kimi_k25", "kimi_vl")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the text model's own keys: all of config.json, or its `text_config` inside a vision model."""
    if config.get("model_type") not in _WRAPPERS:
        return config
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise ConfigError(
            f'config.json: "text_config" of a {config["model_type"]} model is {text!r}, not an object'
        )
    return text


class Family(ABC):
    """One model family. `absent`: what leaving out a key means (see `Fields`)."""

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    absent: ClassVar[Mapping[str, Any]]

    def geometry(self, config: Mapping[str, Any], max_context: int | None = None) -> Geometry:
        """Read the geometry from config.json; raises ConfigError naming the key that is wrong.

        `max_context` (default: the config's max_position_embeddings) bounds the export's positions.
        """
        return self.read(Fields(text_config(config), self.absent), max_context)

    @abstractmethod
    def read(self, fields: Fields, max_context: int | None) -> Geometry:
        """Read the geometry from the text model's own keys."""

    def tensors(self, geometry: Geometry) -> dict[str, tuple[int, ...]]:
        """Give every tensor that is consumed: logical name -> shape."""
        return tensor_shapes(geometry)

    def ignored(self, name: str, geometry: Geometry) -> str | None:
        """Give the reason why the tensor `name` is not consumed, or None if there is no reason."""
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if layer and int(layer[1]) >= geometry.num_hidden_layers:
            return "multi-token-prediction layer: it drafts ahead and has no part in the model's own logits"
        if name.endswith(".rotary_emb.inv_freq"):
            return "rotary buffer: the tables are computed from config.json"
        if name == "lm_head.weight" and geometry.tie_word_embeddings:
            return "tied head: a copy of model.embed_tokens.weight"
        return None


def build_geometry(
    family: str,
    fields: Fields,
    rope: Rope,
    *,
    layer_kinds: tuple[LayerKind, ...],
    moe: Moe | None,
    max_context: int,
    v_head_dim: int,
    mlp_bias: bool,
    embedding_scale: float = 1.0,
    residual_scale: float = 1.0,
    logit_scale: float = 1.0,
) -> Geometry:
    """Read the keys that all families share and put the geometry together."""
    heads = fields.integer("num_attention_heads")
    fields.expect("num_key_value_heads", heads, "with MLA every query head has a key head of its own")
    if (activation := fields.text("hidden_act")) != "silu":
        raise fields.error("hidden_act", f"is {activation!r}; only 'silu' is supported")
    nope, rotated = fields.integer("qk_nope_head_dim"), fields.integer("qk_rope_head_dim")
    fields.expect("qk_head_dim", nope + rotated, "it is qk_nope_head_dim + qk_rope_head_dim")
    fields.expect("head_dim", rotated, "in these configurations it stands for qk_rope_head_dim")
    return Geometry(
        family=family,
        hidden_size=fields.integer("hidden_size"),
        num_hidden_layers=fields.integer("num_hidden_layers"),
        num_attention_heads=heads,
        vocab_size=fields.integer("vocab_size"),
        q_lora_rank=fields.integer_or_null("q_lora_rank"),
        kv_lora_rank=fields.integer("kv_lora_rank"),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rotated,
        v_head_dim=v_head_dim,
        intermediate_size=fields.integer("intermediate_size"),
        layer_kinds=layer_kinds,
        moe=moe,
        rms_norm_eps=fields.number("rms_norm_eps"),
        q_norm_eps=LORA_NORM_EPS,
        kv_norm_eps=LORA_NORM_EPS,
        rotary=rope.rotary,
        softmax_scale=rope.softmax_mscale / math.sqrt(nope + rotated),
        max_context=max_context,
        attention_bias=fields.boolean("attention_bias"),
        mlp_bias=mlp_bias,
        tie_word_embeddings=fields.boolean("tie_word_embeddings"),
        embedding_scale=embedding_scale,
        residual_scale=residual_scale,
        logit_scale=logit_scale,
    )
