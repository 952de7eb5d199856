"""MHA, MQA, GQA and MLA as decode graphs of one layer of attention at equal width, to compare them.

No torch and no weights. The graphs are of `mla::` operators, which `mla_graphs.lowering` writes out for a
target: with the rules, and so the kernels, that bundles have.
"""

from __future__ import annotations

from mla_graphs.baselines.graph import core, layer, queries
from mla_graphs.baselines.shape import KINDS, Attention, Cache, Codes, Kind, Row, Shape

__all__ = ["KINDS", "Attention", "Cache", "Codes", "Kind", "Row", "Shape", "core", "layer", "queries"]
