"""How long a step takes in each form of attention, side by side: one token a form in turn.

On one thread, and in that thread's processor time, which other work on the machine disturbs much less than
what a clock shows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from forms import shapes

import mla_runtime
from mla_export import progress
from mla_export.export import export
from mla_graphs.geometry import Absorb

FORMS: tuple[Absorb, ...] = ("factored", "merged", "expanded")
WEIGHTS: dict[str, dict[str, Any]] = {
    "fp32": {"target": "portable"},
    "int8": {"target": "ort-cpu", "weights": "int8"},
    "int4": {"target": "ort-cpu", "weights": "int4"},
}
DEPTHS = (0, 2048, 8192)
_CONTEXT = 8192 + 128


@dataclass(frozen=True, slots=True)
class Time:
    """A step of one form behind `depth` rows: the median and the best in ms of one thread's processor time.

    `over_factored` is of the medians.
    """

    shape: str
    weights: str
    form: Absorb
    depth: int
    weights_bytes: int
    row_bytes: int
    step_ms_median: float
    step_ms_best: float
    over_factored: float


def bundle(folder: Path, shape: str, weights: str, form: Absorb) -> Path:
    """Give a bundle of random weights, made once in `folder`."""
    out = folder / f"{shape}.{weights}.{form}"
    if not out.exists():
        source = shapes.checkpoint(folder, shape)
        export(source, out, absorb=form, max_context=_CONTEXT, **WEIGHTS[weights])
        mla_runtime.open(out).close()  # hashed here, and not where times are taken
    return out


def prepare(folder: Path) -> None:
    """Make all bundles."""
    for shape in shapes.SHAPES:
        for weights in WEIGHTS:
            for form in FORMS:
                bundle(folder, shape, weights, form)


def measure(folder: Path, rounds: int) -> Iterator[Time]:
    """Time the bundles that `prepare` made: `rounds` steps of each form at each depth, after one more."""
    cases = [(shape, weights) for shape in shapes.SHAPES for weights in WEIGHTS]
    with progress.task("steps", len(cases) * len(DEPTHS)) as advance:
        for shape, weights in cases:
            with ExitStack() as stack:
                paths = [bundle(folder, shape, weights, form) for form in FORMS]
                models = [stack.enter_context(mla_runtime.open(path, threads=1)) for path in paths]
                for depth in DEPTHS:
                    yield from _at(depth, models, shape, weights, rounds)
                    advance(1)


def _at(
    depth: int, models: Sequence[mla_runtime.Model], shape: str, weights: str, rounds: int
) -> Iterator[Time]:
    taken: list[list[float]] = [[] for _ in models]
    with ExitStack() as stack:
        sessions = [stack.enter_context(model.session(max_context=depth + rounds + 2)) for model in models]
        for session in sessions:
            session.fill(max(depth, 1))
        for token in range(rounds + 1):
            for session, times in zip(sessions, taken, strict=True):
                start = time.thread_time()
                session.step([token])
                times.append(1e3 * (time.thread_time() - start))
    medians = [median(times[1:]) for times in taken]
    for form, model, times, found in zip(FORMS, models, taken, medians, strict=True):
        size = (model.bundle.path / "weights.data").stat().st_size
        row = sum(tensor.row_bytes for tensor in model.bundle.cache)
        yield Time(shape, weights, form, depth, size, row, found, min(times[1:]), found / medians[0])
