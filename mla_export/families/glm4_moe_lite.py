"""GLM-4.7-Flash: DeepSeek-V3's attention and gate. Read after transformers' `glm4_moe_lite`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mla_export.families.experts import read_noaux_gate
from mla_export.families.family import Family, build_geometry
from mla_export.families.fields import Fields
from mla_export.families.rope import read_context, read_rope
from mla_graphs.geometry import Geometry, LayerKind


class Glm4MoeLite(Family):
    """GLM-4.7-Flash."""

    name = "glm4_moe_lite"
    model_types = ("glm4_moe_lite",)
    absent: ClassVar[Mapping[str, Any]] = {
        "attention_bias": False,  # no published checkpoint has biases
        "rope_interleave": True,  # the default of transformers' class; left out by GLM-4.7-Flash
        "tie_word_embeddings": False,  # the default of transformers' class
        "scoring_func": "sigmoid",  # left out by GLM-4.7-Flash; the class knows no other
        "topk_method": "noaux_tc",  # left out by transformers, whose class knows no other
    }

    def read(self, fields: Fields, max_context: int | None) -> Geometry:
        """See `Family.read`."""
        fields.expect("mlp_bias", False, "this family's feed-forward layers have no biases")
        layer_kinds = _layer_kinds(fields)
        context = read_context(fields, max_context)
        rope = read_rope(fields, interleaved=fields.boolean("rope_interleave"), max_context=context)
        return build_geometry(
            self.name,
            fields,
            rope,
            layer_kinds=layer_kinds,
            moe=read_noaux_gate(fields) if "moe" in layer_kinds else None,
            max_context=context,
            v_head_dim=fields.integer("v_head_dim"),
            mlp_bias=False,
        )


def _layer_kinds(fields: Fields) -> tuple[LayerKind, ...]:
    """Read `mlp_layer_types`; GLM-4.7-Flash leaves it out, and then the first layer alone is dense."""
    layers = fields.integer("num_hidden_layers")
    words: dict[object, LayerKind] = {"dense": "dense", "sparse": "moe"}
    types = fields.values.get("mlp_layer_types")
    if types is None:
        types = ["dense"] + ["sparse"] * (layers - 1)
    if not isinstance(types, list) or len(types) != layers:
        raise fields.error("mlp_layer_types", f"must be a list of num_hidden_layers = {layers} words")
    for word in types:
        if not isinstance(word, str) or word not in words:
            raise fields.error("mlp_layer_types", f"has {word!r}; known are 'dense' and 'sparse'")
    if fields.has("first_k_dense_replace"):
        dense = fields.integer("first_k_dense_replace", 0)
        if types != ["dense"] * dense + ["sparse"] * (layers - dense):
            raise fields.error("first_k_dense_replace", f"is {dense}, which contradicts mlp_layer_types")
    return tuple(words[word] for word in types)
