"""What is compared: the shape, the kinds of attention and caches, and the weights and rows that are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mla_export.inspect import inspect
from mla_graphs import Rotary, Yarn
from mla_graphs.rotary import rotary_tables
from mla_runtime.errors import ConfigError

if TYPE_CHECKING:
    import onnx_ir as ir

    from mla_graphs.baselines import Attention, Cache, Kind, Shape

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

DEFAULT = "DeepSeek-V2-Lite"
CASES: tuple[tuple[Kind, Cache], ...] = (
    *(("mha", cache) for cache in ("float32", "int8")),
    *(("gqa", cache) for cache in ("float32", "int8")),
    *(("mqa", cache) for cache in ("float32", "int8")),
    *(("expanded", cache) for cache in ("float32", "int8")),
    *(("mla", cache) for cache in ("float32", "int8 latent", "int8")),
)
_LARGEST_CODE = 127
_LABELS = {"mha": "MHA", "mqa": "MQA", "expanded": "MLA, expanded", "mla": "MLA, absorbed"}
_SEED = 20240507


def shape_of(model: str | Path | None) -> tuple[str, Shape]:
    """Give the name and the shape of a config.json, a checkpoint or a bundle; None: DeepSeek-V2-Lite's.

    Raises what `inspect` does, and `ConfigError` where heads of the others could not rotate as many channels.
    """
    from mla_graphs.baselines import Shape

    if model is not None:
        shape = Shape.of(inspect(model).geometry)
        if shape.qk_rope_head_dim > shape.v_head_dim:
            raise ConfigError(
                f"{model}: qk_rope_head_dim is {shape.qk_rope_head_dim} and v_head_dim {shape.v_head_dim}, "
                "but heads of MHA, as wide as a value, rotate as many channels; compare like another model"
            )
        return str(model), shape
    mscale = 0.1 * 0.707 * np.log(40) + 1
    yarn = Yarn(
        factor=40.0,
        original_max_position_embeddings=4096,
        beta_fast=32.0,
        beta_slow=1.0,
        attention_factor=1.0,
        truncate=True,
    )
    shape = Shape(
        hidden_size=2048,
        num_attention_heads=16,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        softmax_scale=float(mscale**2 * 192**-0.5),
        q_norm_eps=1e-6,
        kv_norm_eps=1e-6,
        rotary=Rotary(theta=10000.0, interleaved=True, scaling=yarn),
    )
    return DEFAULT, shape


def label(kind: Kind, shape: Shape) -> str:
    """Name a kind as people read it."""
    return _LABELS.get(kind, f"GQA, {shape.groups} groups")


def weight_shapes(graph: ir.Model) -> dict[str, tuple[int, ...]]:
    """Give the weights that a layer's graph lacks, and their shapes; its rotary tables are not among them."""
    return {
        name: tuple(value.shape.numpy())
        for name, value in graph.graph.initializers.items()
        if value.const_value is None and value.shape is not None and not name.startswith("rotary.")
    }


def drawn_weights(attention: Attention, graph: ir.Model) -> dict[str, Array]:
    """Draw the weights of a layer: matrices N(0, 1/inputs), norms of one.

    So what a matrix gives from N(0, 1) is N(0, 1) again. A name and shape always get the same numbers.
    """
    found: dict[str, Array] = {}
    for name, shape in weight_shapes(graph).items():
        if len(shape) == 1:
            found[name] = np.ones(shape, dtype=np.float32)
            continue
        # W_UK stands transposed: what it is multiplied with at training is the latent, as W_UV is
        inputs = attention.shape.kv_lora_rank if name.startswith("attention.w_u") else shape[0]
        rng = np.random.default_rng([_SEED, *name.encode(), *shape])
        found[name] = rng.standard_normal(shape, dtype=np.float32) * np.float32(inputs**-0.5)
    return found


def tables(shape: Shape, positions: int) -> dict[str, Array]:
    """Give cos and sin [positions, R/2] under their names in a graph."""
    cos, sin = rotary_tables(shape.rotary, shape.qk_rope_head_dim, positions)
    return {"rotary.cos": cos.astype(np.float32), "rotary.sin": sin.astype(np.float32)}


def drawn_rows(attention: Attention, depth: int) -> dict[str, Array]:
    """Draw the float32 rows of a cache [G,depth,·] from N(0, 1): keys, values, or latents and rotary keys."""
    return {
        name: np.random.default_rng([_SEED, *name.encode(), depth]).standard_normal(
            (attention.groups, depth, width), dtype=np.float32
        )
        for name, width in attention.widths.items()
    }


def stored(attention: Attention, rows: Mapping[str, Array]) -> dict[str, Array]:
    """Give rows [G,T,·] as the cache of `attention` has them, by the names of the graph's inputs.

    Codes and scales are those of the operator QuantizeRows.
    """
    found: dict[str, Array] = {}
    for name, values in rows.items():
        if not attention.scaled(name):
            found[f"past.{name}"] = values
            continue
        scale = np.abs(values).max(axis=-1) / np.float32(_LARGEST_CODE)
        scale = np.maximum(scale, np.finfo(np.float32).tiny)
        codes = np.rint(values / scale[..., None])
        if attention.codes == "uint8":
            codes += 128
        found[f"past.{name}"] = codes.astype(attention.codes)
        found[f"past.{name}_scale"] = scale
    return found
