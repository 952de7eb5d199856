"""A decode step on a GPU beside the roofline and beside torch, by depth.

    python benchmarks/gpu_decode.py BUNDLE [--backend tensorrt-rtx] [--depths 1024 65536] [--batch 1]

A step is what greedy decoding does: one id in and one id out of every sequence. It has to read every weight
that a token meets and all rows of its cache; the roofline is those bytes over the bandwidth that copies on
the device have in the same run, read and written bytes together. torch's time is that of the absorbed
attention of all layers alone, eager, in fp16, over a cache of that depth: less than a step in torch takes.
Rows are random numbers (`Session.fill`). Without a GPU nothing is measured, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from roofline import weight_bytes

import mla_runtime
from mla_runtime.backends.cuda import Device
from mla_runtime.errors import BackendError, CapacityError

RESULTS = Path(__file__).resolve().parent / "results" / "gpu-decode.json"
DEPTHS = tuple(1024 << place for place in range(7))  # 1k … 64k
COPIED = 1 << 29
WARMING = 4  # a step as it is, one that is recorded, and some more


@dataclass(frozen=True, slots=True)
class Row:
    """One depth: bytes that a step must read, its median, the roofline's time, torch's (None: not there)."""

    depth: int
    nbytes: float
    step_seconds: float
    roofline_seconds: float
    torch_attention_seconds: float | None

    @property
    def share(self) -> float:
        """How much of the roofline's speed the step has."""
        return self.roofline_seconds / self.step_seconds


def copy_bandwidth(device: Any, nbytes: int = COPIED, times: int = 20) -> float:
    """Give bytes a second, read and written, of copies within the device."""
    source, target = device.allocate(nbytes, "a copy's source"), device.allocate(nbytes, "a copy's target")
    stream = device.stream()
    stream.zero(source, nbytes)
    best = float("inf")
    for _ in range(3):
        stream.synchronise()
        start = time.perf_counter()
        for _ in range(times):
            stream.copy(target, source, nbytes)
        stream.synchronise()
        best = min(best, (time.perf_counter() - start) / times)
    stream.close()
    device.free(source)
    device.free(target)
    return 2 * nbytes / best


def median_seconds(run: Callable[[], object], times: int) -> float:
    """Give the median of `times` runs, after some that do not count."""
    seconds = []
    for _ in range(WARMING + times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARMING:])


def step_seconds(model: mla_runtime.Model, depth: int, batch: int, steps: int) -> float:
    """Give the median of greedy steps behind `depth` rows."""
    with model.session(batch, depth + steps + WARMING) as session:
        session.fill(depth)
        return median_seconds(lambda: session.step_top([1] * batch, 1), steps)


def attention_sizes(geometry: dict[str, Any]) -> tuple[int, int, int, int]:
    """Give heads, layers, and the widths of a latent row and of a rotary key."""
    names = ("num_attention_heads", "num_hidden_layers", "kv_lora_rank", "qk_rope_head_dim")
    heads, layers, latent_width, rope_width = (int(geometry[name]) for name in names)
    return heads, layers, latent_width, rope_width


def torch_attention(geometry: dict[str, Any], depth: int, batch: int, steps: int) -> float | None:
    """Give the median of absorbed attention in torch, layer after layer; None without CUDA there."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    heads, layers, latent_width, rope_width = attention_sizes(geometry)
    kind = {"dtype": torch.float16, "device": "cuda"}
    # as many caches as layers: one alone would stay in the processor's own memory
    caches = [torch.randn(batch, depth, latent_width + rope_width, **kind) for _ in range(layers)]
    query = torch.randn(batch, heads, latent_width + rope_width, **kind)

    def attend() -> None:
        for cache in caches:
            scores = query @ cache.transpose(1, 2)  # [B, heads, T]
            torch.softmax(scores.float(), dim=-1).to(scores.dtype) @ cache[:, :, :latent_width]
        torch.cuda.synchronize()

    return median_seconds(attend, steps)


def rows(
    model: mla_runtime.Model, bandwidth: float, depths: Sequence[int], batch: int, steps: int
) -> list[Row]:
    """Measure at each depth that the bundle and the device have room for."""
    bundle = model.bundle
    geometry = bundle.raw["model"]["geometry"]
    weights, row_bytes = weight_bytes(bundle), sum(tensor.row_bytes for tensor in bundle.cache)
    found = []
    for depth in depths:
        try:
            seconds = step_seconds(model, depth, batch, steps)
        except CapacityError as cause:
            print(f"{depth}: {cause}", file=sys.stderr)
            break
        nbytes = weights + batch * depth * row_bytes
        torch_seconds = torch_attention(geometry, depth, batch, steps) if geometry else None
        found.append(Row(depth, nbytes, seconds, nbytes / bandwidth, torch_seconds))
    return found


def table(found: Sequence[Row]) -> str:
    """Write the rows as a table."""
    lines = ["| depth | MB a step | step ms | roofline ms | of it | torch, attention alone ms |"]
    lines.append("|--:|--:|--:|--:|--:|--:|")
    for row in found:
        torch_ms = "–" if row.torch_attention_seconds is None else f"{row.torch_attention_seconds * 1e3:.3f}"
        lines.append(
            f"| {row.depth:,} | {row.nbytes / 1e6:.1f} | {row.step_seconds * 1e3:.3f} "
            f"| {row.roofline_seconds * 1e3:.3f} | {row.share:.0%} | {torch_ms} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", default="tensorrt-rtx", choices=("tensorrt-rtx", "tensorrt"))
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON (default: %(default)s)")
    args = parser.parse_args()
    try:
        device = Device(args.backend)
    except BackendError as cause:
        print(f"no GPU: nothing measured ({cause})", file=sys.stderr)
        return 1
    bandwidth = copy_bandwidth(device)
    print(f"{device.name} ({device.card}): copies at {bandwidth / 1e9:.0f} GB/s, read and written\n")
    with mla_runtime.open(args.bundle, backend=args.backend) as model:
        found = rows(model, bandwidth, args.depths, args.batch, args.steps)
        print(table(found))
        result = {
            "gpu": device.name,
            "card": device.card,
            "backend": args.backend,
            "bundle": model.bundle.model.name,
            "precision": model.bundle.manifest.precision.words,
            "batch": args.batch,
            "bandwidth": bandwidth,
            "rows": [asdict(row) | {"share": row.share} for row in found],
        }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
