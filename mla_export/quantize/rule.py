"""Which parameters get how many bits, and in which form.

What stays above 4 bits was measured on the trained sample, by the mean KL that its rounding costs: tensors
that every token passes and that are a small share of the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from mla_graphs.geometry import Geometry
from mla_graphs.storage import Bits, Blocks, Channels, Groups, Matrix, Storage

# Norms, biases, the gate and the rotary tables; and W_UK and W_UV, which stand in the graph a head.
_FLOAT = ("norm.weight", ".bias", "correction_bias", "moe.router.weight", "w_uk", "w_uv")
_EIGHT = ("embed.weight", "k_up.weight", "v_up.weight")
# Every later token reads the cached row that this makes.
_LATENT = "attention.kv_down.weight"


def is_table(name: str) -> bool:
    """Tell whether a parameter's rows are its outputs, as embeddings are stored."""
    return name in ("embed.weight", "head.weight")


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


@dataclass(frozen=True, slots=True)
class Scheme:
    """What an export stores in codes: the bits of the bulk and of a head of its own, for a target.

    `group` is how many inputs share a scale; None where each output has one.
    """

    target: str
    bits: Bits
    group: int | None
    head: Bits = 8

    def storage(self, name: str, matrix: Matrix, geometry: Geometry) -> Storage | None:
        """Give the form of a parameter; None for floats.

        Standard operators take 8 bits with a scale an output, and whole groups of 4 bits only: a matrix whose
        inputs do not fill their groups gets 8 bits there.
        """
        bits = bits_of(name, geometry, self.bits, self.head)
        if bits is None:
            return None
        if self.target == "ort-cpu":
            if self.group is None:
                raise ValueError("ort-cpu stores weights in groups")
            return Blocks(bits, self.group, has_fine_inputs(name, geometry, self.bits))
        if bits == 4 and self.group is not None and matrix.inputs % self.group == 0:
            return Groups(self.group)
        return Channels(rows=name == "embed.weight")
