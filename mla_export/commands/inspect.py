"""`mla-export inspect`: geometry, parameters, cache bytes a token, and what each absorption costs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import groupby

from rich.console import Console
from rich.table import Table

from mla_export import costs
from mla_export.commands import engine_versions
from mla_export.commands.tables import console, count, facts, print_json, size, table
from mla_export.inspect import Inspection, inspect
from mla_graphs import Geometry, LinearScaling, LongRope, Yarn
from mla_runtime.wording import counted

FORM_NAMES = {
    "factored": "factored (default)",
    "merged_uk": "merged, W_UK only",
    "merged": "merged",
    "expanded": "expanded (baseline)",
}


def run(args: argparse.Namespace) -> int:
    """Print the inspection of `args.model`."""
    inspection = inspect(args.model, args.max_context)
    if args.json:
        print_json(inspection.as_json())
    else:
        show(inspection, console())
    return 0


def show(inspection: Inspection, out: Console) -> None:
    """Print an inspection as tables."""
    geometry = inspection.geometry
    out.print(f"{inspection.path}: {geometry.family}, {_kind(inspection)}", style="bold", soft_wrap=True)
    out.print()
    out.print(facts(_facts(inspection)))
    out.print()
    out.print(_attention_table(geometry))
    out.print(_cache_table(geometry))
    merged = costs.merge_break_even(geometry, "merged")
    extra = costs.attention_elements(geometry, "merged") - costs.attention_elements(geometry, "factored")
    if extra > 0:
        out.print(
            f"Merging adds {size(extra * 2 * geometry.num_hidden_layers)} of fp16 weights to every token: "
            f"as much as the latent rows of {counted(merged, 'token')}."
        )
    else:
        out.print("Merging makes the attention of this model no heavier.")
    out.print("int8: one scale a token, rotary key in fp16.", style="dim")


def _kind(inspection: Inspection) -> str:
    bundle = inspection.bundle
    if bundle is None:
        return {"config": "configuration only", "checkpoint": "checkpoint"}.get(inspection.kind, "")
    manifest = bundle.manifest
    return f"bundle ({manifest.absorb}, target {manifest.target}, {manifest.precision.words})"


def _facts(inspection: Inspection) -> Iterator[tuple[str, str]]:
    g = inspection.geometry
    parameters = costs.parameters(g)
    yield "parameters", f"{count(parameters.total)}, of which a token meets {count(parameters.active)}"
    kinds = ", ".join(f"{len(list(run))} {kind}" for kind, run in groupby(g.layer_kinds))
    yield (
        "layers",
        f"{g.num_hidden_layers} ({kinds}), hidden size {g.hidden_size}, vocabulary {g.vocab_size:,}",
    )
    queries = "no query compression" if g.q_lora_rank is None else f"q_lora_rank {g.q_lora_rank}"
    yield (
        "attention",
        f"{g.num_attention_heads} heads of {g.qk_nope_head_dim} nope + {g.qk_rope_head_dim} rope channels, "
        f"values of {g.v_head_dim}",
    )
    yield "", f"kv_lora_rank {g.kv_lora_rank}, {queries}, softmax scale {g.softmax_scale:.6g}"
    yield "positions", f"up to {counted(g.max_context, 'token')}, {_rotary(g)}"
    if g.moe is not None:
        yield "experts", _experts(g)
    scales = {"embedding": g.embedding_scale, "residual": g.residual_scale, "logits": g.logit_scale}
    if any(value != 1.0 for value in scales.values()):
        yield "scales", ", ".join(f"{name} {value:.6g}" for name, value in scales.items())
    if inspection.tensors is not None:
        tensors = inspection.tensors
        dtypes = ", ".join(f"{n} {dtype}" for dtype, n in sorted(tensors.dtypes.items()))
        yield "tensors", f"{tensors.count} ({dtypes}), {size(tensors.nbytes)}; {tensors.consumed} consumed"
        for reason, number in tensors.ignored.items():
            yield "ignored", f"{counted(number, 'tensor')}: {reason}"
    if inspection.bundle is not None:
        row = sum(tensor.row_bytes for tensor in inspection.bundle.cache)
        yield "cache", f"{row:,} bytes a token in this bundle; the table below is of the model in any format"
        files = inspection.bundle.manifest.files
        total = size(sum(entry.size for entry in files.values()))
        yield "files", f"{total}: " + ", ".join(f"{name} {size(entry.size)}" for name, entry in files.items())
        yield (
            "graphs",
            f"opset {inspection.bundle.manifest.opset}, prompt in chunks of {inspection.bundle.chunk}",
        )
        yield from engine_versions.facts(inspection.versions)
    for note in inspection.notes:
        yield "note", note


def _rotary(g: Geometry) -> str:
    pairs = "interleaved pairs" if g.rotary.interleaved else "halves"
    text = f"rotary in {pairs}, theta {g.rotary.theta:g}"
    match g.rotary.scaling:
        case Yarn(factor=factor, original_max_position_embeddings=original):
            return f"{text}, YaRN ×{factor:g} from {original}"
        case LongRope():
            return f"{text}, LongRoPE with the factors of this context"
        case LinearScaling(factor=factor):
            return f"{text}, linear ×{factor:g}"
    return text


def _experts(g: Geometry) -> str:
    moe = g.moe
    if moe is None:
        return "none"
    groups = f", {moe.topk_group} of {moe.n_group} groups" if moe.group_score else ""
    bias = " with a correction bias" if moe.correction_bias else ""
    shared = moe.shared_intermediate_size // moe.moe_intermediate_size
    return (
        f"{moe.num_experts_per_tok} of {moe.n_routed_experts} chosen{groups} by {moe.scoring}{bias}, "
        f"{shared} shared, width {moe.moe_intermediate_size}"
    )


def _attention_table(g: Geometry) -> Table:
    factored = costs.attention_elements(g, "factored")
    rows = []
    for form in costs.FORMS:
        elements = costs.attention_elements(g, form)
        whole = elements * g.num_hidden_layers
        rows.append(
            (
                FORM_NAMES[form],
                count(elements),
                f"{elements / factored:.2f}×",
                size(whole * 4),
                size(whole * 2),
                "expanded" if form == "expanded" else "latent",
            )
        )
    header = ("form", "a layer", "ratio", "all, fp32", "all, fp16", "cache")
    return table(
        "Attention weights that a token is multiplied with", header, rows, spare=("ratio", "all, fp32")
    )


def _cache_table(g: Geometry) -> Table:
    latent = costs.cache_row_elements(g, "latent")
    forms: tuple[costs.CacheForm, ...] = ("latent", "expanded")
    rows = []
    for form in forms:
        elements = costs.cache_row_elements(g, form)
        sizes = [size(costs.cache_token_bytes(g, form, name)) for name in costs.CACHE_FORMATS]
        context = size(costs.cache_token_bytes(g, form, "float16") * g.max_context)
        rows.append((form, f"{elements:,}", f"{elements / latent:.1f}×", *sizes, context))
    header = ("cache", "a layer", "ratio", "fp32", "fp16", "int8", f"fp16 × {g.max_context:,}")
    return table("Cache bytes a token, all layers", header, rows, spare=("a layer", "fp32"))
