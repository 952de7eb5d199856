"""What a report is made of, gathered here and now: cache bytes, speeds, memory, and a comparison."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mla_export import progress
from mla_export.compare.sides import CPU, TORCH, jobs, opened, reference_job
from mla_export.inspect import inspect
from mla_export.page.results import Benchmark, Results, Unmeasured, benchmark, model
from mla_runtime.bundle import Bundle
from mla_runtime.errors import InputError

DEPTHS = (0, 512, 2048)
PROMPT = 512  # tokens that are timed behind the deepest


def gather(
    bundles: Sequence[str | Path],
    *,
    backends: Sequence[str] | None = None,
    checkpoint: str | Path | None = None,
    prompts: str | Path | None = None,
    text: str | Path | None = None,
    steps: int = 64,
    depths: Sequence[int] | None = None,
) -> Results:
    """Compare all bundles on all backends, then measure each, as `compare` and `bench` do.

    Each is measured in a process of its own, so that its peak memory is its own. Bundles that nothing can be
    held against, for want of a checkpoint and of one in fp32 beside them, are measured and not compared.
    Raises what `compare` raises, before anything is measured.
    """
    from mla_export.compare.agreement import compare

    found = opened(bundles)
    todo = jobs(found, [CPU] if backends is None else backends)
    why = ""
    if checkpoint is None:
        try:
            reference_job(found, todo)
        except InputError as error:
            why = f"Not compared: {error}."
    models = tuple(model(inspect(bundle.path).as_json(), str(bundle.path)) for bundle in found)
    comparisons = (
        ()
        if why
        else (
            compare(
                bundles, backends=backends, checkpoint=checkpoint, prompts=prompts, text=text, steps=steps
            ),
        )
    )
    measured, left = _measured(found, [CPU] if backends is None else backends, depths)
    return Results(comparisons, measured, left, models, why)


def _measured(
    bundles: Sequence[Bundle], backends: Sequence[str], depths: Sequence[int] | None
) -> tuple[tuple[Benchmark, ...], tuple[Unmeasured, ...]]:
    measured, left = [], []
    todo = [(bundle, name) for bundle in bundles for name in dict.fromkeys(backends) if name != TORCH]
    with progress.task("measuring speed", len(todo)) as advance:
        for bundle, backend in todo:
            one = _bench(bundle, backend, depths)
            measured += [one] if isinstance(one, Benchmark) else []
            left += [one] if isinstance(one, Unmeasured) else []
            advance(1)
    return tuple(measured), tuple(left)


def _bench(bundle: Bundle, backend: str, depths: Sequence[int] | None) -> Benchmark | Unmeasured:
    context = bundle.model.max_context
    fitting = [depth for depth in DEPTHS if depth + PROMPT <= context] or [0]
    shown = ",".join(map(str, fitting if depths is None else depths))
    command = [sys.executable, "-m", "mla_export", "bench", str(bundle.path.resolve())]
    command += ["--backend", backend, f"--depths={shown}", "--json", "--quiet"]
    # what can be imported here can be there
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=env, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode == 0:
        return benchmark(json.loads(done.stdout), f"bench of {bundle.path}")
    said = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
    return Unmeasured(bundle.path.name, backend, said.removeprefix("mla-export: "))
