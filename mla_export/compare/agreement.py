"""Compare bundles of one source, on one backend or several, over a whole decode."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from mla_export import progress
from mla_export.checkpoint import Checkpoint, differing
from mla_export.compare.decode import Decoded
from mla_export.compare.held import Held, Rowed
from mla_export.compare.result import Agreement, Side
from mla_export.compare.runs import Runs
from mla_export.compare.script import Script
from mla_export.compare.sides import (
    CPU,
    TORCH,
    Job,
    jobs,
    opened,
    reference_job,
    without_numbers,
)
from mla_export.compare.verdicts import judged
from mla_runtime import Model
from mla_runtime.bundle import Bundle
from mla_runtime.errors import BackendError, InputError

if TYPE_CHECKING:
    from mla_export.reference import Reference

STEPS = 64
_Judged: TypeAlias = "dict[Job, tuple[Decoded, Held]]"


def compare(
    bundles: Sequence[str | Path],
    *,
    backends: Sequence[str] | None = None,
    checkpoint: str | Path | None = None,
    prompts: str | Path | None = None,
    text: str | Path | None = None,
    steps: int = STEPS,
    bisect: bool = False,
    beside_cpu: bool = False,
) -> Agreement:
    """Hold every bundle on every backend against the checkpoint, or against the first bundle in fp32.

    With `beside_cpu` it is the first bundle, whatever it is in, on `ort:cpu`: what another backend makes of
    the same numbers.

    All sides decode the same `steps` forced tokens after each prompt, then greedy ones of their own. The
    prompts are those of a file (`prompts`), pieces of a `text`, or default ones; the forced tokens are the
    text's, or what the first side chose. `backends` may name `torch`, which is the checkpoint in float32
    itself (default: `ort:cpu`, and `torch` with a checkpoint). `bisect` goes on inside the first layer that
    parts.

    A backend that is not there is a side without numbers that says why. Raises InputError for bundles that
    are not of one source or what cannot be decoded, BundleError, CheckpointError or ConfigError for what
    cannot be read, and BackendError where no side runs at all.
    """
    start = time.monotonic()
    if steps < 1:
        raise InputError(f"steps is {steps}; it must be at least 1")
    if bisect and checkpoint is None:
        raise InputError("bisecting computes operators from the checkpoint's weights; give it (--checkpoint)")
    found = opened(bundles)
    names = ([] if checkpoint is None else [TORCH]) + [CPU] if backends is None else backends
    todo = jobs(found, names)
    source = None if checkpoint is None else _source(checkpoint, found[0])
    runs = Runs(steps, prompts, text)
    reference = None if source is not None else reference_job(found, todo, first=beside_cpu)
    _hash(found)
    for job in [*([] if reference is None else [reference]), *todo]:
        if job.backend != TORCH and job not in runs.decoded:
            runs.run(job)
        if job is reference and job in runs.ended:
            raise BackendError(f"the reference cannot be run: {runs.ended[job].reason}")
    plan, forced = runs.settled(beside=reference)
    rowed = Rowed.of(plan.prompts, forced, list(runs.decoded.values()))
    torch = next((job for job in todo if job.backend == TORCH), None)
    if not runs.decoded:
        held: _Judged = {}  # every side stopped on its way, and says why
    elif reference is not None:
        held = _against_bundle(reference, runs, rowed)
    else:
        held = _against_checkpoint(source, runs, rowed, torch)
    sides = [_side(job, runs, held, plan, job is reference) for job in todo]
    if bisect and source is not None:
        from mla_export.compare.bisect import bisected

        sides = [bisected(side, job, source, rowed) for side, job in zip(sides, todo, strict=True)]
    return Agreement(
        model=found[0].model.name,
        bundles=tuple(map(str, bundles)),
        checkpoint=None if checkpoint is None else str(checkpoint),
        reference=f"{checkpoint} in float64, layer by layer" if reference is None else reference.name,
        forced=plan.words,
        prompts=tuple(map(len, plan.prompts)),
        steps=steps,
        sides=tuple(sides),
        seconds=time.monotonic() - start,
    )


def _source(checkpoint: str | Path, bundle: Bundle) -> Reference:
    """Open the checkpoint that the bundles were made from; raises InputError for another one."""
    from mla_export.reference import Reference

    source = Checkpoint.open(checkpoint)
    size = sum(file.stat().st_size for file in source.files())
    with progress.task("hashing the checkpoint", size, "bytes") as advance:
        hashes = source.hashes(advance)
    if other := differing(hashes, bundle.manifest.source):
        msg = f"{checkpoint} is not what {bundle.path} was made from ({other[0]} differs); "
        raise InputError(msg + "give that checkpoint")
    return Reference(source, bundle.model.max_context)


def _hash(bundles: Sequence[Bundle]) -> None:
    with progress.task("hashing the bundles", sum(bundle.nbytes for bundle in bundles), "bytes") as advance:
        for bundle in bundles:
            bundle.ensure_hashed(advance)


def _against_checkpoint(source: Reference | None, runs: Runs, rowed: Rowed, torch: Job | None) -> _Judged:
    from mla_export.compare.against_checkpoint import hold

    if source is None:
        raise RuntimeError("there is no checkpoint")
    sides = [(job.held.manifest.precision, decoded) for job, decoded in runs.decoded.items()]
    held, of_torch = hold(source, rowed, sides, torch=torch is not None)
    found = {job: (runs.decoded[job], one) for job, one in zip(runs.decoded, held, strict=True)}
    return found if torch is None or of_torch is None else {**found, torch: of_torch}


def _against_bundle(reference: Job, runs: Runs, rowed: Rowed) -> _Judged:
    from mla_export.compare.against_bundle import hold

    sides = []
    for job, decoded in runs.decoded.items():
        formats = job.held.manifest.precision
        if job.bundle is reference.bundle:  # these weights are the same numbers, however they are rounded
            formats = replace(formats, weights=formats.compute, head=formats.compute)
        sides.append((formats, decoded))
    with Model(reference.held, reference.load()) as model:
        held = hold(model, runs.decoded[reference], rowed, sides)
    return {job: (runs.decoded[job], one) for job, one in zip(runs.decoded, held, strict=True)}


def _side(job: Job, runs: Runs, held: _Judged, plan: Script, is_reference: bool) -> Side:
    if job in runs.ended:
        return runs.ended[job]
    if is_reference:
        return without_numbers(job, "reference", "the others are held against it")
    if job not in held and not runs.decoded:
        return without_numbers(job, "absent", "no other side decoded anything to hold it beside")
    if job not in held:
        return without_numbers(job, "absent", "torch computes the checkpoint; give its folder (--checkpoint)")
    decoded, one = held[job]
    side = judged(without_numbers(job, "pass", None), decoded, one, plan.prompts)
    return replace(side, layers_note=runs.notes.get(job))
