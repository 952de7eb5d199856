"""From a checkpoint to a bundle."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from mla_export import canary, progress, publish, weights_file
from mla_export.assemble import assemble
from mla_export.calibration_text import DEFAULT_TOKENS, CalibrationText, read_calibration
from mla_export.checkpoint import Checkpoint
from mla_export.families import account, family_of
from mla_export.journal import WEIGHTS, Journal, fingerprint, resumable
from mla_export.layerwise import Layerwise
from mla_export.layout import Layout, layout
from mla_export.manifest import Manifest
from mla_export.overflow import check_range
from mla_export.params import Recipes
from mla_export.plan import Forms, Plan, Target
from mla_export.quantiser import Quantiser, WeightErrors, searched
from mla_export.text_files import read_text_files
from mla_export.trace import trace
from mla_graphs.geometry import Absorb, Phase
from mla_graphs.lowering import lower
from mla_runtime.errors import ConfigError
from mla_runtime.integrity import sha256
from mla_runtime.manifest import FileEntry

# The file of each phase's graph. Pre-packed matrices are held once a graph: there one serves both.
GRAPHS: dict[str, dict[Phase, str]] = {
    "portable": {"step": "step.onnx", "prompt": "prompt.onnx"},
    "ort-cpu": {"step": "model.onnx", "prompt": "model.onnx"},
}
# Measured: ONNX Runtime's CPU provider is quickest at 256, where a matrix's inputs stay in its caches.
DEFAULT_CHUNK: dict[Target, int] = {"portable": 512, "ort-cpu": 256}
# Beside the weights: graphs, tokenizer, and what a file system rounds up.
_MARGIN = 64 * 2**20


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    target: Target = "portable",
    absorb: Absorb = "factored",
    dtype: Literal["fp32", "fp16"] | None = None,
    weights: Literal["fp32", "fp16", "int8", "int4"] | None = None,
    group: Literal[32, 128] | None = None,
    head: Literal["int8", "int4"] | None = None,
    cache: Literal["float", "int8"] = "float",
    cache_rope: Literal["float", "int8"] = "float",
    max_context: int | None = None,
    chunk: int | None = None,
    calibrate: str | Path | None = None,
    calibrate_tokens: int = DEFAULT_TOKENS,
    force: bool = False,
    told: Callable[[WeightErrors], None] | None = None,
) -> Path:
    """Export the model in the folder `checkpoint` to the bundle `out` and give its path.

    `target` chooses the operators that the graphs are written in, `absorb` the attention's form, `dtype`
    the type of activations (fp32 if not given, or what `weights` says). `weights` is how matrices are stored:
    as `dtype`, or int8 or int4 with a scale for each `group` of inputs (default: 32); `head` is how a head of
    its own is stored then (default: int8). The latent rows of the cache are of the type `dtype` too, or int8
    with a scale a token (`cache`), and so are the rotary keys (`cache_rope`, int8 only beside int8 latents).
    `max_context` bounds the positions (default: what the model was made for), `chunk` how many prompt
    tokens go through the graph at once (default: 512, for the target `ort-cpu` 256, or the context where that
    is less). `calibrate` is a file that int8 and int4 weights are calibrated with, `calibrate_tokens` how
    much of it is used (`read_calibration`). An existing bundle is replaced only with `force`, and only by a
    finished one. `told` is given the errors of the rounded weights.

    An export that was killed or interrupted is gone on with: weights that it had finished are not made again.

    Raises ConfigError, CheckpointError, ExportError, and InputError for a file that nothing can be calibrated
    with; `out` is then as it was.
    """
    folder = Path(out)
    publish.check_target(folder, force=force)
    forms = Forms.choose(
        target, absorb, dtype, weights, group, cache, cache_rope, head=head, calibrated=calibrate is not None
    )
    source = Checkpoint.open(checkpoint)
    family = family_of(source.config)
    geometry = family.geometry(source.config, max_context)
    if chunk is None:
        chunk = min(DEFAULT_CHUNK[forms.target], geometry.max_context)
    if not 1 <= chunk <= geometry.max_context:
        raise ConfigError(f"chunk {chunk} is not in 1 … {geometry.max_context}, the context of this export")
    names = account(source, family, geometry).names
    text = read_text_files(source.path, source.config, geometry.vocab_size)
    calibration = None
    if calibrate is not None:
        calibration = read_calibration(
            calibrate, calibrate_tokens, text, geometry.vocab_size, geometry.max_context
        )
    plan = forms.plan(geometry)
    places = layout(plan)
    graphs = GRAPHS[plan.target]
    identity = fingerprint(source, plan, places, calibration.entry if calibration else None)
    errors = WeightErrors()
    quantiser = _quantiser(source, plan, places, calibration)
    needed = places.nbytes + _MARGIN
    keep = partial(resumable, identity=identity)
    with publish.staged(folder, force=force, needed=needed, keep=keep) as staging:
        with progress.task("tracing the blocks"):
            traced = trace(plan)
        journal = Journal(staging, identity)
        recipes = Recipes(geometry, absorb, plan.torch_dtype, lambda name: source.read(names[name]))
        with progress.task("weights", sum(weight.nbytes for weight in places.weights), "bytes") as advance:
            written = weights_file.write(journal, places, recipes, advance, quantiser, errors)
        # Where one file serves both phases it is the prompt's graph, which runs for any number of tokens.
        for file, phase in {file: phase for phase, file in graphs.items()}.items():
            graph = lower(assemble(plan, phase, traced, places, WEIGHTS), plan.target, phase)
            (staging / file).write_bytes(ir.to_proto(graph).SerializeToString(deterministic=True))
        text.write(staging)
        size = sum(file.stat().st_size for file in source.files())
        with progress.task("hashing the source", size, "bytes") as advance:
            hashes = source.hashes(advance)
        model = Layerwise(plan, traced, places, staging / WEIGHTS, graphs["step"] == graphs["prompt"])
        with progress.task("canary"):
            if plan.compute == "float16":
                check_range(model)
            recorded = canary.record(model, chunk)
        journal.remove()
        manifest = Manifest(
            name=source.path.resolve().name,
            plan=plan,
            graphs=graphs,
            chunk=chunk,
            text=text.entry,
            source=hashes,
            calibration=calibration.entry if calibration else None,
            files={WEIGHTS: written, **_described(staging)},
        )
        manifest.write(staging / publish.MANIFEST, recorded)
    if told is not None:
        told(errors)
    return folder


def _quantiser(
    source: Checkpoint, plan: Plan, places: Layout, calibration: CalibrationText | None
) -> Quantiser:
    if calibration is None:
        return searched
    from mla_export.calibrate import Calibrated  # takes transformers, which a plain export does not

    return Calibrated(source, plan.absorb, plan.geometry.max_context, calibration.windows, places.parameters)


def _described(staging: Path) -> dict[str, FileEntry]:
    """Give size and hash of every file but the weights, which were hashed as they were written."""
    return {
        path.name: FileEntry(path.stat().st_size, sha256(path))
        for path in sorted(staging.iterdir())
        if path.name != WEIGHTS
    }
