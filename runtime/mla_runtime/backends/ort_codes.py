"""How ONNX Runtime multiplies with int8 and int4 weights of standard operators: with activations in floats.

Left alone, ONNX Runtime 1.31 makes `MatMulNBits` of such a product and rounds activations to int8, which
the graph does not say. Measured on a product with 2048 × 2048 weights in fp32, one thread of an AVX-512 core
(ms for 1 row / 64 rows, error against float64):

    left alone                       int4   0.17 / 8.6   5e-3     int8   0.4 / 8.1    5e-3
    written out as floats            int4   0.7 / 16     4e-7     int8   0.7 / 12     4e-7
    MatMulNBits, level 1, packed     int4   0.4 / 9.3    8e-7     int8    20 / 31     3e-7
    DequantizeLinear in each call    int4    10 / 13     4e-7     int8    11 / 13     4e-7

So weights are written out when a graph is loaded, which takes 3.5 bytes a weight in each of two graphs. Where
that is too much, int4 goes to MatMulNBits, which packs it in 1.4 bytes, and int8 is dequantised in each call;
packed it would take as much as floats. Experts are never written out: only those chosen are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mla_runtime.bundle import Bundle
from mla_runtime.memory import memory_limit

_BYTES = 4  # of a weight written out; fp16 is computed in fp32
_GRAPHS = 2
_BITS: dict[str, Literal[4, 8]] = {"int4": 4, "int8": 8}


@dataclass(frozen=True, slots=True)
class CodedWeights:
    """The bits of weights that standard operators read as codes, or None; and if they are written out."""

    bits: Literal[4, 8] | None
    written_out: bool

    @classmethod
    def of(cls, bundle: Bundle) -> CodedWeights:
        """Decide for a bundle on this machine: a quarter of its memory may go to floats."""
        manifest, limit = bundle.manifest, memory_limit()
        bits = _BITS.get(manifest.precision.weights) if manifest.target == "portable" else None
        needed = _GRAPHS * _BYTES * bundle.model.parameters
        return cls(bits, bits is not None and limit is not None and needed <= limit // 4)

    @property
    def must_be_packed(self) -> bool:
        """Tell whether graphs have to be pre-packed to be usable."""
        return self.bits == 4 and not self.written_out

    def apply(self, options: Any) -> dict[str, Any]:
        """Say so in the options of a session, and give what else to make it with."""
        if self.bits is None:
            return {}
        if self.written_out:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        elif self.bits == 4:
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        else:
            return {"disabled_optimizers": ["QDQSelectorActionTransformer"]}
        return {}
