"""How fast a bundle runs here, and what it takes: the measuring behind `mla-export bench`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mla_runtime.errors import CapacityError, InputError
from mla_runtime.model import Model


@dataclass(frozen=True, slots=True)
class Speed:
    """Measured at one depth, with `depth` rows in the cache of each of `batch` sequences before it.

    `prompt_tokens` a sequence go through the prompt graph in `prompt_seconds`; a step of one token a
    sequence takes `step_seconds` (median) and at worst `step_worst_seconds`. `cache_bytes` are those
    of the rows that count, `peak_bytes` the process's peak resident memory so far (None where the
    system does not tell). Resident memory counts a weights file once for each graph that maps it,
    though both share the same pages.
    """

    depth: int
    batch: int
    prompt_tokens: int
    prompt_seconds: float
    step_seconds: float
    step_worst_seconds: float
    steps: int
    cache_bytes: int
    peak_bytes: int | None

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens a second, all sequences together."""
        return self.batch * self.prompt_tokens / self.prompt_seconds

    @property
    def step_rate(self) -> float:
        """Generated tokens a second, all sequences together."""
        return self.batch / self.step_seconds


def measure(
    model: Model,
    depths: Sequence[int] = (0, 1024),
    *,
    prompt_tokens: int = 128,
    steps: int = 16,
    batch: int = 1,
    on_done: Callable[[Speed], None] | None = None,
) -> list[Speed]:
    """Measure prompt and step speed at each of `depths` rows of cache.

    The cache is filled with random rows, not computed, so that depth costs nothing. Every depth is
    run once unmeasured, to load graphs and touch memory. `on_done` gets each result as it comes.
    Raises `InputError` and, for a depth that does not fit, `CapacityError` before anything runs.
    """
    if prompt_tokens < 1 or steps < 1 or any(depth < 0 for depth in depths):
        msg = (
            f"depths {list(depths)} must be at least 0, prompt_tokens "
            f"{prompt_tokens} and steps {steps} at least 1"
        )
        raise InputError(msg)
    # A step comes after the prompt: at depth 0 there is no cache to step on.
    rows = max(depths, default=0) + max(prompt_tokens, steps + 2)
    if rows > model.bundle.model.max_context:
        msg = f"depth {max(depths)} and what is measured there take {rows} rows, more than max_context "
        raise CapacityError(msg + f"{model.bundle.model.max_context}; measure at a smaller depth")
    results = []
    for depth in depths:
        result = _measure_at(model, depth, rows, prompt_tokens, steps, batch)
        results.append(result)
        if on_done is not None:
            on_done(result)
    return results


def _measure_at(model: Model, depth: int, rows: int, prompt_tokens: int, steps: int, batch: int) -> Speed:
    random = np.random.default_rng(0)
    vocab = model.bundle.model.vocab_size
    prompt = [random.integers(vocab, size=prompt_tokens).tolist() for _ in range(batch)]
    tokens = random.integers(vocab, size=(steps + 1, batch)).tolist()
    with model.session(batch, rows) as session:
        session.fill(depth)
        session.prefill(prompt)
        session.fill(depth)
        start = time.perf_counter()
        session.prefill(prompt)
        prompt_seconds = time.perf_counter() - start
        session.fill(max(depth, 1))
        times = []
        for ids in tokens:
            start = time.perf_counter()
            session.step(ids)
            times.append(time.perf_counter() - start)
    del times[0]
    return Speed(
        depth=depth,
        batch=batch,
        prompt_tokens=prompt_tokens,
        prompt_seconds=prompt_seconds,
        step_seconds=float(np.median(times)),
        step_worst_seconds=max(times),
        steps=steps,
        cache_bytes=batch * depth * sum(tensor.row_bytes for tensor in model.bundle.cache),
        peak_bytes=peak_memory(),
    )


def peak_memory() -> int | None:
    """Give this process's peak resident memory in bytes, or None where the system does not tell."""
    if sys.platform == "win32":
        return None
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, where ru_maxrss begins with the peak of whoever started this process
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
