"""Rotary position embedding as configurations write it, `rope_scaling` and `rope_parameters` alike.

`rope_scaling` (with a top-level `rope_theta`) is what the model authors published; `rope_parameters`
(with `rope_theta` inside) is what transformers 5 writes. The formulas are those of transformers'
`modeling_rope_utils.py` and of its DeepSeek-V2 attention, which all supported families share. Where a
YaRN `mscale` or `mscale_all_dim` is zero or absent alone, DeepSeek's own code and transformers give
different attention factors; transformers' is taken, and an explicit `attention_factor` always wins.
No published checkpoint of these families is in that corner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mla_export.families.fields import Fields
from mla_graphs.geometry import LinearScaling, LongRope, Rotary, Yarn
from mla_runtime.errors import ConfigError

_SUPPORTED = ("default", "linear", "yarn", "longrope")


@dataclass(frozen=True, slots=True)
class Rope:
    """What the configuration says about positions.

    `softmax_mscale` multiplies 1 / sqrt(qk_head_dim); it is already squared.
    """

    rotary: Rotary
    softmax_mscale: float


def read_context(fields: Fields, max_context: int | None) -> int:
    """Give the context of the export: `max_context`, or all that the model was made for."""
    limit = fields.integer("max_position_embeddings")
    if max_context is None:
        return limit
    if max_context < 1:
        raise ConfigError(f"max_context is {max_context}; it must be at least 1")
    if max_context > limit:
        raise ConfigError(
            f"max_context is {max_context}, beyond the model's max_position_embeddings of {limit}; "
            "ask for less (the rotary embedding is not defined further out)"
        )
    return max_context


def read_rope(fields: Fields, *, interleaved: bool, max_context: int) -> Rope:
    """Read the rotary embedding; `max_context` chooses LongRoPE's factors."""
    dim = fields.integer("qk_rope_head_dim")
    if dim % 2:
        raise fields.error("qk_rope_head_dim", f"is {dim}; rotary channels come in pairs, it must be even")
    scaling = _section(fields)
    theta = _theta(fields, scaling)
    for place in (fields, scaling):
        place.expect("partial_rotary_factor", 1.0, "all qk_rope_head_dim channels are rotated in MLA")
    kind = _kind(scaling)
    if kind == "default":
        return Rope(Rotary(theta, interleaved, None), 1.0)
    mscale_all_dim = _mscale(scaling, "mscale_all_dim")
    softmax = _get_mscale(scaling.number("factor", 1.0), mscale_all_dim) ** 2 if mscale_all_dim else 1.0
    if kind == "linear":
        return Rope(Rotary(theta, interleaved, LinearScaling(scaling.number("factor", 1.0))), softmax)
    if kind == "yarn":
        return Rope(Rotary(theta, interleaved, _yarn(fields, scaling)), softmax)
    return Rope(Rotary(theta, interleaved, _longrope(fields, scaling, dim, max_context)), softmax)


def _section(fields: Fields) -> Fields:
    published, library = fields.section("rope_scaling"), fields.section("rope_parameters")
    if published and library and published.values != library.values:
        raise fields.error(
            "rope_scaling", 'and "rope_parameters" are both there and differ; keep one of them'
        )
    return library or published or Fields({}, {}, f"{fields.where}: rope_scaling")


def _theta(fields: Fields, scaling: Fields) -> float:
    if not scaling.has("rope_theta"):
        return fields.number("rope_theta")
    theta = scaling.number("rope_theta")
    fields.expect("rope_theta", theta, f"{scaling.where} says so")
    return theta


def _kind(scaling: Fields) -> str:
    if not scaling.has("rope_type") and not scaling.has("type"):
        nested = [key for key, value in scaling.values.items() if isinstance(value, dict)]
        if nested:
            raise scaling.error(nested[0], "is an object: a rotary embedding per layer type is not supported")
        if set(scaling.values) - {"rope_theta", "partial_rotary_factor"}:
            raise scaling.error("rope_type", "is missing, but the section is not empty")
        return "default"
    kind = scaling.text("rope_type" if scaling.has("rope_type") else "type")
    scaling.expect("type", kind, '"rope_type" says so')
    if kind not in _SUPPORTED:
        raise scaling.error("rope_type", f"is {kind!r}; supported are {', '.join(_SUPPORTED)}")
    return kind


def _original_context(fields: Fields, scaling: Fields) -> int:
    key = "original_max_position_embeddings"
    if not fields.has(key):
        return scaling.integer(key, 2)
    original = fields.integer(key, 2)
    scaling.expect(key, original, f"{fields.where} says so at its top level")
    return original


def _mscale(scaling: Fields, key: str) -> float:
    return scaling.number(key, 0.0) if scaling.has(key) else 0.0


def _get_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn(fields: Fields, scaling: Fields) -> Yarn:
    factor = scaling.number("factor", 1.0)
    mscale, mscale_all_dim = _mscale(scaling, "mscale"), _mscale(scaling, "mscale_all_dim")
    if scaling.has("attention_factor"):
        attention_factor = scaling.number("attention_factor")
    elif mscale and mscale_all_dim:
        attention_factor = _get_mscale(factor, mscale) / _get_mscale(factor, mscale_all_dim)
    else:
        attention_factor = _get_mscale(factor, 1.0)
    # 32 and 1 are YaRN's own bounds, which the paper gives and configurations leave out.
    beta_fast = scaling.number("beta_fast") if scaling.has("beta_fast") else 32.0
    beta_slow = scaling.number("beta_slow") if scaling.has("beta_slow") else 1.0
    if beta_fast < beta_slow:
        raise scaling.error("beta_fast", f"is {beta_fast:g}, below beta_slow of {beta_slow:g}")
    return Yarn(
        factor=factor,
        original_max_position_embeddings=_original_context(fields, scaling),
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        attention_factor=attention_factor,
        truncate=scaling.boolean("truncate") if scaling.has("truncate") else True,
    )


def _longrope(fields: Fields, scaling: Fields, dim: int, max_context: int) -> LongRope:
    original = _original_context(fields, scaling)
    short = scaling.numbers("short_factor", dim // 2)
    long = scaling.numbers("long_factor", dim // 2)
    if scaling.has("factor"):
        factor = scaling.number("factor", 1.0)
    else:
        factor = fields.integer("max_position_embeddings") / original
    if scaling.has("attention_factor"):
        attention_factor = scaling.number("attention_factor")
    else:
        attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return LongRope(long if max_context > original else short, attention_factor)
