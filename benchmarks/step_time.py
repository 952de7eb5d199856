"""What a decode step costs beside the engine's own work, and that it costs the same after 10,000 steps.

    python benchmarks/step_time.py /tmp/step-time            # both parts; needs about 7 GB of disk
    python benchmarks/step_time.py /tmp/step-time --part flat --steps 10000

Part `flat` decodes a small model from an empty cache to `--steps` rows, and prints step time and
private memory on the way. Part `share` decodes a model of 1.0 B parameters (Youtu-LLM-2B's shape with
18 layers and 32,000 tokens) at several depths, and prints how much of a step is spent outside
onnxruntime's run: inputs, bindings, checks, sampling. Bundles are made once, from random weights.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import random_checkpoint

import mla_export
import mla_runtime
from mla_runtime.generate import Limits, Row
from mla_runtime.sampling import Sampling

ROOT = Path(__file__).resolve().parents[1]
LARGE = {"num_hidden_layers": 18, "vocab_size": 32_000, "bos_token_id": 1, "eos_token_id": 2}
SMALL = LARGE | {
    "num_hidden_layers": 4,
    "vocab_size": 2048,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 256,
    "kv_lora_rank": 256,
}
DEPTHS = (0, 1024, 4096, 8192)


class Timed:
    """An inference session that adds up the time inside its runs."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.graph, name)

    def run_with_iobinding(self, binding: Any) -> None:
        """Run the session and add the time it took."""
        start = time.perf_counter()
        self.graph.run_with_iobinding(binding)
        self.seconds += time.perf_counter() - start


def bundle(folder: Path, name: str, changes: dict[str, Any]) -> Path:
    """Make a bundle from random weights, unless it is there."""
    out = folder / name
    if not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        config = json.loads((ROOT / "tests" / "configs" / "Youtu-LLM-2B.json").read_text()) | changes
        checkpoint = folder / f"{name}-checkpoint"
        if not checkpoint.exists():
            print(f"{name}: {random_checkpoint.make(config, checkpoint) / 1e9:.2f} B parameters")
        mla_export.export(checkpoint, out, max_context=16_384)
    return out


def private_bytes() -> int:
    """Memory of this process that no file backs (Linux)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in status if line.startswith("RssAnon")))


def flat(model: mla_runtime.Model, steps: int) -> None:
    """Decode `steps` tokens from an empty cache; memory beside the rows of the cache must not grow."""
    row_bytes = sum(tensor.row_bytes for tensor in model.bundle.cache)
    print(f"cache: {row_bytes} bytes a token\n")
    print("| T | step ms (median) | private MB | of it cache rows MB | rest MB |")
    print("|--:|--:|--:|--:|--:|")
    every = max(steps // 10, 1)
    with model.session(max_context=steps + 1) as session:
        logits = session.prefill([[1]])
        times: list[float] = []
        for step in range(1, steps + 1):
            token = int(logits[0].argmax())
            start = time.perf_counter()
            logits = session.step([token])
            times.append(time.perf_counter() - start)
            if step % every == 0:
                total, rows = private_bytes(), row_bytes * (step + 1)
                print(
                    f"| {step} | {np.median(times) * 1e3:.2f} | {total / 1e6:.1f} | {rows / 1e6:.1f} "
                    f"| {(total - rows) / 1e6:.1f} |"
                )
                times.clear()


def share(model: mla_runtime.Model, steps: int) -> None:
    """Time steps at several depths, inside onnxruntime's run and outside of it."""
    backend: Any = model.backend
    timed = Timed(backend.graph("step", 1))
    backend._graphs["step", False] = timed
    print("| depth | step ms | inside run ms | outside ms | share |")
    print("|--:|--:|--:|--:|--:|")
    for depth in DEPTHS:
        with model.session(max_context=depth + steps + 4) as session:
            session.fill(max(depth, 1))
            row = Row([1], Sampling(), Limits(steps + 2, frozenset()), 16_384, None)
            token = row.take(session.step([1])[0])
            timed.seconds = 0.0
            start = time.perf_counter()
            for _ in range(steps):
                token = row.take(session.step([token.id])[0])
            whole = (time.perf_counter() - start) / steps
            inside = timed.seconds / steps
        print(
            f"| {depth} | {whole * 1e3:.1f} | {inside * 1e3:.1f} | {(whole - inside) * 1e3:.2f} "
            f"| {(whole - inside) / whole:.2%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the bundles are kept between runs")
    parser.add_argument("--part", choices=("flat", "share"), help="one part only")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of the part `flat`")
    parser.add_argument("--threads", type=int, help="of onnxruntime (default: its own choice)")
    args = parser.parse_args()
    if args.part != "share":
        with mla_runtime.open(bundle(args.folder, "small", SMALL), threads=args.threads) as model:
            flat(model, args.steps)
    if args.part != "flat":
        with mla_runtime.open(bundle(args.folder, "large", LARGE), threads=args.threads) as model:
            print()
            share(model, 20)


if __name__ == "__main__":
    main()
