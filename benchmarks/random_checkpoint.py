"""Make a checkpoint of a published shape with random weights, streamed shard by shard.

    python benchmarks/random_checkpoint.py tests/configs/DeepSeek-V2-Lite.json /tmp/v2-lite --layers 4

The configuration is taken as it is, but for the number of layers; weights are bfloat16, drawn so that
activations keep their size through the layers.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from mla_export.families import family_of

SHARD_BYTES = 2_000_000_000


def make(config: dict[str, object], out: Path, seed: int = 0) -> int:
    """Write the checkpoint to the folder `out` and give its number of parameters."""
    family = family_of(config)
    shapes = family.tensors(family.geometry(config))
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(config, indent=1))
    generator = torch.Generator().manual_seed(seed)
    shards = list(_shards(shapes))
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: _draw(name, shapes[name], generator) for name in names}, out / file)
        index.update(dict.fromkeys(names, file))
    total = sum(math.prod(shape) for shape in shapes.values())
    described = {"metadata": {"total_size": 2 * total}, "weight_map": index}
    (out / "model.safetensors.index.json").write_text(json.dumps(described))
    return total


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if name.endswith("e_score_correction_bias"):
        return torch.randn(shape, generator=generator) * 0.01
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    scale = 1.0 if "embed_tokens" in name else shape[-1] ** -0.5
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, scale, generator=generator)


def _shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        nbytes = 2 * math.prod(shape)
        if names and size + nbytes > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += nbytes
    yield names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, help="instead of the configuration's num_hidden_layers")
    args = parser.parse_args()
    config = json.loads(args.config.read_text())
    if args.layers:
        config["num_hidden_layers"] = args.layers
    print(f"{args.out}: {make(config, args.out) / 1e9:.2f} B parameters, bfloat16")


if __name__ == "__main__":
    main()
