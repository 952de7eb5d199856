"""`mla-export bench`: prompt and step speed at depths of the cache, memory, and cache bytes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from mla_export import progress
from mla_export.commands.opening import open_model
from mla_export.commands.tables import console, print_json, size, table
from mla_runtime import Bundle, Speed, measure


def run(args: argparse.Namespace) -> int:
    """Measure `args.bundle` at `args.depths` and print a table."""
    with open_model(args) as model:
        with progress.task("measuring", len(args.depths)) as advance:
            speeds = measure(
                model, args.depths, prompt_tokens=args.prompt, steps=args.steps, on_done=lambda _: advance(1)
            )
        bundle = model.bundle
    if args.json:
        print_json(as_json(bundle, args.backend, speeds))
        return 0
    out = console()
    out.print(speed_table(f"{args.bundle} on {args.backend}", speeds))
    out.print(f"cache: {size(row_bytes(bundle))} a token; depth is filled with random rows, not computed")
    return 0


def row_bytes(bundle: Bundle) -> int:
    """Give the bytes that a bundle's cache keeps of one token, all layers."""
    item_bytes = {"float32": 4, "float16": 2, "int8": 1}
    total = 0
    for tensor in bundle.cache:
        elements = 1
        for dim in tensor.row:
            elements *= dim
        total += elements * item_bytes[tensor.dtype]
    return total


def as_json(bundle: Bundle, backend: str, speeds: Sequence[Speed]) -> dict[str, Any]:
    """Give the measurements as plain JSON values: seconds, bytes, tokens a second."""
    return {
        "bundle": str(bundle.path),
        "backend": backend,
        "absorb": bundle.manifest.absorb,
        "cache_bytes_per_token": row_bytes(bundle),
        "measurements": [
            {**asdict(speed), "prompt_rate": speed.prompt_rate, "step_rate": speed.step_rate}
            for speed in speeds
        ],
    }


def speed_table(title: str, speeds: Sequence[Speed]) -> Table:
    """Lay measurements out: one row a depth."""
    rows = [
        (
            f"{speed.depth:,}",
            f"{speed.prompt_rate:,.0f}",
            f"{speed.step_seconds * 1e3:.2f}",
            f"{speed.step_worst_seconds * 1e3:.2f}",
            f"{speed.step_rate:,.0f}",
            size(speed.cache_bytes),
            "unknown" if speed.peak_bytes is None else size(speed.peak_bytes),
        )
        for speed in speeds
    ]
    header = ("depth", "prompt tokens/s", "step ms", "worst", "step tokens/s", "cache", "peak memory")
    return table(title, header, rows)
