"""The weights that a bundle stores in codes, read by plain NumPy, in the places of the checkpoint's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir


def in_blocks(path: Path) -> dict[str, np.ndarray]:
    """Read the weights of a bundle in blocks as what they stand for, [..., out, in]; floats as they are."""
    model = ir.load(path / "model.onnx")
    tensors = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    found = {}
    for name, codes in tensors.items():
        if ".codes" not in name:
            continue
        scales = tensors[name.replace(".codes", ".scales")]
        group = 32
        if codes.shape[-1] == group // 2:
            codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], group) - 8.0
        else:
            codes = codes - 128.0
        values = codes * scales.reshape(codes.shape[:-1])[..., None]
        found[name.replace(".codes", "")] = values.reshape(*values.shape[:-2], -1)
    return found


def in_columns(path: Path) -> dict[str, np.ndarray]:
    """Read those of a portable bundle, [out, in]; stacks by expert."""
    model = ir.load(path / "step.onnx")
    tensors = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    found = {}
    for name, codes in tensors.items():
        if not name.endswith(".codes"):
            continue
        key, scales = name.removesuffix(".codes"), tensors[name.replace(".codes", ".scales")]
        scales, codes = scales.astype(np.float64), codes.astype(np.int16)
        if codes.ndim == 3 and scales.shape[1] > 1:  # two to a byte
            codes = np.concatenate([codes - (codes >> 4) * 16 - 8, codes >> 4], axis=1)
        if key == "embed.weight":
            values = codes * scales[:, None]
        else:
            if scales.ndim == codes.ndim:
                scales = np.repeat(scales, codes.shape[-2] // scales.shape[-2], axis=-2)
            values = (codes * scales).swapaxes(-1, -2)
        if values.ndim == 3:
            found |= {f"{key}.{expert}": matrix for expert, matrix in enumerate(values)}
        else:
            found[key] = values
    return found


def median_nmse(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.median(((got - want) ** 2).sum(axis=1) / (want**2).sum(axis=1)))


def dequantised(w, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Put stored weights in the places of the checkpoint's, under its names and in its orders."""
    g = w.geometry
    tensors = dict(w.tensors)
    halves = np.concatenate([np.arange(0, g.qk_rope_head_dim, 2), np.arange(1, g.qk_rope_head_dim, 2)])
    back = np.argsort(halves) if g.rotary.interleaved else np.arange(g.qk_rope_head_dim)
    for name, values in found.items():
        if name in ("embed.weight", "head.weight"):
            theirs = "model.embed_tokens.weight" if name == "embed.weight" else "lm_head.weight"
            tensors[theirs] = values[:, : g.hidden_size]
            continue
        _, layer, within = name.split(".", 2)
        prefix = f"model.layers.{layer}."
        if within == "attention.q_up.weight":
            theirs = "self_attn.q_proj" if g.q_lora_rank is None else "self_attn.q_b_proj"
            width = tensors[f"{prefix}{theirs}.weight"].shape[1]
            nope = values[: g.num_attention_heads * g.qk_nope_head_dim, :width]
            rope = values[g.num_attention_heads * g.qk_nope_head_dim :, :width]
            nope = nope.reshape(g.num_attention_heads, g.qk_nope_head_dim, width)
            rope = rope.reshape(g.num_attention_heads, g.qk_rope_head_dim, width)[:, back]
            tensors[f"{prefix}{theirs}.weight"] = np.concatenate([nope, rope], axis=1).reshape(-1, width)
        elif within == "attention.kv_down.weight":
            rows = values[:, : g.hidden_size]
            rows = np.concatenate([rows[: g.kv_lora_rank], rows[g.kv_lora_rank :][back]])
            tensors[f"{prefix}self_attn.kv_a_proj_with_mqa.weight"] = rows
        elif not within.startswith("attention."):
            path = {"mlp": "mlp", "moe.shared": "mlp.shared_experts"}.get(within.rsplit(".", 2)[0])
            if path is None:  # moe.experts.gate_up.3
                _, _, kind, expert = within.split(".")
                path, kinds = f"mlp.experts.{expert}", kind
            else:
                kinds = within.split(".")[-2]
            for kind, part in zip(
                *((("gate", "up"), np.split(values, 2)) if kinds == "gate_up" else (("down",), [values])),
                strict=True,
            ):
                theirs = f"{prefix}{path}.{kind}_proj.weight"
                tensors[theirs] = part[:, : tensors[theirs].shape[1]]
        elif within in ("attention.k_up.weight", "attention.v_up.weight"):
            heads = (g.num_attention_heads, -1, g.kv_lora_rank)
            kv_b = tensors[f"{prefix}self_attn.kv_b_proj.weight"].reshape(heads).copy()
            part = slice(0, g.qk_nope_head_dim) if "k_up" in within else slice(g.qk_nope_head_dim, None)
            kv_b[:, part] = values[:, : g.kv_lora_rank].reshape(heads)
            tensors[f"{prefix}self_attn.kv_b_proj.weight"] = kv_b.reshape(-1, g.kv_lora_rank)
        else:
            theirs = {"attention.q_down.weight": "q_a_proj", "attention.o_proj.weight": "o_proj"}[within]
            theirs = f"{prefix}self_attn.{theirs}.weight"
            tensors[theirs] = values[:, : tensors[theirs].shape[1]]
    return tensors
