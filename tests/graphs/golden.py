"""Text form of small graphs, reviewed like code.

python -m tests.graphs.golden      writes graphs/golden/ again; look at the difference before you commit
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import onnx_ir as ir

from mla_export.assemble import assemble
from mla_export.layout import layout
from mla_export.plan import Bulk, Plan
from mla_export.trace import TracedModel, trace
from mla_graphs.contract import CacheTypes
from mla_graphs.geometry import Geometry, Moe, Phase, Rotary
from mla_graphs.lowering import lower

FOLDER = Path(__file__).parents[2] / "graphs" / "golden"

# One dense layer, one with experts; every dimension different from every other.
GEOMETRY = Geometry(
    family="deepseek_v3",
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=100,
    q_lora_rank=24,
    kv_lora_rank=32,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=12,
    intermediate_size=96,
    layer_kinds=("dense", "moe"),
    moe=Moe(
        n_routed_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=20,
        shared_intermediate_size=40,
        scoring="sigmoid",
        correction_bias=True,
        group_score="top2",
        n_group=3,
        topk_group=2,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
    ),
    rms_norm_eps=1e-6,
    q_norm_eps=1e-6,
    kv_norm_eps=1e-6,
    rotary=Rotary(theta=10000.0, interleaved=True, scaling=None),
    softmax_scale=0.2,
    max_context=128,
    attention_bias=False,
    mlp_bias=False,
    tie_word_embeddings=False,
    embedding_scale=1.0,
    residual_scale=1.0,
    logit_scale=1.0,
)

FACTORED = Plan.floats(GEOMETRY, "factored", "float32")
MERGED = Plan.floats(GEOMETRY, "merged", "float32")
EXPANDED = Plan.floats(GEOMETRY, "expanded", "float32")
ORT_CPU_INT4 = dataclasses.replace(FACTORED, target="ort-cpu", weights=Bulk(4, 32))
INT4 = dataclasses.replace(FACTORED, weights=Bulk(4, 32))
INT8_ROWS = dataclasses.replace(FACTORED, cache=CacheTypes("int8", "float32"))

# What is kept: file stem -> plan, phase, and whether lowered to the plan's target.
KEPT: dict[str, tuple[Plan, Phase, bool]] = {
    "factored.step.mla": (FACTORED, "step", False),
    "factored.prompt.mla": (FACTORED, "prompt", False),
    "merged.mla": (MERGED, "step", False),
    "expanded.mla": (EXPANDED, "step", False),
    "factored.step.portable": (FACTORED, "step", True),
    "factored.prompt.portable": (FACTORED, "prompt", True),
    "expanded.step.portable": (EXPANDED, "step", True),
    "factored.int8.step.mla": (INT8_ROWS, "step", False),
    "factored.int8.step.portable": (INT8_ROWS, "step", True),
    "factored.int8.prompt.portable": (INT8_ROWS, "prompt", True),
    "factored.int4.blocks.mla": (ORT_CPU_INT4, "prompt", False),
    "factored.int4.ort-cpu": (ORT_CPU_INT4, "prompt", True),
    "factored.int4.mla": (INT4, "step", False),
    "factored.int4.step.portable": (INT4, "step", True),
    "factored.int4.prompt.portable": (INT4, "prompt", True),
}

traced = functools.cache(trace)


def build(plan: Plan, phase: Phase, *, lowered: bool = True, kinds: TracedModel | None = None) -> ir.Model:
    """Give the assembled model of a phase, by default lowered to its target; `kinds` are its blocks."""
    kinds = kinds or traced(plan)
    model = assemble(plan, phase, kinds, layout(plan), "weights.data")
    return lower(model, plan.target, phase) if lowered else model


def text(model: ir.Model) -> str:
    """Write a model a line a value: what it is called, what makes it, its shape where known."""
    lines = [f"input {_typed(value)}" for value in model.graph.inputs]
    for name, value in model.graph.initializers.items():
        constant = name.startswith("constant.") and value.const_value is not None
        data = f" = {value.const_value.numpy().tolist()}" if constant else ""
        lines.append(f"{'constant' if constant else 'weight'} {_typed(value)}{data}")
    lines += _nodes(model.graph, "")
    lines += [f"output {_typed(value)}" for value in model.graph.outputs]
    return "\n".join(lines) + "\n"


def _nodes(graph: ir.Graph, indent: str) -> list[str]:
    lines = []
    for node in graph:
        plain, bodies = [], []
        for name, attribute in sorted(node.attributes.items()):
            if attribute.type == ir.AttributeType.GRAPH:
                bodies.append(attribute.as_graph())
            elif name != "name":
                value = attribute.value
                value = value.numpy().tolist() if attribute.type == ir.AttributeType.TENSOR else value
                plain.append(f"{name}={list(value) if isinstance(value, tuple) else value}")
        inputs = ", ".join("" if value is None else str(value.name) for value in node.inputs)
        outputs = ", ".join(_typed(value) for value in node.outputs)
        operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        lines.append(
            f"{indent}{outputs} = {operator}({inputs})" + (f" {{{', '.join(plain)}}}" if plain else "")
        )
        for body in bodies:
            lines.append(f"{indent}  body({', '.join(_typed(value) for value in body.inputs)})")
            lines += _nodes(body, indent + "    ")
            lines.append(f"{indent}  gives {', '.join(str(value.name) for value in body.outputs)}")
    return lines


def _typed(value: ir.Value) -> str:
    if value.dtype is None or value.shape is None:
        return str(value.name)
    return f"{value.name}: {value.dtype.name.lower()}[{','.join(str(dim) for dim in value.shape)}]"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for stem, (plan, phase, lowered) in KEPT.items():
        graph = text(build(plan, phase, lowered=lowered))
        (FOLDER / f"{stem}.txt").write_text(graph, encoding="utf-8")


if __name__ == "__main__":
    main()
