"""From a checkpoint to a bundle."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
import torch

from mla_export import canary, progress, publish, weights_file
from mla_export.assemble import Weight, assemble, layout
from mla_export.checkpoint import Checkpoint
from mla_export.costs import parameters
from mla_export.families import account, family_of
from mla_export.params import Recipes
from mla_export.text_files import copy_text_files
from mla_export.trace import OPSET, TracedModel, trace
from mla_graphs.contract import contract
from mla_graphs.geometry import Absorb, Float, Geometry, Phase
from mla_graphs.lowering import lower
from mla_runtime import backends
from mla_runtime.bundle import Bundle
from mla_runtime.errors import ConfigError
from mla_runtime.manifest import FORMAT, Canary, digest
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
    max_context: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    force: bool = False,
) -> Path:
    """Export the model in the folder `checkpoint` to the bundle `out` and give its path.

    `absorb` chooses the attention's form, `dtype` the type of weights, activations and cache.
    `max_context` bounds the positions (default: what the model was made for), `chunk` how many prompt
    tokens go through the graph at once. An existing bundle is replaced only with `force`, and only by
    a finished one.

    Raises ConfigError, CheckpointError or ExportError; `out` is then as it was.
    """
    target = Path(out)
    publish.check_target(target, force=force)
    if absorb not in ("factored", "merged", "expanded") or dtype not in DTYPES:
        raise ConfigError(
            f"absorb {absorb!r}, dtype {dtype!r}: choose factored, merged or expanded, and fp32 or fp16"
        )
    source = Checkpoint.open(checkpoint)
    family = family_of(source.config)
    geometry = family.geometry(source.config, max_context)
    if not 1 <= chunk <= geometry.max_context:
        raise ConfigError(f"chunk {chunk} is not in 1 … {geometry.max_context}, the context of this export")
    names = account(source, family, geometry).names
    real = DTYPES[dtype]
    with progress.task("tracing the blocks"):
        traced = trace(geometry, absorb, real)
    weights = layout(geometry, traced)
    size = weights[-1].offset + weights[-1].nbytes
    publish.check_space(target, size + _MARGIN)
    with publish.staged(target) as staging:
        recipes = Recipes(geometry, absorb, getattr(torch, real), lambda name: source.read(names[name]))
        with progress.task("weights", sum(weight.nbytes for weight in weights), "bytes") as advance:
            written = weights_file.write(staging / WEIGHTS, weights, recipes, advance)
        for phase, file in GRAPHS.items():
            _write_graph(staging / file, geometry, absorb, real, traced, weights, phase)
        text = copy_text_files(source.path, dict(source.config), staging)
        with progress.task("hashing the source", _size(source), "bytes") as advance:
            hashes = source.hashes(advance)
        files = {
            path.name: {"size": path.stat().st_size, "sha256": publish.sha256(path)}
            for path in sorted(staging.iterdir())
            if path.name != WEIGHTS
        }
        files[WEIGHTS] = dataclasses.asdict(written)
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "generator": {
                "mla-export": version("mla-export"),
                "torch": torch.__version__,
                "onnx-ir": ir.__version__,
            },
            "model": {
                "name": source.path.resolve().name,
                "family": geometry.family,
                "layers": geometry.num_hidden_layers,
                "vocab_size": geometry.vocab_size,
                "max_context": geometry.max_context,
                "parameters": parameters(geometry).total,
                "geometry": dataclasses.asdict(geometry),
            },
            "target": TARGET,
            "opset": OPSET,
            "absorb": absorb,
            "precision": {"compute": real, "cache": real},
            "graphs": {
                "step": {"file": GRAPHS["step"]},
                "prompt": {"file": GRAPHS["prompt"], "chunk": chunk},
            },
            **_signature(geometry, absorb, real),
            "text": text,
            "source": hashes,
            "canary": None,
            "files": files,
        }
        _write_manifest(staging, manifest)
        with progress.task("canary"):
            manifest["canary"] = dataclasses.asdict(_canary(staging))
        _write_manifest(staging, manifest)
    return target


def _canary(staging: Path) -> Canary:
    """Record the canary. The files were hashed as they were written, so not again here."""
    bundle = Bundle.open(staging)
    return canary.record(Model(bundle, backends.load("ort:cpu", bundle, None)))


def _write_graph(
    path: Path,
    geometry: Geometry,
    absorb: Absorb,
    dtype: Float,
    traced: TracedModel,
    weights: list[Weight],
    phase: Phase,
) -> None:
    model = lower(assemble(geometry, absorb, dtype, phase, traced, weights, WEIGHTS), TARGET, phase)
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def _size(source: Checkpoint) -> int:
    return sum(file.stat().st_size for file in {tensor.file for tensor in source.tensors.values()})


def _signature(geometry: Geometry, absorb: Absorb, dtype: Float) -> dict[str, Any]:
    """Give the manifest's tensor table: inputs, outputs and cache."""
    signature = contract(geometry, absorb, dtype)
    return {
        "inputs": [dataclasses.asdict(spec) for spec in signature.inputs],
        "outputs": [dataclasses.asdict(spec) for spec in signature.outputs],
        "cache": [
            {
                "layer": spec.layer,
                "kind": "append",
                "holds": spec.kind,
                "past": spec.past.name,
                "present": spec.present.name,
                "dtype": spec.past.dtype,
                "row": spec.past.shape[2:],
                "row_format": spec.row,
            }
            for spec in signature.cache
        ],
    }


def _write_manifest(staging: Path, manifest: dict[str, Any]) -> None:
    plain = json.loads(json.dumps(manifest))
    plain["sha256"] = digest(plain)
    (staging / publish.MANIFEST).write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
