"""Prove that a bundle computes what its checkpoint computes.

Without a checkpoint: every file's hash, and the canary. With one: its hashes are those that the bundle was
made from, and logits and greedy tokens are held against Hugging Face's layers (`mla_export.numerics`). With a
text too: what the bundle's formats cost on it (`mla_export.quality`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import mla_runtime
from mla_export import progress
from mla_export.checkpoint import differing
from mla_export.drive import Drive, drive
from mla_export.judge import Verdict
from mla_export.prompts import check_room, default_prompts
from mla_export.verification import Check, Verification
from mla_runtime import backends
from mla_runtime.errors import BundleError, InputError, VerificationError

if TYPE_CHECKING:
    from mla_export.checkpoint import Checkpoint
    from mla_export.numerics import Numbers
    from mla_export.quality import Quality
    from mla_export.reference import Reference

STEPS = 64


def verify(
    bundle: str | Path,
    checkpoint: str | Path | None = None,
    *,
    prompts: Sequence[Sequence[int]] | None = None,
    steps: int = STEPS,
    backend: str = "ort:cpu",
    text: str | Path | None = None,
    text_tokens: int | None = None,
    max_kl: float | None = None,
) -> Verification:
    """Verify the bundle in the folder `bundle`, against the folder `checkpoint` where one is given.

    `prompts` are rows of token ids (default: `default_prompts`), each followed by `steps` greedy tokens. With
    a file `text` the report says what the bundle's formats cost on it, or on its first `text_tokens`, beside
    the checkpoint in fp32; more than `max_kl` nats of mean KL fail. The answer is `Verification.passed`; of a
    damaged or wrong bundle it says so. Raises BundleError for what is no bundle at all, InputError or
    CapacityError for prompts or a text that it cannot take, BackendError, ConfigError or CheckpointError
    for what cannot be run or read.
    """
    start = time.monotonic()
    if text is None and not (text_tokens is None and max_kl is None):
        raise InputError(
            "a number of tokens and a limit on KL are those of a text; give it too (--text FILE)"
        )
    if text is not None and checkpoint is None:
        raise InputError(f"{text} is read beside the checkpoint; give its folder too (--checkpoint FOLDER)")
    opened = mla_runtime.Bundle.open(bundle)
    source = None if checkpoint is None else _open(checkpoint)
    checks = [_hashes(opened)]
    windows: list[list[int]] | None = None
    run: Drive | None = None
    if checks[0].verdict == "pass":
        if text is not None:  # before anything takes long
            windows = _windows(opened, text, text_tokens)
        if source is not None:
            checks.append(_source(opened, source))
        # the files that were hashed just now, so not again
        with mla_runtime.Model(opened, backends.load(backend, opened, None)) as model:
            checks.append(_canary(model))
            if source is not None and all(check.verdict == "pass" for check in checks):
                chosen = default_prompts(model, steps) if prompts is None else prompts
                run = drive(model, _fitting(opened, chosen, steps), steps)
    numbers: Numbers | None = None
    quality: Quality | None = None
    # the model is closed by now: its weights and the reference's layers are never in memory together
    if run is not None and source is not None:
        reference = _reference(source, opened)
        numbers = _hold(opened, reference, run)
        checks += numbers.checks
        if windows is not None:
            quality = _quality(opened, reference, windows)
            if max_kl is not None:
                checks.append(_mean_kl(quality, max_kl))
    return Verification(
        bundle=str(bundle),
        backend=backend,
        precision=opened.manifest.precision.words,
        checkpoint=None if checkpoint is None else str(checkpoint),
        checks=tuple(checks),
        budget=numbers.budget if numbers else None,
        comparisons=numbers.comparisons if numbers else (),
        greedy=numbers.greedy if numbers else (),
        quality=quality,
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
    if other := differing(found, bundle.manifest.source):
        shown = ", ".join(other[:5])
        return Check(
            name, "fail", f"other than when the bundle was made: {shown}; nothing was compared with it"
        )
    return Check(name, "pass", f"{len(found)} files have the hashes in bundle.json")


def _fitting(
    bundle: mla_runtime.Bundle, prompts: Sequence[Sequence[int]], steps: int
) -> Sequence[Sequence[int]]:
    if not prompts:
        raise InputError("no prompts to verify with; give at least one row of token ids")
    check_room(prompts, steps, bundle.model.max_context)
    return prompts


def _reference(checkpoint: Checkpoint, bundle: mla_runtime.Bundle) -> Reference:
    from mla_export.reference import Reference

    return Reference(checkpoint, bundle.model.max_context)


def _hold(bundle: mla_runtime.Bundle, reference: Reference, run: Drive) -> Numbers:
    from mla_export.numerics import hold

    return hold(run, reference, bundle.manifest.precision)


def _windows(bundle: mla_runtime.Bundle, text: str | Path, most: int | None) -> list[list[int]]:
    from mla_export.quality import text_windows

    return text_windows(bundle, text, most)


def _quality(bundle: mla_runtime.Bundle, reference: Reference, windows: list[list[int]]) -> Quality:
    from mla_export.quality import Teacher, measure

    return measure(bundle, Teacher.of(reference, windows))


def _mean_kl(quality: Quality, limit: float) -> Check:
    """Hold the mean KL of the whole text, routing free, against a user's limit."""
    found = quality.free[0].kl_mean
    verdict: Verdict = "pass" if found <= limit else "fail"
    return Check("mean KL on the text", verdict, f"{found:.2e} nats, {limit:.2e} allowed")
