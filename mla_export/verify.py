"""Prove that a bundle computes what its checkpoint computes.

Without a checkpoint: every file's hash, and the canary. With one: its hashes are those that the bundle was
made from, and logits and greedy tokens are held against Hugging Face's layers (`mla_export.numerics`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import mla_runtime
from mla_export import progress
from mla_export.drive import Drive, drive
from mla_export.prompts import default_prompts
from mla_export.report import Check, Report
from mla_runtime import backends
from mla_runtime.errors import BundleError, CapacityError, InputError, VerificationError
from mla_runtime.wording import counted

if TYPE_CHECKING:
    from mla_export.checkpoint import Checkpoint
    from mla_export.numerics import Numbers

STEPS = 64


def verify(
    bundle: str | Path,
    checkpoint: str | Path | None = None,
    *,
    prompts: Sequence[Sequence[int]] | None = None,
    steps: int = STEPS,
    backend: str = "ort:cpu",
) -> Report:
    """Verify the bundle in the folder `bundle`, against the folder `checkpoint` where one is given.

    `prompts` are rows of token ids (default: `default_prompts`), each followed by `steps` greedy tokens. The
    answer is `Report.passed`; a damaged or wrong bundle gives a report that says so. Raises BundleError for
    what is no bundle at all, InputError or CapacityError for prompts that it cannot take, BackendError,
    ConfigError or CheckpointError for what cannot be run or read.
    """
    start = time.monotonic()
    opened = mla_runtime.Bundle.open(bundle)
    source = None if checkpoint is None else _open(checkpoint)
    checks = [_hashes(opened)]
    run: Drive | None = None
    if checks[0].verdict == "pass":
        if source is not None:
            checks.append(_source(opened, source))
        # the files that were hashed just now, so not again
        with mla_runtime.Model(opened, backends.load(backend, opened, None)) as model:
            checks.append(_canary(model))
            if source is not None and all(check.verdict == "pass" for check in checks):
                chosen = default_prompts(model, steps) if prompts is None else prompts
                run = drive(model, _fitting(opened, chosen, steps), steps)
    # the model is closed by now: its weights and the reference's layers are never in memory together
    numbers = None if run is None or source is None else _hold(opened, source, run)
    return Report(
        bundle=str(bundle),
        backend=backend,
        precision=opened.manifest.precision.words,
        checkpoint=None if checkpoint is None else str(checkpoint),
        checks=(*checks, *(numbers.checks if numbers else ())),
        budget=numbers.budget if numbers else None,
        comparisons=numbers.comparisons if numbers else (),
        greedy=numbers.greedy if numbers else (),
        seconds=time.monotonic() - start,
    )


def _open(checkpoint: str | Path) -> Checkpoint:
    from mla_export.checkpoint import Checkpoint

    return Checkpoint.open(checkpoint)


def _hashes(bundle: mla_runtime.Bundle) -> Check:
    """Hash every file in full, whatever was hashed before."""
    with progress.task("hashing the bundle", bundle.nbytes, "bytes") as advance:
        try:
            bundle.verify_hashes(advance)
        except BundleError as error:
            return Check("hashes of the bundle", "fail", str(error))
    return Check("hashes of the bundle", "pass", f"{len(bundle.paths)} files, {bundle.nbytes / 1e6:,.1f} MB")


def _canary(model: mla_runtime.Model) -> Check:
    """Run the few tokens whose logits the bundle carries."""
    if model.bundle.manifest.canary is None:
        return Check("canary", "fail", "the bundle has none, but every export records one; export it again")
    try:
        found = mla_runtime.check_canary(model)
    except VerificationError as error:
        return Check("canary", "fail", str(error))
    return Check("canary", "pass", f"{found.error:.1e} off, {found.tolerance:.1e} allowed")


def _source(bundle: mla_runtime.Bundle, checkpoint: Checkpoint) -> Check:
    """Compare the checkpoint's hashes with those that were taken when the bundle was made."""
    name = "made from this checkpoint"
    size = sum(file.stat().st_size for file in checkpoint.files())
    with progress.task("hashing the checkpoint", size, "bytes") as advance:
        found = checkpoint.hashes(advance)
    wanted = bundle.manifest.source
    differing = sorted(f for f in {*found, *wanted} if found.get(f) != wanted.get(f))
    if differing:
        shown = ", ".join(differing[:5])
        return Check(
            name, "fail", f"other than when the bundle was made: {shown}; nothing was compared with it"
        )
    return Check(name, "pass", f"{len(found)} files have the hashes in bundle.json")


def _fitting(
    bundle: mla_runtime.Bundle, prompts: Sequence[Sequence[int]], steps: int
) -> Sequence[Sequence[int]]:
    if not prompts:
        raise InputError("no prompts to verify with; give at least one row of token ids")
    longest, context = max(map(len, prompts)), bundle.model.max_context
    if longest + steps > context:
        raise CapacityError(
            f"a prompt of {counted(longest, 'token')} and {counted(steps, 'step')} pass the bundle's "
            f"context of {context}; give fewer steps or shorter prompts"
        )
    return prompts


def _hold(bundle: mla_runtime.Bundle, checkpoint: Checkpoint, run: Drive) -> Numbers:
    from mla_export.numerics import hold
    from mla_export.reference import Reference

    return hold(run, Reference(checkpoint, bundle.model.max_context), bundle.manifest.precision)
