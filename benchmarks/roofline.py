"""How far a bundle's step is from what memory allows: bytes a token over measured bandwidth.

    python benchmarks/roofline.py BUNDLE [--depths 0 2048 8192] [--threads N]

A step has to read every weight that a token meets, and all rows of the cache. Bandwidth is that of copying
memory much larger than the caches, read and written bytes together, with as many threads; the step is timed
in the same run. A share of 100 % would be a step that does nothing but read.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time

import numpy as np
import onnx

import mla_runtime
from mla_runtime.bundle import Bundle

COPIED = 1 << 29


def bandwidth(threads: int) -> float:
    """Give bytes a second, read and written, of the best of ten copies of half a GB by all threads."""
    source = np.ones(COPIED, dtype=np.uint8)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    best = float("inf")
    for _ in range(10):
        workers = [threading.Thread(target=np.copyto, args=part) for part in parts]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = min(best, time.perf_counter() - start)
    return 2 * COPIED / best


def weight_bytes(bundle: Bundle) -> float:
    """Give the bytes of weights that one token reads: of the experts its share, of an embedding one row."""
    geometry = json.loads((bundle.path / "bundle.json").read_text(encoding="utf-8"))["model"]["geometry"]
    moe = geometry["moe"]
    graph = onnx.load(bundle.paths[bundle.graph("step").file], load_external_data=False).graph
    total = 0.0
    seen = set()
    for tensor in graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if not place or place["offset"] in seen or tensor.name.startswith("rotary."):
            continue
        seen.add(place["offset"])
        size = float(place["length"])
        if ".moe.experts." in tensor.name:
            size *= moe["num_experts_per_tok"] / moe["n_routed_experts"]
        if tensor.name.startswith("embed.") and not geometry["tie_word_embeddings"]:
            size /= geometry["vocab_size"]
        total += size
    return total


def step_seconds(model: mla_runtime.Model, depth: int, steps: int) -> float:
    """Give the median of steps behind `depth` tokens."""
    rng = np.random.default_rng(0)
    with model.session(1, depth + steps + 8) as session:
        session.prefill([rng.integers(0, model.bundle.model.vocab_size, max(depth, 1)).tolist()])
        times = []
        for _ in range(steps + 2):
            start = time.perf_counter()
            session.step([1])
            times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--depths", type=int, nargs="+", default=[0, 2048, 8192])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    speed = bandwidth(args.threads)
    print(f"copying: {speed / 1e9:.1f} GB/s read and written, {args.threads} threads")
    with mla_runtime.open(args.bundle, threads=args.threads) as model:
        weights = weight_bytes(model.bundle)
        rows = sum(tensor.row_bytes for tensor in model.bundle.cache)
        print(f"weights a token: {weights / 1e6:.1f} MB; a row of the cache: {rows:,} bytes")
        for depth in args.depths:
            least = (weights + depth * rows) / speed
            found = step_seconds(model, depth, args.steps)
            print(
                f"depth {depth:6,}: {1e3 * found:7.1f} ms a step; "
                f"memory alone {1e3 * least:6.1f} ms, {least / found:.0%} of it"
            )


if __name__ == "__main__":
    main()
