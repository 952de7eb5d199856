"""DeepSeek-V2 and V2-Lite (arXiv 2405.04434): softmax gate, greedy or limited to groups.

Read after transformers' `deepseek_v2` and the code published with the checkpoints. Where the two
disagree on a key the model is refused, since no published checkpoint says who is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from mla_export.families.experts import dense_then_moe, read_moe
from mla_export.families.family import Family, build_geometry
from mla_export.families.fields import Fields
from mla_export.families.rope import read_context, read_rope
from mla_graphs.geometry import Geometry, Moe


class DeepseekV2(Family):
    """DeepSeek-V2, V2-Lite, their chat and Coder variants."""

    name = "deepseek_v2"
    model_types = ("deepseek_v2",)
    absent: ClassVar[Mapping[str, Any]] = {
        "attention_bias": False,  # no published checkpoint has biases
        "tie_word_embeddings": False,  # the default of transformers' class
        "scoring_func": "softmax",  # left out by transformers, whose class knows no other
    }

    def read(self, fields: Fields, max_context: int | None) -> Geometry:
        """See `Family.read`."""
        fields.expect("rope_interleave", True, "DeepSeek-V2 always stores interleaved pairs")
        fields.expect("mlp_bias", False, "transformers has such biases, DeepSeek's code has not")
        layer_kinds = dense_then_moe(fields)
        context = read_context(fields, max_context)
        return build_geometry(
            self.name,
            fields,
            read_rope(fields, interleaved=True, max_context=context),
            layer_kinds=layer_kinds,
            moe=_gate(fields) if "moe" in layer_kinds else None,
            max_context=context,
            v_head_dim=fields.integer("v_head_dim"),
            mlp_bias=False,
        )


def _gate(fields: Fields) -> Moe:
    if (scoring := fields.text("scoring_func")) != "softmax":
        raise fields.error("scoring_func", f"is {scoring!r}; this family's gate is 'softmax'")
    fields.expect(
        "norm_topk_prob",
        False,
        "DeepSeek's code then normalises the chosen weights instead of scaling them, transformers' class "
        "scales them and does not; no published DeepSeek-V2 sets it",
    )
    methods: dict[str, Literal["max"] | None] = {"greedy": None, "group_limited_greedy": "max"}
    if (method := fields.text("topk_method")) not in methods:
        raise fields.error("topk_method", f"is {method!r}; this family knows {', '.join(methods)}")
    return read_moe(fields, scoring="softmax", group_score=methods[method], norm_topk_prob=False)
