"""A model on a device held against others on the processor, logits at every step."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from mla_runtime.canary import RELATIVE
from mla_runtime.model import Model

STEPS = 64


@dataclass(frozen=True, slots=True)
class Held:
    """The largest error of each step against the same bundle and against the reference, and what is allowed.

    In shares of the step's largest logit. Against the reference `allowed` comes on top of the error that the
    same bundle has on ONNX Runtime: how the bundle was rounded is not the device's doing.
    """

    same: tuple[float, ...]
    reference: tuple[float, ...]
    bundle: tuple[float, ...]
    allowed: float

    @property
    def passed(self) -> bool:
        pairs = zip(self.reference, self.bundle, strict=True)
        return max(self.same) <= self.allowed and all(far <= own + self.allowed for far, own in pairs)


def hold(model: Model, same: Model, reference: Model, prompts: list[list[int]]) -> Held:
    """Decode the reference's greedy tokens with all three; allowed is what a canary is, of the precision.

    A code of an int8 row may round the other way, which is a 127th of the row's largest number.
    """
    precision = model.bundle.manifest.precision
    allowed = RELATIVE[precision.compute] + (1 / 127 if precision.cache == "int8" else 0)
    errors = []
    with ExitStack() as stack:
        sessions = [stack.enter_context(side.session(len(prompts), 400)) for side in (model, same, reference)]
        logits = [session.prefill(prompts) for session in sessions]
        for step in range(STEPS + 1):
            found, own, want = logits
            scale = max(1.0, float(np.abs(want).max()))
            pairs = ((found, own), (found, want), (own, want))
            errors.append([float(np.abs(one - other).max()) / scale for one, other in pairs])
            if step < STEPS:
                ids = want.argmax(axis=1).tolist()
                logits = [session.step(ids) for session in sessions]
    by_pair = [tuple(column) for column in zip(*errors, strict=True)]
    return Held(*by_pair, allowed)
