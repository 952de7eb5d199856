"""MiniCPM3: dense layers, scalings on embedding, depth and logits, LongRoPE in halves.

Read after transformers' `minicpm3`. Its LongRoPE takes the long factors once a call reaches beyond the
original context, which a cache filled in chunks cannot reproduce: the factors are those of max_context.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from mla_export.families.family import Family, build_geometry
from mla_export.families.fields import Fields
from mla_export.families.rope import read_context, read_rope
from mla_graphs.geometry import Geometry


class MiniCPM3(Family):
    """MiniCPM3-4B."""

    name = "minicpm3"
    model_types = ("minicpm3",)
    absent: ClassVar[Mapping[str, Any]] = {
        "attention_bias": False,  # no published checkpoint has biases
        "mlp_bias": False,  # likewise
        "tie_word_embeddings": True,  # MiniCPM3-4B leaves it out and has no lm_head
        "rope_theta": 10000.0,  # left out by MiniCPM3-4B; the default of its code and of transformers
    }

    def read(self, fields: Fields, max_context: int | None) -> Geometry:
        """See `Family.read`."""
        fields.expect("rope_interleave", False, "MiniCPM3 rotates halves")
        layers, hidden = fields.integer("num_hidden_layers"), fields.integer("hidden_size")
        context = read_context(fields, max_context)
        return build_geometry(
            self.name,
            fields,
            read_rope(fields, interleaved=False, max_context=context),
            layer_kinds=tuple("dense" for _ in range(layers)),
            moe=None,
            max_context=context,
            v_head_dim=_v_head_dim(fields, hidden),
            mlp_bias=fields.boolean("mlp_bias"),
            embedding_scale=fields.number("scale_emb"),
            residual_scale=fields.number("scale_depth") / math.sqrt(layers),
            logit_scale=fields.integer("dim_model_base") / hidden,
        )


def _v_head_dim(fields: Fields, hidden: int) -> int:
    # MiniCPM3-4B leaves the key out: its code and transformers share the hidden size among the heads.
    if fields.has("v_head_dim"):
        return fields.integer("v_head_dim")
    heads = fields.integer("num_attention_heads")
    if hidden % heads:
        raise fields.error(
            "v_head_dim", f"is missing and hidden_size {hidden} does not divide by {heads} heads"
        )
    return hidden // heads
