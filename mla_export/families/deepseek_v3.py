"""DeepSeek-V3 (arXiv 2412.19437) and what shares its text model: R1, Moonlight, Kimi-K2.

Read after transformers' `deepseek_v3`. A `kimi_k2` configuration is the same under another name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mla_export.families.experts import dense_then_moe, read_noaux_gate
from mla_export.families.family import Family, build_geometry
from mla_export.families.fields import Fields
from mla_export.families.rope import read_context, read_rope
from mla_graphs.geometry import Geometry


class DeepseekV3(Family):
    """DeepSeek-V3, R1, Moonlight, Kimi-K2 and the text model of Kimi-VL and Kimi-K2.5."""

    name = "deepseek_v3"
    model_types = ("deepseek_v3", "kimi_k2")
    absent: ClassVar[Mapping[str, Any]] = {
        "attention_bias": False,  # no published checkpoint has biases
        "rope_interleave": True,  # a key of transformers only; published weights are interleaved
        "tie_word_embeddings": False,  # the default of transformers' class
        "scoring_func": "sigmoid",  # left out by transformers, whose class knows no other
        "topk_method": "noaux_tc",  # likewise
    }

    def read(self, fields: Fields, max_context: int | None) -> Geometry:
        """See `Family.read`."""
        fields.expect("mlp_bias", False, "this family's feed-forward layers have no biases")
        layer_kinds = dense_then_moe(fields)
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
