"""Write a checkpoint as a GGUF file for llama.cpp: its architecture `deepseek2`, attention absorbed.

    python benchmarks/peers/gguf_file.py CHECKPOINT OUT.gguf --weights q4_0

Names and keys are those that llama.cpp's src/models/deepseek2.cpp reads. Matrices are stored in one type,
token embedding and head included; norms and routers in float32, as llama.cpp's own converter keeps them.
There is no tokenizer in the file: it decodes token ids.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from mla_export.checkpoint import Checkpoint
from mla_export.families import account, family_of
from mla_graphs.geometry import Geometry, Yarn

ARCHITECTURE = "deepseek2"
WEIGHTS = {"f32": Type.F32, "f16": Type.F16, "q8_0": Type.Q8_0, "q4_0": Type.Q4_0}

# checkpoint's name within a layer -> GGUF's
_ATTENTION = {
    "q_proj": "attn_q",
    "q_a_proj": "attn_q_a",
    "q_a_layernorm": "attn_q_a_norm",
    "q_b_proj": "attn_q_b",
    "kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "kv_a_layernorm": "attn_kv_a_norm",
    "o_proj": "attn_output",
}
_PROJECTIONS = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}

Read = Callable[[str], np.ndarray]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the file: its name, type, shape (rows last), and how to get it in float32."""

    name: str
    type: Type
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]


def write(checkpoint: Checkpoint, out: Path, weights: str) -> None:
    """Write the GGUF file `out`; raises ValueError for what the architecture cannot say."""
    family = family_of(checkpoint.config)
    geometry = family.geometry(checkpoint.config)
    refuse(geometry)
    names = account(checkpoint, family, geometry).names

    def read(name: str) -> np.ndarray:
        return checkpoint.read(names[name]).to(torch.float32).numpy()

    tensors = list(layout(geometry, read, WEIGHTS[weights]))
    partial = out.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, ARCHITECTURE)
    describe(writer, geometry)
    for tensor in tensors:
        blocks, size = gguf.GGML_QUANT_SIZES[tensor.type]
        nbytes = int(np.prod(tensor.shape)) // blocks * size
        # a quantised tensor's shape is given in bytes
        stored = tensor.shape if blocks == 1 else gguf.quant_shape_to_byte_shape(tensor.shape, tensor.type)
        dtype = np.dtype(np.uint8 if blocks > 1 else np.float16 if tensor.type == Type.F16 else np.float32)
        writer.add_tensor_info(tensor.name, stored, dtype, nbytes, tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(gguf.quantize(tensor.load(), tensor.type))
    writer.close()
    partial.rename(out)


def refuse(geometry: Geometry) -> None:
    """Raise ValueError where deepseek2.cpp computes something else than this geometry says."""
    moe = geometry.moe
    wrong = {
        "rotary halves instead of pairs": not geometry.rotary.interleaved,
        "rotary scaling other than YaRN": not isinstance(geometry.rotary.scaling, Yarn | None),
        "biases": geometry.attention_bias or geometry.mlp_bias,
        "experts limited to groups": moe is not None and moe.group_score is not None,
        "MiniCPM's scales": (geometry.embedding_scale, geometry.residual_scale, geometry.logit_scale)
        != (1.0, 1.0, 1.0),
    }
    for what, present in wrong.items():
        if present:
            raise ValueError(f"this model has {what}, which the GGUF architecture {ARCHITECTURE} has not")


def describe(writer: gguf.GGUFWriter, geometry: Geometry) -> None:
    """Write the metadata: every key that deepseek2.cpp needs, and no tokenizer."""
    g = geometry
    writer.add_name(f"random {g.family}")
    writer.add_block_count(g.num_hidden_layers)
    writer.add_context_length(g.max_context)
    writer.add_embedding_length(g.hidden_size)
    writer.add_feed_forward_length(g.intermediate_size)
    writer.add_vocab_size(g.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_layer_norm_rms_eps(g.rms_norm_eps)
    writer.add_head_count(g.num_attention_heads)
    # absorbed: all heads read one key row, the latent with the rope part behind it
    writer.add_head_count_kv(1)
    writer.add_q_lora_rank(g.q_lora_rank or 0)
    writer.add_kv_lora_rank(g.kv_lora_rank)
    writer.add_key_length(g.kv_lora_rank + g.qk_rope_head_dim)
    writer.add_value_length(g.kv_lora_rank)
    writer.add_key_length_mla(g.qk_head_dim)
    writer.add_value_length_mla(g.v_head_dim)
    writer.add_leading_dense_block_count(g.layer_kinds.count("dense"))
    _describe_rope(writer, g)
    _describe_experts(writer, g)


def _describe_rope(writer: gguf.GGUFWriter, g: Geometry) -> None:
    writer.add_rope_dimension_count(g.qk_rope_head_dim)
    writer.add_rope_freq_base(g.rotary.theta)
    yarn = g.rotary.scaling
    if not isinstance(yarn, Yarn):
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(yarn.factor)
    writer.add_rope_scaling_orig_ctx_len(yarn.original_max_position_embeddings)
    writer.add_rope_scaling_yarn_beta_fast(yarn.beta_fast)
    writer.add_rope_scaling_yarn_beta_slow(yarn.beta_slow)
    # the softmax scale is mscale² / sqrt(P + R) with mscale = 1 + 0.1 · mscale_all_dim · ln(factor);
    # llama.cpp's key holds 0.1 · mscale_all_dim
    mscale = (g.softmax_scale * g.qk_head_dim**0.5) ** 0.5
    writer.add_rope_scaling_yarn_log_mul((mscale - 1.0) / float(np.log(yarn.factor)))


def _describe_experts(writer: gguf.GGUFWriter, g: Geometry) -> None:
    if g.moe is None:
        # read for every model of the architecture, used by those with experts
        writer.add_expert_feed_forward_length(g.intermediate_size)
        writer.add_expert_shared_count(0)
        return
    writer.add_expert_count(g.moe.n_routed_experts)
    writer.add_expert_used_count(g.moe.num_experts_per_tok)
    writer.add_expert_shared_count(g.moe.shared_intermediate_size // g.moe.moe_intermediate_size)
    writer.add_expert_feed_forward_length(g.moe.moe_intermediate_size)
    writer.add_expert_weights_scale(g.moe.routed_scaling_factor)
    writer.add_expert_weights_norm(g.moe.norm_topk_prob)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType[g.moe.scoring.upper()])


def layout(g: Geometry, read: Read, matrix: Type) -> Iterator[Tensor]:
    """Give the file's tensors in order; `read` gives a checkpoint tensor by its logical name."""

    def copied(name: str, source: str, shape: tuple[int, ...], kind: Type = matrix) -> Tensor:
        return Tensor(name, kind, shape, lambda: read(source))

    table = (g.vocab_size, g.hidden_size)
    yield copied("token_embd.weight", "model.embed_tokens.weight", table)
    yield copied("output_norm.weight", "model.norm.weight", (g.hidden_size,), Type.F32)
    if not g.tie_word_embeddings:
        yield copied("output.weight", "lm_head.weight", table)
    shapes = family_shapes(g)
    for i, kind in enumerate(g.layer_kinds):
        layer, block = f"model.layers.{i}", f"blk.{i}"
        for source, name in {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}.items():
            yield copied(f"{block}.{name}.weight", f"{layer}.{source}.weight", (g.hidden_size,), Type.F32)
        for source, name in _ATTENTION.items():
            full = f"{layer}.self_attn.{source}.weight"
            if full in shapes:
                norm = source.endswith("layernorm")
                yield copied(f"{block}.{name}.weight", full, shapes[full], Type.F32 if norm else matrix)
        yield from _absorbed(g, block, f"{layer}.self_attn.kv_b_proj.weight", read, matrix)
        if kind == "dense":
            for source, name in _PROJECTIONS.items():
                full = f"{layer}.mlp.{source}.weight"
                yield copied(f"{block}.{name}.weight", full, shapes[full])
        else:
            yield from _experts(g, block, f"{layer}.mlp", shapes, read, matrix)


def family_shapes(g: Geometry) -> dict[str, tuple[int, ...]]:
    """Give the shapes of the checkpoint's tensors by logical name."""
    from mla_export.families.tensors import tensor_shapes

    return tensor_shapes(g)


def _absorbed(g: Geometry, block: str, source: str, read: Read, matrix: Type) -> Iterator[Tensor]:
    """kv_b_proj holds, a head, P rows of W_UK and D rows of W_UV; llama.cpp wants W_UK transposed."""
    heads, nope, value, latent = g.num_attention_heads, g.qk_nope_head_dim, g.v_head_dim, g.kv_lora_rank

    def keys() -> np.ndarray:
        both = read(source).reshape(heads, nope + value, latent)
        return np.ascontiguousarray(both[:, :nope].transpose(0, 2, 1))  # [H, C, P]

    def values() -> np.ndarray:
        both = read(source).reshape(heads, nope + value, latent)
        return np.ascontiguousarray(both[:, nope:])  # [H, D, C]

    yield Tensor(f"{block}.attn_k_b.weight", matrix, (heads, latent, nope), keys)
    yield Tensor(f"{block}.attn_v_b.weight", matrix, (heads, value, latent), values)


def _experts(
    g: Geometry, block: str, mlp: str, shapes: dict[str, tuple[int, ...]], read: Read, matrix: Type
) -> Iterator[Tensor]:
    if g.moe is None:
        raise ValueError(f"{mlp}: is a layer of experts in a model without them")
    count, gate = g.moe.n_routed_experts, f"{mlp}.gate.weight"
    yield Tensor(f"{block}.ffn_gate_inp.weight", Type.F32, shapes[gate], lambda: read(gate))
    if g.moe.correction_bias:
        bias = f"{mlp}.gate.e_score_correction_bias"
        yield Tensor(f"{block}.exp_probs_b.bias", Type.F32, (count,), lambda: read(bias))
    for source, name in _PROJECTIONS.items():
        shared = f"{mlp}.shared_experts.{source}.weight"
        sources = [f"{mlp}.experts.{j}.{source}.weight" for j in range(count)]

        def stacked(sources: list[str] = sources) -> np.ndarray:
            return np.stack([read(source) for source in sources])

        def single(shared: str = shared) -> np.ndarray:
            return read(shared)

        yield Tensor(f"{block}.{name}_exps.weight", matrix, (count, *shapes[sources[0]]), stacked)
        yield Tensor(f"{block}.{name}_shexp.weight", matrix, shapes[shared], single)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", choices=WEIGHTS, default="q4_0")
    args = parser.parse_args()
    write(Checkpoint.open(args.checkpoint), args.out, args.weights)
    print(f"{args.out}: {args.out.stat().st_size / 1e9:.2f} GB, {args.weights}")


if __name__ == "__main__":
    main()
