"""Target `portable`: standard ONNX primitives of opset 20, or 21 with weights in 4 bits.

Runs on any ONNX Runtime provider, parses in TensorRT-RTX, and uses no operator that TensorRT 10.3 does
not list: no Attention, RotaryEmbedding, RMSNormalization or TensorScatter.
"""

from __future__ import annotations

from mla_graphs.geometry import Phase
from mla_graphs.lowering.builder import Rule
from mla_graphs.lowering.portable import attention, dense, experts, grouped, int8, quantized, router

__all__ = ["rules"]


def rules(phase: Phase) -> dict[str, Rule]:
    """Give the rule of each operator. Only experts differ between the step and the prompt."""
    return {
        **dense.RULES,
        **quantized.RULES,
        **attention.RULES,
        **grouped.RULES,
        **int8.RULES,
        **router.RULES,
        "Experts": experts.gathered if phase == "step" else experts.tiled,
    }
