"""Build TensorRT-RTX engines of every published shape in every precision, with no GPU.

    make builds                                             # all of them: an hour on two cores
    python benchmarks/engine_builds.py Youtu-LLM-2B --out youtu.json

Heads, ranks, experts and rotary embedding are those of tests/configs; hidden size, widths of the networks,
vocabulary and layers are cut, and weights are random. One build is for SM86, SM89 and SM120. Nothing is run:
what is shown is that engines are built, how large they are, and how long that takes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import random_checkpoint

import mla_export
from mla_runtime.bundle import Bundle
from mla_runtime.engines.build import build
from mla_runtime.engines.flavour import RTX
from mla_runtime.engines.record import Limits
from mla_runtime.errors import MlaError

CONFIGS = Path(__file__).resolve().parents[1] / "tests" / "configs"
CARDS = ("sm86", "sm89", "sm120")
WEIGHTS = ("fp16", "int8", "int4")
CACHES = (("float", "float"), ("int8", "float"), ("int8", "int8"))
LIMITS = Limits(batch=4, context=4096, chunk=256)
NARROW = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "vocab_size": 1024,
    "max_position_embeddings": LIMITS.context,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
NARROW_EXPERTS = {"moe_intermediate_size": 128, "first_k_dense_replace": 1}


@dataclass(frozen=True, slots=True)
class Result:
    """One bundle's engines, or why there are none; `outside` and `engines` are bytes."""

    model: str
    absorb: str
    weights: str
    cache: str
    rope: str
    engines: dict[str, int]
    outside: int
    seconds: float
    error: str | None


def models() -> list[str]:
    """Give the shapes there are, by the names of their files."""
    return sorted(path.stem for path in CONFIGS.glob("*.json"))


def narrow(model: str) -> dict[str, Any]:
    """Give a published configuration with its attention and its experts, and little else."""
    config: dict[str, Any] = json.loads((CONFIGS / f"{model}.json").read_text())
    experts = NARROW_EXPERTS if config.get("n_routed_experts") else {}
    layers = {"mlp_layer_types": ["dense", "sparse"]} if config.get("mlp_layer_types") else {}
    values = {"v_head_dim": config["hidden_size"] // config["num_attention_heads"]}  # where it is not given
    return {**values, **config, **NARROW, **experts, **layers}


def build_one(
    model: str, checkpoint: Path, folder: Path, absorb: str, weights: str, cache: tuple[str, str]
) -> Result:
    """Export the checkpoint and build its engines."""
    library = RTX.load()
    engines, outside, seconds, error = {}, 0, 0.0, None
    try:
        path = mla_export.export(
            checkpoint,
            folder / "bundle",
            absorb=absorb,
            dtype="fp16",
            weights=weights,
            cache=cache[0],
            cache_rope=cache[1],
            max_context=LIMITS.context,
            chunk=LIMITS.chunk,
            force=True,
        )
        with tempfile.TemporaryDirectory(dir=folder) as out:
            built = build(Bundle.open(path), library, CARDS, LIMITS, Path(out))
        engines = {engine.file: engine.size for engine in built.engines}
        outside, seconds = sum(weight.nbytes for weight in built.outside), built.seconds
    except MlaError as cause:
        error = str(cause)
    return Result(model, absorb, weights, *cache, engines, outside, seconds, error)


def show(results: list[Result]) -> None:
    """Print a row a model and form, a column a precision: seconds, or that it failed."""
    columns = list(itertools.product(WEIGHTS, CACHES))
    heads = [f"{weights}/{'+rope' if rope == 'int8' else cache}" for weights, (cache, rope) in columns]
    print(f"{'model, form; seconds of a build':<34}" + "".join(f"{head:>12}" for head in heads))
    for (model, absorb), group in itertools.groupby(
        results, key=lambda result: (result.model, result.absorb)
    ):
        found = {(r.weights, (r.cache, r.rope)): "FAILED" if r.error else f"{r.seconds:.1f}" for r in group}
        print(f"{model + ', ' + absorb:<34}" + "".join(f"{found.get(key, '–'):>12}" for key in columns))
    for result in results:
        if result.error:
            form = f"{result.absorb} {result.weights} {result.cache}/{result.rope}"
            print(f"{result.model} {form}: {result.error}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(models())} (default: all)")
    parser.add_argument("--absorb", nargs="+", default=["factored", "merged"])
    parser.add_argument("--out", type=Path, help="a JSON file of the results")
    parser.add_argument("--record", default="", metavar="MACHINE", help="what to call this machine in it")
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for model in args.models or models():
            checkpoint = Path(scratch) / model
            random_checkpoint.make(narrow(model), checkpoint)
            for absorb, weights, cache in itertools.product(args.absorb, WEIGHTS, CACHES):
                results.append(build_one(model, checkpoint, Path(scratch), absorb, weights, cache))
                print(f"{len(results)}: {asdict(results[-1])}", flush=True)
    show(results)
    if args.out:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)  # noqa: S607
        record = {
            "machine": args.record,
            "commit": commit.stdout.strip(),
            "tensorrt_rtx": RTX.load().version,
            "cards": CARDS,
            "limits": asdict(LIMITS),
            "results": [asdict(result) for result in results],
        }
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if any(result.error for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
