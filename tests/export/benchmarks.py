"""Results of `bench` and `inspect` that nobody measured."""

from __future__ import annotations

from typing import Any


def bench_json(bundle: str = "out/fp32", speed: float = 1.0, **more: Any) -> dict[str, Any]:
    """What `bench --json` prints."""
    return {
        "bundle": bundle,
        "backend": "ort:cpu",
        "absorb": "factored",
        "cache_bytes_per_token": 1280,
        "measurements": [
            {
                "depth": depth,
                "batch": 1,
                "prompt_tokens": 512,
                "prompt_seconds": (0.1 + depth / 2e4) / speed,
                "step_seconds": (8e-4 + depth / 4e6) / speed,
                "step_worst_seconds": 3e-3,
                "steps": 32,
                "cache_bytes": 1280 * depth,
                "peak_bytes": (130 << 20) + 60_000 * depth,
                "prompt_rate": 1.0,
                "step_rate": 1.0,
            }
            for depth in (0, 512, 2048)
        ],
        **more,
    }


def inspect_json(
    path: str = "out/fp32", family: str = "deepseek_v3", context: int = 163_840
) -> dict[str, Any]:
    """Of what `inspect --json` prints, what a page reads."""
    return {
        "path": path,
        "kind": "bundle",
        "family": family,
        "geometry": {"family": family, "max_context": context, "hidden_size": 256},
        "cache_bytes_per_token": {
            "latent": {"float32": 62_208, "float16": 31_104, "int8": 17_388},
            "expanded": {"float32": 552_960, "float16": 276_480, "int8": 138_456},
        },
        "bundle": {"target": "ort-cpu", "absorb": "factored", "files": {"weights.data": 15_000_000}},
    }
