"""Which part of the model a node belongs to: nodes are named like `layers.3.attention.scores`."""

from __future__ import annotations

import re

_PARTS = {
    "attention": "attention",
    "attention_norm": "attention",
    "attention_residual": "attention",
    "ffn_norm": "feed-forward",
    "ffn_residual": "feed-forward",
    "mlp": "feed-forward",
    "moe": "experts",
}
_ENDS = {
    "embed": "embedding",
    "head": "output head",
    "rotary_rows": "rotary tables",
    "visibility": "which rows are seen",
}


def part(node: str) -> str | None:
    """Say it: `layer 3, attention`, `output head`; None for a name that tells nothing."""
    if match := re.search(r"(?:^|[/.])layers\.(\d+)(?:\.(\w+))?", node):
        inner = _PARTS.get(match[2] or "")
        return f"layer {match[1]}, {inner}" if inner else f"layer {match[1]}"
    return _ENDS.get(node.partition(".")[0])
