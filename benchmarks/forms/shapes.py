"""Random weights in the shapes of published models: a few layers, without experts, of a small vocabulary.

What is compared are forms of attention; experts and the head are the same in all of them. A dense layer of
DeepSeek-V2-Lite reads as much a token as one with experts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import random_checkpoint

CONFIGS = Path(__file__).resolve().parents[2] / "tests" / "configs"
_CUT = {"num_hidden_layers": 3, "vocab_size": 4096, "bos_token_id": 1, "eos_token_id": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "DeepSeek-V2-Lite": {**_CUT, "first_k_dense_replace": 3},
    "MiniCPM3-4B": _CUT,
}


def checkpoint(folder: Path, shape: str) -> Path:
    """Give the checkpoint of a shape, made once in `folder`."""
    path = folder / shape
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        config = json.loads((CONFIGS / f"{shape}.json").read_text(encoding="utf-8"))
        random_checkpoint.make(config | SHAPES[shape], path)
    return path
