"""The work of each stage: plain arguments in, JSON out, so that it can be done in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mla_export import progress
from mla_export.commands.bench import Plan, as_json
from mla_export.selftest.device import facts
from mla_runtime import Bundle, check_canary, measure
from mla_runtime import open as open_model
from mla_runtime.engines.flavour import FLAVOURS
from mla_runtime.engines.loading import whole
from mla_runtime.engines.store import ensure
from mla_runtime.errors import VerificationError

STEPS = 64


def bundle(path: str) -> dict[str, Any]:
    """Hash a bundle and say what it is."""
    opened = Bundle.open(path)
    with progress.task("hashing the bundle", opened.nbytes, "bytes") as advance:
        opened.verify_hashes(advance)
    manifest = opened.manifest
    return {
        **asdict(opened.model),
        "target": manifest.target,
        "absorb": manifest.absorb,
        "precision": manifest.precision.words,
        "chunk": opened.chunk,
        "nbytes": opened.nbytes,
        "sha256": opened.raw["sha256"],
    }


def export(checkpoint: str, out: str, forms: Mapping[str, Any]) -> dict[str, Any]:
    """Write a bundle of the sample."""
    from mla_export.export import export as write

    write(checkpoint, out, **forms)
    return bundle(out)


def build(path: str, flavour: str, cards: Sequence[str]) -> dict[str, Any]:
    """Build engines, or find those that fit."""
    opened = Bundle.open(path)
    opened.ensure_hashed()
    library = FLAVOURS[flavour].load()
    done: dict[str, int] = {}
    with progress.task(f"building for {', '.join(cards)}") as advance:

        def on_progress(phase: str, step: int, steps: int) -> None:
            del steps
            advance(step - done.get(phase, 0))
            done[phase] = step

        built, _ = ensure(opened, library, cards, whole(opened), on_progress=on_progress)
    return {
        "version": built.version,
        "cards": list(built.cards),
        "gpu": built.gpu,
        "limits": asdict(built.limits),
        "seconds": built.seconds,
        "canary": built.canary,
        "engines": {engine.file: engine.size for engine in built.engines},
        "weights_outside": sum(one.nbytes for one in built.outside),
    }


def canary(path: str, backend: str) -> dict[str, Any]:
    """Load a bundle on a backend and run its canary."""
    with open_model(path, backend) as model:
        return asdict(check_canary(model))


def agreement(path: str, backend: str) -> dict[str, Any]:
    """Hold a bundle on a backend against itself on ONNX Runtime's CPU provider, at every one of 64 steps."""
    from mla_export.compare.agreement import compare
    from mla_export.compare.sides import CPU

    context = Bundle.open(path).model.max_context
    found = compare([path], backends=[CPU, backend], steps=min(STEPS, context // 2), beside_cpu=True)
    side = found.sides[1]
    if side.verdict == "absent":
        raise VerificationError(f"it could not be run: {side.reason}")
    return found.to_json()


def speed(path: str, backend: str, depths: Sequence[int]) -> dict[str, Any]:
    """Time prompts and steps at those of `depths` that fit."""
    with open_model(path, backend) as model:
        context = model.bundle.model.max_context
        least = Plan.fitting(context, None, None, None)
        room = context - max(least.prompt, least.steps + 2)
        fitting = [depth for depth in depths if depth <= room]
        with progress.task(f"measuring on {backend}", len(fitting)) as advance:
            speeds = measure(
                model, fitting, prompt_tokens=least.prompt, steps=least.steps, on_done=lambda _: advance(1)
            )
        return as_json(model.bundle, backend, speeds)


def label(path: str | Path) -> str:
    """Give what a bundle is called here: the name of its folder."""
    return Path(path).resolve().name


WORK: Mapping[str, Callable[..., dict[str, Any]]] = {
    "device": facts,
    "bundle": bundle,
    "export": export,
    "build": build,
    "canary": canary,
    "agreement": agreement,
    "speed": speed,
}
