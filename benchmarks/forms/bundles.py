"""Bundles on ONNX Runtime: a text as its prompt graph reads it, and token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from forms.errors import Array, Found

import mla_runtime
from mla_export.probe import Probe, Reading
from mla_runtime.bundle import Bundle


def as_prompts(bundle: Bundle, windows: Sequence[Sequence[int]], threads: int) -> Found:
    """Read each window in the bundle's chunks."""
    probe = Probe(bundle, threads)
    logits: list[Array] = []
    chosen: list[list[Array]] = [[] for _ in probe.gates]
    for window in windows:
        reading = Reading(probe, len(window))
        for start in range(0, len(window), bundle.chunk):
            got, gates = reading(window[start : start + bundle.chunk])
            logits.append(got)
            for kept, ids in zip(chosen, gates, strict=True):
                kept.append(np.sort(ids, axis=-1))
    experts = {layer: np.concatenate(ids) for layer, ids in zip(probe.gates, chosen, strict=True)}
    return Found(np.concatenate(logits), experts)


def as_steps(bundle: Bundle, windows: Sequence[Sequence[int]], threads: int) -> Found:
    """Read each window token by token, as a user's steps do."""
    logits: list[Array] = []
    with mla_runtime.open(bundle.path, threads=threads) as model:
        for window in windows:
            with model.session(max_context=len(window)) as session:
                logits.append(session.prefill([window[:1]]).copy())
                logits.extend(session.step([token]).copy() for token in window[1:])
    return Found(np.concatenate(logits), {})
