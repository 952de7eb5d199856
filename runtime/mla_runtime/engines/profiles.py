"""Which shapes engines are made for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mla_runtime.bundle import Bundle
from mla_runtime.engines.record import Limits
from mla_runtime.errors import EngineError
from mla_runtime.manifest import Dim, Phase

# Rows of the cache that kernels are chosen for; an engine serves all others up to its limit too.
_USUAL_CONTEXT = 1024
Bounds = tuple[int, int, int]


def bounds(phase: Phase, limits: Limits) -> dict[str, Bounds]:
    """Give the least, the usual and the largest of B, S, T and N.

    A step has one token a sequence, so that nothing but T varies at a given batch; a prompt has any number
    up to the chunk. Told that S is 1, TensorRT-RTX 1.7 makes sums of the products of one sequence, joined
    with the norms before and the weights' dequantisation; with several sequences it dequantises W_O by itself
    then, and does not where S might be 2.
    """
    batch = (1, 1, limits.batch)
    step = (1, 1, 1 if limits.batch == 1 else 2)
    return {
        "B": batch,
        "S": step if phase == "step" else (1, limits.chunk, limits.chunk),
        "T": (1, min(_USUAL_CONTEXT, limits.context), limits.context),
        "N": batch,
    }


def add_profile(builder: Any, config: Any, bundle: Bundle, phase: Phase, limits: Limits) -> None:
    """Add the profile of a phase to a build."""
    profile = builder.create_optimization_profile()
    sizes = bounds(phase, limits)
    for name, shape in _inputs(bundle):
        # inputs that are computed with as shapes are set by value; the contract has none
        profile.set_shape(name, *[[_size(dim, sizes, i) for dim in shape] for i in range(3)])
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"{bundle.path}: TensorRT takes no profile of {phase} with {limits}")


def _inputs(bundle: Bundle) -> Iterator[tuple[str, Sequence[Dim]]]:
    for tensor in bundle.manifest.inputs:
        yield tensor.name, tensor.shape
    for cache in bundle.cache:
        yield cache.past, ("B", "T", *cache.row)


def _size(dim: Dim, sizes: dict[str, Bounds], which: int) -> int:
    return sizes[dim][which] if isinstance(dim, str) else dim
