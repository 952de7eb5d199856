"""Routed experts and their gate, as the configurations of all DeepSeekMoE families write them."""

from __future__ import annotations

from typing import Literal

from mla_export.families.fields import Fields
from mla_graphs.geometry import LayerKind, Moe


def dense_then_moe(fields: Fields) -> tuple[LayerKind, ...]:
    """Read `first_k_dense_replace`: so many dense layers, then experts in every layer."""
    fields.expect("moe_layer_freq", 1, "transformers' classes know experts in every layer only")
    layers = fields.integer("num_hidden_layers")
    dense = fields.integer("first_k_dense_replace", 0)
    if dense > layers:
        raise fields.error("first_k_dense_replace", f"is {dense}, beyond num_hidden_layers of {layers}")
    return tuple("dense" if layer < dense else "moe" for layer in range(layers))


def read_moe(
    fields: Fields,
    *,
    scoring: Literal["softmax", "sigmoid"],
    group_score: Literal["max", "top2"] | None,
    norm_topk_prob: bool,
) -> Moe:
    """Read the experts; `group_score` None: the family's gate knows no groups.

    Groups that do not limit anything (all of them are allowed) are given as no groups.
    """
    experts = fields.integer("n_routed_experts")
    chosen = fields.integer("num_experts_per_tok")
    width = fields.integer("moe_intermediate_size")
    groups, allowed = 1, 1
    if group_score is not None:
        groups, allowed = fields.integer("n_group"), fields.integer("topk_group")
        if allowed > groups:
            raise fields.error("topk_group", f"is {allowed}, beyond n_group of {groups}")
        if experts % groups:
            raise fields.error("n_group", f"is {groups}, which does not divide n_routed_experts of {experts}")
        if group_score == "top2" and experts // groups < 2:
            raise fields.error(
                "n_group", f"is {groups}: a group is ranked by its two best experts, but has one"
            )
    reachable = experts // groups * allowed
    if chosen > reachable:
        raise fields.error(
            "num_experts_per_tok", f"is {chosen}, but routing can reach only {reachable} experts"
        )
    limited = allowed < groups
    return Moe(
        n_routed_experts=experts,
        num_experts_per_tok=chosen,
        moe_intermediate_size=width,
        shared_intermediate_size=width * fields.integer("n_shared_experts"),
        scoring=scoring,
        correction_bias=scoring == "sigmoid",
        group_score=group_score if limited else None,
        n_group=groups if limited else 1,
        topk_group=allowed if limited else 1,
        norm_topk_prob=norm_topk_prob,
        routed_scaling_factor=fields.number("routed_scaling_factor"),
    )


def read_noaux_gate(fields: Fields) -> Moe:
    """Read DeepSeek-V3's gate: sigmoid scores, a bias that chooses, groups ranked by their two best."""
    if (scoring := fields.text("scoring_func")) != "sigmoid":
        raise fields.error("scoring_func", f"is {scoring!r}; this family's gate is 'sigmoid'")
    if (method := fields.text("topk_method")) != "noaux_tc":
        raise fields.error("topk_method", f"is {method!r}; this family's gate is 'noaux_tc'")
    return read_moe(
        fields, scoring="sigmoid", group_score="top2", norm_topk_prob=fields.boolean("norm_topk_prob")
    )
