"""Numbers and names as a page writes them, in tables and in sentences."""

from __future__ import annotations

import math

from mla_export.compare.result import LayerError

ROWS = {"latent": "latent rows", "rope": "rotary keys", "block": "block outputs"}


def error(value: float | None) -> str:
    """Write an error: 1.2e-05; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.1e}" if math.isfinite(value) else "not finite"


def place(found: LayerError) -> str:
    """Say where a layer is off: its rows, the graph, and the token that is furthest off."""
    return f"{ROWS[found.rows]} of layer {found.layer}, in the {found.phase} graph"
