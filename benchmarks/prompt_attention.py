"""What a prompt gains by rebuilding keys and values: one layer's attention, with and without, in one run.

    python benchmarks/prompt_attention.py [--threads N] [CONFIG ...]

For each configuration and a few numbers of queries S and cached rows T, the prompt graph's attention
(which rebuilds from its break-even number of queries on) beside attention in the latent space throughout.
Both are float32 on ONNX Runtime, called in turns; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from mla_export.families import family_of
from mla_graphs import Geometry, ops
from mla_graphs.lowering import lower

CONFIGS = [
    Path(__file__).parents[1] / "tests" / "configs" / f"{name}.json"
    for name in ("DeepSeek-V2-Lite", "MiniCPM3-4B")
]
SHAPES = [(1, 2048), (64, 2048), (128, 2048), (256, 2048), (512, 1), (512, 2048), (512, 8192)]
REPEATS = 5


def inputs(g: Geometry, queries: int, rows: int) -> dict[str, np.ndarray]:
    """Draw the inputs of one layer's attention; every row is seen."""
    rng = np.random.default_rng(0)
    h, c, r = g.num_attention_heads, g.kv_lora_rank, g.qk_rope_head_dim
    shapes = {
        "q_nope": (1, h, queries, g.qk_nope_head_dim),
        "q_rope": (1, h, queries, r),
        "past_latent": (1, rows, c),
        "past_rope": (1, rows, r),
        "latent": (1, queries, c),
        "rope": (1, queries, r),
        "w_uk": (h, g.qk_nope_head_dim, c),
        "w_uv": (h, c, g.v_head_dim),
    }
    drawn = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    drawn["w_uk"] *= g.qk_nope_head_dim**-0.5
    masks = {
        "visible": np.ones((1, 1, queries, rows + queries), dtype=bool),
        "split": np.array([rows]),
        "fold": np.array([0, h * queries, -1]),
        "unfold": np.array([0, h, queries, -1]),
    }
    return drawn | masks


def session(
    g: Geometry, given: dict[str, np.ndarray], *, chosen: bool, threads: int
) -> onnxruntime.InferenceSession:
    """Load the attention of the prompt graph (`chosen`), or that of the step graph, as a model of its own."""
    value = {
        name: ir.Value(
            name=name, shape=ir.Shape(a.shape), type=ir.TensorType(ir.DataType.from_numpy(a.dtype))
        )
        for name, a in given.items()
    }
    float32 = ir.TensorType(ir.DataType.FLOAT)
    out = ir.Value(name="out", type=float32, shape=ir.Shape([1, g.num_attention_heads, "S", g.v_head_dim]))
    attributes = {"scale": g.softmax_scale, "heads": g.num_attention_heads}

    def node(op_type: str, taken: list[ir.Value], name: str, made: ir.Value, **more: object) -> ir.Node:
        return ir.node(op_type, taken, {"name": name, **more}, domain=ops.DOMAIN, outputs=[made])

    if chosen:
        nodes = [node("PromptAttention", list(value.values()), "attention", out, **attributes)]
    else:
        shape = ir.Shape([1, g.num_attention_heads, "S", g.kv_lora_rank])
        absorbed, context = (
            ir.Value(name=name, type=float32, shape=shape) for name in ("absorbed", "context")
        )
        rest = [v for name, v in value.items() if name not in ("q_nope", "w_uk", "w_uv")]
        nodes = [
            node("HeadLinear", [value["q_nope"], value["w_uk"]], "absorb_k", absorbed),
            node("LatentAttention", [absorbed, *rest], "attention", context, **attributes),
            node("HeadLinear", [context, value["w_uv"]], "absorb_v", out),
        ]
    graph = ir.Graph(
        list(value.values()), [out], nodes=nodes, opset_imports={"": 20, ops.DOMAIN: 1}, name="attention"
    )
    model = lower(ir.Model(graph, ir_version=10), "portable", "prompt")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", type=Path, default=CONFIGS)
    parser.add_argument("--threads", type=int, default=0, help="0: ONNX Runtime's choice")
    args = parser.parse_args()
    header = ("model", "queries", "rows", "latent ms", "prompt ms", "ratio", "largest |Δ|")
    print("{:18} {:>8} {:>6} {:>10} {:>10} {:>6} {:>12}".format(*header))
    for path in args.configs:
        config = json.loads(path.read_text())
        geometry = family_of(config).geometry(config)
        for queries, rows in SHAPES:
            given = inputs(geometry, queries, rows)
            both = [session(geometry, given, chosen=chosen, threads=args.threads) for chosen in (False, True)]
            times: list[list[float]] = [[], []]
            results = [one.run(None, given)[0] for one in both]
            for _ in range(REPEATS):
                for one, spent in zip(both, times, strict=True):
                    start = time.perf_counter()
                    one.run(None, given)
                    spent.append(1e3 * (time.perf_counter() - start))
            latent, prompt = (float(np.median(spent)) for spent in times)
            error = float(np.abs(results[0] - results[1]).max())
            line = f"{path.stem:18} {queries:8} {rows:6} {latent:10.1f} {prompt:10.1f}"
            print(f"{line} {latent / prompt:6.2f} {error:12.1e}")


if __name__ == "__main__":
    main()
