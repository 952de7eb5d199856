"""How far the model behind `mla-export cost` is from measured steps and prompts on this machine's processor.

    python benchmarks/cost_model.py out/cost-model --out cost-model.json    # 12 GB of disk; minutes
    python benchmarks/cost_model.py out/cost-model --prepare                # make the bundles only

The shapes are those of benchmarks/peers with fewer layers, random weights in int8 and int4, a cache in
float32 and in int8. The device is measured in the same run: bandwidth of copying, read and written bytes
together, and the rates of ONNX Runtime's large products in float32 and uint8 · int8. Nothing is fitted to
the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import random_checkpoint
from onnx import TensorProto, helper
from roofline import bandwidth

import mla_export
import mla_runtime
from mla_export.devices import Device
from mla_export.estimate import Model
from mla_export.fitting import workspace_bytes
from mla_export.roofline import prompt_seconds, step_bytes, step_seconds
from mla_export.weight_bytes import cache_token_bytes, weight_bytes

SHAPES = Path(__file__).resolve().parent / "peers" / "shapes"
LAYERS = {"dense": 8, "moe": 3}
FORMS = [(weights, cache) for weights in ("int8", "int4") for cache in ("float", "int8")]
GROUP = 128
DEPTHS = (0, 2048, 8192)
PROMPT = 256
STEPS = 16
SIDE = 2048  # of the square products that rates are taken from


@dataclass(frozen=True, slots=True)
class Compared:
    """One bundle at one depth: predicted and measured seconds of a step.

    With an empty cache also those of a prompt; at the last depth the workspace of a prompt, in bytes.
    """

    shape: str
    weights: str
    cache: str
    weight_bytes: int
    step_bytes: float
    cache_token_bytes: int
    depth: int
    predicted: float
    measured: float
    prompt_predicted: float | None = None
    prompt_measured: float | None = None
    workspace_predicted: int | None = None
    workspace_measured: int | None = None


def bundle(folder: Path, shape: str, weights: str, cache: str) -> Path:
    """Make a bundle, and the checkpoint it is made from, unless they are there."""
    checkpoint = folder / f"{shape}-checkpoint"
    if not checkpoint.exists():
        config = json.loads((SHAPES / f"{shape}.json").read_text()) | {"num_hidden_layers": LAYERS[shape]}
        print(f"{shape}: {random_checkpoint.make(config, checkpoint) / 1e9:.2f} B parameters", flush=True)
    out = folder / f"{shape}-{weights}-{cache}"
    if not out.exists():
        mla_export.export(
            checkpoint, out, target="ort-cpu", weights=weights, group=GROUP, cache=cache, max_context=16_384
        )
        print(out, flush=True)
    return out


def product_rate(kind: str, threads: int) -> float:
    """Give operations a second of the best of ten square products, a multiply-add being two."""
    a, b, result = {
        "MatMul": (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT),
        "MatMulInteger": (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32),
    }[kind]
    side = (SIDE, SIDE)
    values = np.random.default_rng(0).integers(0, 100, side)
    weight = helper.make_tensor(
        "b", b, side, values.astype(helper.tensor_dtype_to_np_dtype(b)).tobytes(), True
    )
    graph = helper.make_graph(
        [helper.make_node(kind, ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", a, side)],
        [helper.make_tensor_value_info("c", result, side)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {"a": values.astype(helper.tensor_dtype_to_np_dtype(a))}
    return 2 * SIDE**3 / best(lambda: session.run(None, feed))


def best(work: Callable[[], object]) -> float:
    """Give the seconds of the quickest of ten runs."""
    times = []
    for _ in range(10):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def this_processor(threads: int) -> Device:
    """Measure what the model needs to know of this machine."""
    return Device(
        name="this-cpu",
        title="this processor",
        kind="cpu",
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        reserved=0,
        bandwidth=bandwidth(threads),
        float_rate=product_rate("MatMul", threads),
        int8_rate=product_rate("MatMulInteger", threads),
        sources={},
    )


def private_bytes() -> int:
    """Memory of this process that no file backs (Linux)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in status if line.startswith("RssAnon")))


def growth(work: Callable[[], object]) -> int:
    """Give by how many bytes private memory grew at most while `work` ran."""
    before, seen, done = private_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(private_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return max(seen) - before


def measured(model: mla_runtime.Model) -> tuple[int, float, dict[int, float]]:
    """Give what a prompt takes behind the last depth, its seconds without a cache, and those of steps."""
    random = np.random.default_rng(0)
    vocab = model.bundle.model.vocab_size

    def tokens(number: int) -> list[int]:
        return list(random.integers(vocab, size=number).tolist())

    with model.session(max_context=max(DEPTHS) + PROMPT + 1) as session:
        session.fill(max(DEPTHS))
        session.step(tokens(1))  # rows and a step's own memory are there before
        workspace = growth(lambda: session.prefill([tokens(PROMPT)]))
        prompts, steps = [], {}
        for _ in range(2):
            session.fill(0)
            start = time.perf_counter()
            session.prefill([tokens(PROMPT)])
            prompts.append(time.perf_counter() - start)
        for depth in DEPTHS:
            session.fill(max(depth, 1))
            times = []
            for token in tokens(2 + STEPS):
                start = time.perf_counter()
                session.step([token])
                times.append(time.perf_counter() - start)
            steps[depth] = float(np.median(times[2:]))
    return workspace, min(prompts), steps


def compare(path: Path, device: Device, shape: str, weights: str, cache: str, threads: int) -> list[Compared]:
    """Predict and measure one bundle at every depth."""
    described = Model.read(path)
    g, formats, chunk = described.geometry, described.own, described.chunk
    assert formats is not None
    assert chunk is not None
    with mla_runtime.open(path, threads=threads) as model:
        workspace, prompt, steps = measured(model)
    found = [
        Compared(
            shape=shape,
            weights=weights,
            cache=cache,
            weight_bytes=weight_bytes(g, formats),
            step_bytes=step_bytes(g, formats, 1),
            cache_token_bytes=cache_token_bytes(g, formats),
            depth=depth,
            predicted=step_seconds(g, formats, device, 1, depth),
            measured=seconds,
        )
        for depth, seconds in steps.items()
    ]
    first = replace(
        found[0],
        prompt_predicted=prompt_seconds(g, formats, device, 1, PROMPT, chunk),
        prompt_measured=prompt,
    )
    last = replace(
        found[-1],
        workspace_predicted=workspace_bytes(g, formats, 1, max(DEPTHS) + PROMPT, min(chunk, PROMPT)),
        workspace_measured=workspace,
    )
    return [first, *found[1:-1], last]


def show(record: Compared) -> None:
    """Print a row of the table."""
    prompt = workspace = ""
    if record.prompt_measured and record.prompt_predicted:
        prompt = f"{1e3 * record.prompt_predicted:.0f} / {1e3 * record.prompt_measured:.0f}"
    if record.workspace_measured and record.workspace_predicted:
        workspace = f"{record.workspace_predicted / 1e6:.0f} / {record.workspace_measured / 1e6:.0f}"
    print(
        f"| {record.shape} | {record.weights} | {record.cache} | {record.depth:,} "
        f"| {1e3 * record.predicted:.1f} / {1e3 * record.measured:.1f} "
        f"| {record.measured / record.predicted:.2f} | {prompt} | {workspace} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="where checkpoints and bundles are kept between runs")
    parser.add_argument("--prepare", action="store_true", help="make the bundles and end")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--machine", default="", help="this machine in words, for the record")
    parser.add_argument("--out", type=Path, help="JSON file for the record")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    cases = [(shape, weights, cache) for shape in LAYERS for weights, cache in FORMS]
    paths = {case: bundle(args.folder, *case) for case in cases}
    if args.prepare:
        return
    device = this_processor(args.threads)
    print(
        f"{args.threads} threads: {device.bandwidth / 1e9:.1f} GB/s, float32 {device.float_rate / 1e12:.2f} "
        f"and int8 {(device.int8_rate or 0) / 1e12:.2f} T operations/s"
    )
    print("computed / measured")
    print("| shape | weights | cache | depth | step ms | ratio | prompt ms | workspace MB |")
    print("|---|---|---|--:|--:|--:|--:|--:|")
    records: list[Compared] = []
    for case in cases:
        found = compare(paths[case], device, *case, args.threads)
        records += found
        for record in found:
            show(record)
    if args.out:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)  # noqa: S607
        content = {
            "machine": args.machine,
            "command": "python benchmarks/cost_model.py FOLDER",
            "commit": commit.stdout.strip(),
            "threads": args.threads,
            "device": asdict(device),
            "records": [asdict(record) for record in records],
        }
        args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
