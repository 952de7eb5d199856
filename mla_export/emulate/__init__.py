"""A bundle's own graphs computed node by node in torch, with the numbers that a card has.

ONNX Runtime's CPU provider computes float16 graphs in float32. Here what the graph says is float16 is rounded
to float16 after every node, and sums inside a matmul are kept in float32, as tensor cores do. The nodes are
those of the target `portable`; `mla_export.operators` computes what they stand for by definition, and the two
share no rule, so that one can be held against the other.
"""

from __future__ import annotations

from mla_export.emulate.lanes import Both, Lane
from mla_export.emulate.watch import Calling, Place, Seen, Watch

__all__ = ["Both", "Calling", "Lane", "Place", "Seen", "Watch"]
