"""The torch blocks of an MLA decoder, written in `mla::` operators, for tracing only.

A block's parameters are named and shaped as they stand in the graph (`mla_export.params` says how each
is made from a checkpoint); its forward calls operators that the exporter records and never computes.
Shape comments use the symbols of `mla_graphs.geometry.Geometry` and B, S, T of the contract.
"""

from __future__ import annotations

from mla_export.blocks.decoder import DecoderLayer, Head, Prelude

__all__ = ["DecoderLayer", "Head", "Prelude"]
