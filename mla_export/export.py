"""From a checkpoint to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import onnx_ir as ir

from mla_export import canary, progress, publish, weights_file
from mla_export.assemble import assemble, layout
from mla_export.checkpoint import Checkpoint
from mla_export.families import account, family_of
from mla_export.manifest import Manifest
from mla_export.overflow import check_range
from mla_export.params import Recipes
from mla_export.plan import Plan
from mla_export.text_files import read_text_files
from mla_export.trace import trace
from mla_graphs.contract import CacheTypes
from mla_graphs.geometry import Absorb, Float, Phase, RowType
from mla_graphs.lowering import lower
from mla_runtime import backends
from mla_runtime.bundle import Bundle
from mla_runtime.errors import ConfigError
from mla_runtime.integrity import sha256
from mla_runtime.manifest import Canary, FileEntry
from mla_runtime.model import Model

TARGET = "portable"
WEIGHTS = "weights.data"
GRAPHS: dict[Phase, str] = {"step": "step.onnx", "prompt": "prompt.onnx"}
DTYPES: dict[str, Float] = {"fp32": "float32", "fp16": "float16"}
DEFAULT_CHUNK = 512
# Beside the weights: graphs, tokenizer, and what a file system rounds up.
_MARGIN = 64 * 2**20


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    absorb: Absorb = "factored",
    dtype: Literal["fp32", "fp16"] = "fp32",
    cache: Literal["float", "int8"] = "float",
    cache_rope: Literal["float", "int8"] = "float",
    max_context: int | None = None,
    chunk: int | None = None,
    force: bool = False,
) -> Path:
    """Export the model in the folder `checkpoint` to the bundle `out` and give its path.

    `absorb` chooses the attention's form, `dtype` the type of weights and activations. The latent rows
    of the cache are of that type too, or int8 with a scale a token (`cache`), and so are the rotary keys
    (`cache_rope`, int8 only beside int8 latents).
    `max_context` bounds the positions (default: what the model was made for), `chunk` how many prompt
    tokens go through the graph at once (default: 512, or the context where that is less). An existing
    bundle is replaced only with `force`, and only by a finished one.

    Raises ConfigError, CheckpointError or ExportError; `out` is then as it was.
    """
    target = Path(out)
    publish.check_target(target, force=force)
    if absorb not in ("factored", "merged", "expanded") or dtype not in DTYPES:
        choices = "choose factored, merged or expanded, and fp32 or fp16"
        raise ConfigError(f"absorb {absorb!r}, dtype {dtype!r}: {choices}")
    rows = _cache_types(absorb, dtype, cache, cache_rope)
    source = Checkpoint.open(checkpoint)
    family = family_of(source.config)
    geometry = family.geometry(source.config, max_context)
    if chunk is None:
        chunk = min(DEFAULT_CHUNK, geometry.max_context)
    if not 1 <= chunk <= geometry.max_context:
        raise ConfigError(f"chunk {chunk} is not in 1 … {geometry.max_context}, the context of this export")
    names = account(source, family, geometry).names
    text = read_text_files(source.path, source.config, geometry.vocab_size)
    plan = Plan(geometry, absorb, DTYPES[dtype], rows, None, TARGET)
    with progress.task("tracing the blocks"):
        traced = trace(plan)
    weights = layout(plan, traced)
    publish.check_space(target, weights[-1].offset + weights[-1].nbytes + _MARGIN)
    with publish.staged(target, force=force) as staging:
        recipes = Recipes(geometry, absorb, plan.torch_dtype, lambda name: source.read(names[name]))
        with progress.task("weights", sum(weight.nbytes for weight in weights), "bytes") as advance:
            written = weights_file.write(staging / WEIGHTS, weights, recipes, advance)
        for phase, file in GRAPHS.items():
            model = lower(assemble(plan, phase, traced, weights, WEIGHTS), TARGET, phase)
            (staging / file).write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
        text.write(staging)
        size = sum(file.stat().st_size for file in source.files())
        with progress.task("hashing the source", size, "bytes") as advance:
            hashes = source.hashes(advance)
        manifest = Manifest(
            name=source.path.resolve().name,
            plan=plan,
            graphs=GRAPHS,
            chunk=chunk,
            text=text.entry,
            source=hashes,
            files={WEIGHTS: written, **_described(staging)},
        )
        manifest.write(staging / publish.MANIFEST, None)
        with progress.task("canary"):
            if plan.compute == "float16":
                check_range(staging / GRAPHS["step"], plan.contract, geometry.vocab_size)
            recorded = _canary(staging)
        manifest.write(staging / publish.MANIFEST, recorded)
    return target


def _cache_types(absorb: Absorb, dtype: str, cache: str, cache_rope: str) -> CacheTypes:
    if cache not in ("float", "int8") or cache_rope not in ("float", "int8"):
        raise ConfigError(f"cache {cache!r}, cache_rope {cache_rope!r}: choose float or int8")
    if absorb == "expanded" and "int8" in (cache, cache_rope):
        raise ConfigError("an int8 cache holds latent rows, which --absorb expanded does not; choose another")
    if cache_rope == "int8" and cache != "int8":
        raise ConfigError(
            "--cache-rope int8 goes with --cache int8: rotary keys are the smaller part of a row"
        )
    types: dict[str, RowType] = {"float": DTYPES[dtype], "int8": "int8"}
    return CacheTypes(types[cache], types[cache_rope])


def _described(staging: Path) -> dict[str, FileEntry]:
    """Give size and hash of every file but the weights, which were hashed as they were written."""
    return {
        path.name: FileEntry(path.stat().st_size, sha256(path))
        for path in sorted(staging.iterdir())
        if path.name != WEIGHTS
    }


def _canary(staging: Path) -> Canary:
    """Record the canary. The files were hashed as they were written, so not again here."""
    bundle = Bundle.open(staging)
    return canary.record(Model(bundle, backends.load("ort:cpu", bundle, None)))
