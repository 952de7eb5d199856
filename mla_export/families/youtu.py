"""Youtu-LLM: DeepSeek-V3's attention in a dense model. Read after transformers' `youtu`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mla_export.families.family import Family, build_geometry
from mla_export.families.fields import Fields
from mla_export.families.rope import read_context, read_rope
from mla_graphs.geometry import Geometry


class Youtu(Family):
    """Youtu-LLM-2B; conversions of it call themselves `youtu_llm`."""

    name = "youtu"
    model_types = ("youtu", "youtu_llm")
    absent: ClassVar[Mapping[str, Any]] = {
        "attention_bias": False,  # no published checkpoint has biases
        "rope_interleave": True,  # the default of transformers' class
        "tie_word_embeddings": True,  # likewise
    }

    def read(self, fields: Fields, max_context: int | None) -> Geometry:
        """See `Family.read`."""
        fields.expect("mlp_bias", False, "this family's feed-forward layers have no biases")
        context = read_context(fields, max_context)
        return build_geometry(
            self.name,
            fields,
            read_rope(fields, interleaved=fields.boolean("rope_interleave"), max_context=context),
            layer_kinds=tuple("dense" for _ in range(fields.integer("num_hidden_layers"))),
            moe=None,
            max_context=context,
            v_head_dim=fields.integer("v_head_dim"),
            mlp_bias=False,
        )
