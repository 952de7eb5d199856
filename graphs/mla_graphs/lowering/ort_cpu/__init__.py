"""Target `ort-cpu`: ONNX Runtime's CPU provider, with its own operators for weights in blocks.

One graph serves prompts and steps: its matrices are pre-packed, and a second graph would hold them again.
"""

from __future__ import annotations

from mla_graphs.geometry import Phase
from mla_graphs.lowering import portable
from mla_graphs.lowering.builder import Rule
from mla_graphs.lowering.ort_cpu import attention, experts, matrices

__all__ = ["rules"]


def rules(phase: Phase) -> dict[str, Rule]:
    """Give the rule of each operator; what is not written here is as in `portable`."""
    return {**portable.rules(phase), **attention.RULES, **matrices.RULES, **experts.RULES}
