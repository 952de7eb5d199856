"""A case of every `mla::` operator: inputs, attributes, and what plain NumPy in float64 makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from mla_export import operators
from mla_graphs import ops

RNG = np.random.default_rng(11)
Array = np.ndarray
Case = tuple[list[Array | None], dict[str, Any], list[Array]]
B, S, T, H, C, R, P, D = 2, 3, 5, 4, 8, 6, 7, 9
NEW_LENGTHS = np.array([3, 2])
PAST_LENGTHS = np.array([4, 0])


def normal(*shape: int) -> Array:
    return RNG.normal(size=shape)


def compute(
    op_type: str,
    arrays: list[Array | None],
    precision: operators.Precision = "float64",
    first_type: ir.DataType = ir.DataType.FLOAT,
    **attributes: Any,
) -> list[Array]:
    """Compute one operator on arrays; `first_type` is what its node says of its first output."""
    values = [ir.Value(name=f"in.{i}") for i in range(len(arrays))]
    outputs = [ir.Value(name=name) for name in ops.OPERATORS[op_type].outputs]
    outputs[0].type = ir.TensorType(first_type)
    node = ir.node(op_type, values, {"name": "x", **attributes}, domain=ops.DOMAIN, outputs=outputs)
    tensors = [None if x is None else torch.from_numpy(np.ascontiguousarray(x)) for x in arrays]
    return [
        (x.float() if x.dtype == torch.bfloat16 else x).numpy()
        for x in operators.compute(node, tensors, precision)
    ]


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sees() -> Array:
    """What each query [B,S] sees of T past rows and S new ones."""
    y = np.zeros((B, 1, S, T + S), bool)
    for b in range(B):
        for s in range(S):
            y[b, 0, s, : PAST_LENGTHS[b]] = True
            y[b, 0, s, T : T + min(s + 1, NEW_LENGTHS[b])] = True
    return y


MASKS: list[Array] = [sees(), np.array([T]), np.array([B, H * S, -1]), np.array([B, H, S, -1])]


def swiglu(x: Array) -> Array:
    gate, up = np.split(x, 2, -1)
    return gate / (1 + np.exp(-gate)) * up


def embed() -> Case:
    ids, table = RNG.integers(0, 9, (B, S)), normal(9, C)
    return [ids, table], {"scale": 3.0}, [table[ids] * 3]


def rotary_rows() -> Case:
    positions, cos, sin = RNG.integers(0, 20, (B, S)), normal(20, R // 2), normal(20, R // 2)
    return [positions, cos, sin], {}, [cos[positions][:, None], sin[positions][:, None]]


def visibility() -> Case:
    counts = np.arange(S) < NEW_LENGTHS[:, None]
    inputs: list[Array | None] = [np.zeros((B, S), int), PAST_LENGTHS, NEW_LENGTHS, normal(B, T, C)]
    return inputs, {"heads": H}, [MASKS[0], counts.ravel(), *MASKS[1:]]


def rms_norm() -> Case:
    x, weight = normal(B, S, C), normal(C)
    return [x, weight], {"epsilon": 0.1}, [weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1)]


def linear() -> Case:
    x, weight, bias = normal(B, S, C), normal(C, D), normal(D)
    return [x, weight, bias], {}, [x @ weight + bias]


def dequantize() -> Case:
    codes, scales = RNG.integers(0, 256, (H, D, 2, 2), dtype=np.uint8), normal(H, D, 2)
    want = np.empty((H, 7, D))  # 8 inputs in two groups of 4, the last of which is padding
    for i in range(7):
        byte = codes[:, :, i // 4, i % 4 // 2].astype(int)
        code = byte % 16 if i % 2 == 0 else byte // 16
        want[:, i] = (code - 8) * scales[:, :, i // 4]
    return [codes, scales], {"bits": 4, "group": 4, "inputs": 7, "table": 0, "fine": 0}, [want]


def dequantize_channels() -> Case:
    codes, scales = RNG.integers(-128, 128, (H, 7, D), dtype=np.int8), normal(H, 1, D)
    return [codes, scales], {"rows": 0, "table": 0}, [codes * scales]


def dequantize_groups() -> Case:
    """Bytes of a stack: the code of input k + 4 high, that of input k less its offset low."""
    codes, scales = RNG.integers(-8, 8, (H, 8, D)), normal(H, 2, D)
    packed = (16 * codes[:, 4:] + codes[:, :4] + 8).astype(np.int8)
    want = np.stack([codes[:, i] * scales[:, i // 4] for i in range(8)], 1)
    return [packed, scales], {"group": 4, "table": 0}, [want]


def split() -> Case:
    x = normal(B, S, C)
    return [x], {"sizes": [3, 5]}, [x[..., :3], x[..., 3:]]


def split_heads() -> Case:
    x = normal(B, S, H * D)
    return [x], {"heads": H}, [np.stack([x[..., h * D : h * D + D] for h in range(H)], 1)]


def merge_heads() -> Case:
    x = normal(B, H, S, D)
    return [x], {"width": H * D}, [np.concatenate([x[:, h] for h in range(H)], -1)]


def rotate() -> Case:
    x, angles = normal(B, H, S, R), normal(B, 1, S, R // 2)
    turned = (x[..., : R // 2] + 1j * x[..., R // 2 :]) * np.exp(1j * angles)
    return [x, np.cos(angles), np.sin(angles)], {}, [np.concatenate([turned.real, turned.imag], -1)]


def head_linear() -> Case:
    x, weight = normal(B, H, S, P), normal(H, P, C)
    return [x, weight], {}, [np.einsum("bhsp,hpc->bhsc", x, weight)]


def _rows() -> list[Array]:
    """Past latent, past rope, latent, rope."""
    return [normal(B, T, C), normal(B, T, R), normal(B, S, C), normal(B, S, R)]


def _attended(scores: Array, scale: float) -> Array:
    return softmax(np.where(MASKS[0], scores * scale, -np.inf))


def latent_attention() -> Case:
    q_latent, q_rope, rows = normal(B, H, S, C), normal(B, H, S, R), _rows()
    latent, rope = np.concatenate(rows[::2], 1), np.concatenate(rows[1::2], 1)
    scores = np.einsum("bhsc,btc->bhst", q_latent, latent) + np.einsum("bhsr,btr->bhst", q_rope, rope)
    want = np.einsum("bhst,btc->bhsc", _attended(scores, 0.3), latent)
    return [q_latent, q_rope, *rows, *MASKS], {"scale": 0.3, "heads": H}, [want]


def prompt_attention() -> Case:
    q_nope, q_rope, rows, w_uk, w_uv = (
        normal(B, H, S, P), normal(B, H, S, R), _rows(), normal(H, P, C), normal(H, C, D),
    )  # fmt: skip
    latent, rope = np.concatenate(rows[::2], 1), np.concatenate(rows[1::2], 1)
    keys, values = np.einsum("hpc,btc->bhtp", w_uk, latent), np.einsum("hcd,btc->bhtd", w_uv, latent)
    scores = np.einsum("bhsp,bhtp->bhst", q_nope, keys) + np.einsum("bhsr,btr->bhst", q_rope, rope)
    want = np.einsum("bhst,bhtd->bhsd", _attended(scores, 0.3), values)
    return [q_nope, q_rope, *rows, w_uk, w_uv, *MASKS], {"scale": 0.3, "heads": H}, [want]


def quantize_rows() -> Case:
    x = normal(B, S, C)
    x[0, 1], x[1, 0] = 0, np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, -127, 3])  # a row of zeros, and ties
    scale = np.maximum(np.abs(x).max(-1) / 127, np.finfo(np.float32).tiny)
    return [x], {}, [np.rint(x / scale[..., None]).astype(np.int8), scale]


def head_attention() -> Case:
    query, key, value = normal(B, H, S, P), normal(B, T + S, H, P), normal(B, T + S, H, D)
    want = np.einsum("bhst,bthd->bhsd", _attended(np.einsum("bhsp,bthp->bhst", query, key), 0.3), value)
    inputs = [query, key[:, :T], value[:, :T], key[:, T:], value[:, T:], *MASKS[:2]]
    return inputs, {"scale": 0.3}, [want]


def grouped_attention() -> Case:
    """Two heads share a group's keys and values; groups stand behind each other in the batch."""
    groups = 2
    query, key, value = normal(B, H, S, P), normal(B, groups, T + S, P), normal(B, groups, T + S, D)
    each_key, each_value = (np.repeat(x, H // groups, axis=1) for x in (key, value))
    p = _attended(np.einsum("bhsp,bhtp->bhst", query, each_key), 0.3)
    want = np.einsum("bhst,bhtd->bhsd", p, each_value)
    key, value = (x.reshape(B * groups, T + S, -1) for x in (key, value))
    inputs = [query, key[:, :T], value[:, :T], key[:, T:], value[:, T:], *MASKS[:2]]
    return inputs, {"scale": 0.3, "groups": groups}, [want]


def head_keys() -> Case:
    nope, rope = normal(B, S, H * P), normal(B, S, R)
    want = np.stack([np.concatenate([nope[..., h * P : h * P + P], rope], -1) for h in range(H)], 2)
    return [nope, rope], {"heads": H}, [want]


def head_rows() -> Case:
    x = normal(B, S, H * D)
    return [x], {"heads": H}, [np.stack([x[..., h * D : h * D + D] for h in range(H)], 2)]


def gated() -> Case:
    x = normal(B, S, C)
    return [x], {}, [swiglu(x)]


def residual() -> Case:
    x, branch = normal(B, S, C), normal(B, S, C)
    return [x, branch], {"scale": 0.7}, [x + 0.7 * branch]


def rows() -> Case:
    x = normal(B, S, C)
    return [x], {"width": C}, [x.reshape(B * S, C)]


def unrows() -> Case:
    x = normal(B * S, C)
    return [x, normal(B, S, C)], {}, [x.reshape(B, S, C)]


def route() -> Case:
    """V3's: sigmoid, a bias that takes part in choosing only, and the best groups by their best two."""
    x, weight, bias = normal(30, C), normal(C, 12), normal(12) * 0.3
    scores = 1 / (1 + np.exp(-x @ weight))
    choice = (scores + bias).reshape(30, 4, 3)
    ranks = np.sort(choice, -1)[..., 1:].sum(-1)
    closed = np.argsort(-ranks, axis=1)[:, 2:]
    np.put_along_axis(choice, closed[..., None], -np.inf, axis=1)
    ids = np.argsort(-choice.reshape(30, 12), axis=1)[:, :3]
    weights = np.take_along_axis(scores, ids, 1)
    attributes = {
        "scoring": "sigmoid", "experts": 12, "top_k": 3, "groups": 4, "top_groups": 2,
        "group_score": "top2", "normalize": 1, "scaling": 2.5,
    }  # fmt: skip
    return [x, weight, bias], attributes, [ids, 2.5 * weights / weights.sum(1, keepdims=True)]


def experts() -> Case:
    x, weights, gate_up, down = normal(20, C), RNG.random((20, 2)), normal(5, C, 6), normal(5, 3, C)
    ids, counts = np.array([RNG.permutation(5)[:2] for _ in range(20)]), RNG.random(20) < 0.7
    want = np.zeros_like(x)
    for n in np.flatnonzero(counts):
        want[n] = sum(
            w * swiglu(x[n] @ gate_up[e]) @ down[e] for e, w in zip(ids[n], weights[n], strict=True)
        )
    x[~counts] = np.nan
    return [x, ids, weights, counts, gate_up, down], {"experts": 5, "top_k": 2}, [want]


def select_rows() -> Case:
    x, chosen = normal(B, S, C), np.array([4, 0, 4])
    return [x, chosen], {"width": C}, [x.reshape(-1, C)[chosen]]


def logits() -> Case:
    x, table = normal(3, C), normal(10, C)
    return [x, table], {"scale": 0.5}, [0.5 * x @ table.T]


CASES: dict[str, Callable[[], Case]] = {
    "Embed": embed,
    "RotaryRows": rotary_rows,
    "Visibility": visibility,
    "RMSNorm": rms_norm,
    "Linear": linear,
    "Dequantize": dequantize,
    "DequantizeChannels": dequantize_channels,
    "DequantizeGroups": dequantize_groups,
    "Split": split,
    "SplitHeads": split_heads,
    "MergeHeads": merge_heads,
    "Rotate": rotate,
    "HeadLinear": head_linear,
    "LatentAttention": latent_attention,
    "PromptAttention": prompt_attention,
    "QuantizeRows": quantize_rows,
    "HeadAttention": head_attention,
    "GroupedAttention": grouped_attention,
    "HeadKeys": head_keys,
    "HeadRows": head_rows,
    "SwiGLU": gated,
    "Residual": residual,
    "Rows": rows,
    "Unrows": unrows,
    "Route": route,
    "Experts": experts,
    "SelectRows": select_rows,
    "Logits": logits,
}
