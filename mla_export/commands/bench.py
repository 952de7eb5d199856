"""`mla-export bench`: prompt and step speed at depths of the cache, memory, and cache bytes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from mla_export import progress
from mla_export.commands.opening import open_model
from mla_export.commands.tables import console, print_json, size, table
from mla_runtime import Bundle, Speed, measure

DEPTH = 2048
PROMPT = 512
STEPS = 32
WARM_UP = 2  # rows of a measured run that are no timed steps


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: depths of the cache, prompt tokens and steps."""

    depths: list[int]
    prompt: int
    steps: int

    @classmethod
    def fitting(cls, context: int, depths: list[int] | None, prompt: int | None, steps: int | None) -> Plan:
        """Fill in what was not given, as much as a context of `context` rows has room for.

        What was given stays as it is: `measure` refuses it where it does not fit.
        """
        # without given depths, half of the context is left for the deeper one
        room = context // 2 if depths is None else context - max(depths)
        prompt = max(1, min(PROMPT, room)) if prompt is None else prompt
        steps = max(1, min(STEPS, room - WARM_UP)) if steps is None else steps
        deepest = min(DEPTH, context - max(prompt, steps + WARM_UP))
        return cls(sorted({0, max(0, deepest)}) if depths is None else depths, prompt, steps)


def run(args: argparse.Namespace) -> int:
    """Measure `args.bundle` at `args.depths` and print a table."""
    with open_model(args) as model:
        bundle = model.bundle
        plan = Plan.fitting(bundle.model.max_context, args.depths, args.prompt, args.steps)
        with progress.task("measuring", len(plan.depths)) as advance:
            speeds = measure(
                model,
                plan.depths,
                prompt_tokens=plan.prompt,
                steps=plan.steps,
                on_done=lambda _: advance(1),
            )
    if args.json:
        print_json(as_json(bundle, args.backend, speeds))
        return 0
    out = console()
    out.print(speed_table(f"{args.bundle} on {args.backend}", speeds))
    out.print(f"cache: {size(row_bytes(bundle))} a token; depth is filled with random rows, not computed")
    return 0


def row_bytes(bundle: Bundle) -> int:
    """Give the bytes that a bundle's cache keeps of one token, all layers."""
    return sum(tensor.row_bytes for tensor in bundle.cache)


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
    header = ("depth", "prompt tok/s", "step ms", "worst", "step tok/s", "cache", "peak RAM")
    return table(title, header, rows, spare=("worst",))
