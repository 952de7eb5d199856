"""Which parameters get how many bits.

What stays above 4 bits was measured on the trained sample, by the mean KL that its rounding costs: tensors
that every token passes and that are a small share of the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mla_graphs.geometry import Geometry

if TYPE_CHECKING:  # it needs torch, which this rule does without
    from mla_export.quantize.blocks import Bits

# Norms, biases, the gate and the rotary tables; and W_UK and W_UV, which stand in the graph a head.
_FLOAT = ("norm.weight", ".bias", "correction_bias", "moe.router.weight", "w_uk", "w_uv")
_EIGHT = ("embed.weight", "k_up.weight", "v_up.weight")
# Every later token reads the cached row that this makes.
_LATENT = "attention.kv_down.weight"


def bits_of(name: str, geometry: Geometry, bits: Bits, head: Bits = 8) -> Bits | None:
    """Give the bits of a parameter, by its name in the graph, where the bulk gets `bits`; None: float.

    Float: norms, biases, router, rotary tables, W_UK and W_UV. One step above the bulk (8 bits for 4, float
    for 8): `kv_down`, rotary rows and all, and the dense layers of a mixture-of-experts model, of which
    there are few. Always 8: the embedding, which is the head too where they are tied. A head of its own has
    the bits of `head`.
    """
    if name.startswith("rotary.") or name.endswith(_FLOAT):
        return None
    few = False
    if name.startswith("layers.") and geometry.moe is not None:
        few = ".mlp." in name and geometry.layer_kinds[int(name.split(".")[1])] == "dense"
    if few or name.endswith(_LATENT):
        return 8 if bits == 4 else None
    if name == "head.weight":
        return head
    return 8 if name.endswith(_EIGHT) else bits


def has_fine_inputs(name: str, geometry: Geometry, bits: Bits) -> bool:
    """Whether what this parameter is multiplied with keeps 16 bits where the target rounds it to 8.

    In a mixture of experts in int8 the rounding of attention's inputs turns gates to other experts, and that
    of the head's is what is left then. Beside weights of 4 bits neither leaves a trace, and without gates
    they cost as little as any other's.
    """
    if bits == 4 or geometry.moe is None:
        return False
    head = "embed.weight" if geometry.tie_word_embeddings else "head.weight"
    return ".attention." in name or name == head
