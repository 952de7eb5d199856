"""A bundle in fp32 as the reference, where there is no checkpoint: what it decodes itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from mla_export.compare.decode import Decoded, Layers, forced_logits
from mla_export.compare.held import Held, Rowed
from mla_export.compare.layers import Seen, layer_errors
from mla_export.compare.result import Gate, LayerError
from mla_export.judge import Budget
from mla_runtime import Model
from mla_runtime.manifest import Precision as Formats

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

# What a side's median token may be off, as a share of the reference's size, by its precision. With no
# checkpoint there is no peer to compute it from, and no telling which tokens are behind a router near tie:
# these are wide, and a wrong scale or a swapped half is off by more.
FIXED = {"float32": 1e-4, "float16": 2e-2, "int8 rows": 5e-2, "int8": 1e-1, "int4": 3e-1}


def hold(
    model: Model, reference: Decoded, rowed: Rowed, sides: Sequence[tuple[Formats, Decoded]]
) -> list[Held]:
    """Hold the sides against what the reference, open as `model`, decoded and says after their own tokens."""
    count = len(rowed.prompts)
    logits = list(reference.logits)
    prompt_of = {row: prompt for own in rowed.own for prompt, row in enumerate(own)}
    for row in range(count, len(rowed.rows)):
        prompt = rowed.prompts[prompt_of[row]]
        tokens = rowed.rows[row][len(prompt) :]
        logits.append(forced_logits(model, prompt, tokens, rowed.steps)[0])
    size = float(np.sqrt(np.mean(np.concatenate(logits[:count]).astype(np.float64) ** 2)))
    none = [np.zeros(1 + rowed.steps, dtype=bool)] * count
    held = []
    for (formats, decoded), own in zip(sides, rowed.own, strict=True):
        name, share = fixed_share(formats)
        words = f"{share:g} of the logits' RMS for the median token, the gate for {name}"
        budget = Budget(1.0, float("inf"), share * size, "median", words)
        gate = Gate("fixed", "median", 1.0, float("inf"), share * size, words)
        layers = _layers(reference, decoded, rowed, share)
        held.append(Held(gate, budget, logits[:count], none, [logits[i] for i in own], none, None, layers))
    return held


def _layers(reference: Decoded, side: Decoded, rowed: Rowed, share: float) -> list[LayerError]:
    lengths = [len(prompt) for prompt in rowed.prompts]
    ties = [np.zeros(len(row), dtype=bool) for row in rowed.rows[: len(lengths)]]
    found: list[LayerError] = []
    for kind, want in reference.layers.items():
        if (got := side.layers.get(kind)) is None:
            continue
        for layer in range(len(want[0])):
            seen = Seen(layer, kind, lengths, _of(want, layer), _of(got, layer))
            found += layer_errors(seen, ties, median=True, allowed=share, factor=1.0)
    return found


def fixed_share(formats: Formats) -> tuple[str, float]:
    """Give the name and the share of the gate for a side's formats: that of the coarsest of them."""
    rows = "int8 rows" if formats.cache in ("int8", "uint8") else formats.compute
    found = max((formats.compute, formats.weights, rows), key=lambda name: FIXED[name])
    return found, FIXED[found]


def _of(layers: Layers, layer: int) -> list[Array]:
    return [prompt[layer].astype(np.float64) for prompt in layers]
