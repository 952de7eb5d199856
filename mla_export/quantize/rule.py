"""Which tensors of a checkpoint get how many bits.

What stays above 4 bits was measured on the trained sample, by the mean KL that its rounding costs: tensors
that every token passes and that are a small share of the bytes.
"""

from __future__ import annotations

from mla_export.quantize.blocks import Bits
from mla_graphs.geometry import Geometry

# The latent and its keys and values: whatever is wrong in a cached row stays for all later tokens.
_LATENT = ("self_attn.kv_a_proj_with_mqa.weight", "self_attn.kv_b_proj.weight")
_WHOLE = ("model.embed_tokens.weight", "lm_head.weight")


def bits_of(name: str, geometry: Geometry, bits: Bits) -> Bits | None:
    """Give the bits of a checkpoint tensor, by its logical name, where the bulk gets `bits`; None: float.

    Float: norms, biases and the router. 8 bits at least: embedding, head, `kv_a_proj_with_mqa` (rotary rows
    and all), `kv_b_proj`, and the dense layers of a mixture-of-experts model, which are few.
    """
    if name in _WHOLE:
        return 8
    if not name.endswith(("_proj.weight", "_proj_with_mqa.weight")):
        return None
    layer, within = name.removeprefix("model.layers.").split(".", 1)
    few = geometry.moe is not None and geometry.layer_kinds[int(layer)] == "dense"
    return 8 if within in _LATENT or (few and within.startswith("mlp.")) else bits
