"""The canary: a prompt whose logits are known, to see that a bundle computes here what it computed there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mla_runtime.errors import BundleError, VerificationError
from mla_runtime.model import Model

# A canary is written in float32 and may run on another processor, where sums are taken in another
# order: relative 2^-24 a sum, a few thousand terms deep, some tens of layers. float16 computes with
# 2^-11 and is written from float32 arithmetic.
RELATIVE = {"float32": 1e-3, "float16": 3e-2}


@dataclass(frozen=True, slots=True)
class CanaryResult:
    """How far the canary was from what the bundle says: `error` must be at most `tolerance`, in logits.

    `entries` are the prompt and the steps compared, `worst` the entry with the largest error.
    """

    entries: int
    worst: int
    error: float
    tolerance: float


def check_canary(model: Model) -> CanaryResult:
    """Run the canary through both graphs of `model` and compare ids and logits.

    The tolerance is `RELATIVE` of the compute precision times the largest logit of the canary. An id that
    is not among the best must be within the tolerance of them. Raises `VerificationError` with the
    tolerance that would have passed, and `BundleError` where the bundle has no canary.
    """
    manifest = model.bundle.manifest
    canary = manifest.canary
    if canary is None:
        raise BundleError(f"{model.bundle.path}: the bundle has no canary; export it again")
    scale = max(abs(value) for entry in canary.top for _, value in entry)
    relative = RELATIVE[manifest.precision.compute]
    tolerance = relative * max(scale, 1.0)
    errors: list[float] = []
    with model.session(max_context=len(canary.prompt_ids) + len(canary.step_ids)) as session:
        errors.append(_distance(session.prefill([canary.prompt_ids])[0], canary.top[0]))
        for token, entry in zip(canary.step_ids, canary.top[1:], strict=True):
            errors.append(_distance(session.step([token])[0], entry))
    worst = int(np.argmax(errors))
    if errors[worst] > tolerance:
        where = "after the prompt" if worst == 0 else f"after step {worst}"
        msg = (
            f"{model.bundle.path}: on {model.backend.name} the canary's logits "
            f"{where} are {errors[worst]:.3g} off, "
        )
        raise VerificationError(
            msg + f"more than {tolerance:.3g}; this backend does not compute what was exported"
        )
    return CanaryResult(len(canary.top), worst, errors[worst], tolerance)


def _distance(
    logits: np.ndarray[tuple[int], np.dtype[np.float32]], entry: tuple[tuple[int, float], ...]
) -> float:
    """Give the largest error of the expected logits, or how far another id is above the least of them."""
    ids = np.array([token for token, _ in entry])
    values = np.array([value for _, value in entry])
    others = np.delete(logits, ids)
    above = float(others.max() - values.min()) if len(others) else 0.0
    return max(float(np.abs(logits[ids] - values).max()), above)
