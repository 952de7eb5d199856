"""A stand-in for TensorRT's compiling: engines are seeded bytes, and every build is counted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mla_runtime.bundle import Bundle
from mla_runtime.engines.flavour import RTX, TENSORRT, Flavour, Library
from mla_runtime.engines.record import Built, EngineFile, Limits, Outside

LIMITS = Limits(batch=2, context=64, chunk=7)
CARDS = ("sm86", "sm89")
BYTES = 3000


def library(version: str = "1.7.1", flavour: Flavour = RTX) -> Library:
    return Library(flavour, SimpleNamespace(__version__=version))


JETSON = library("10.3.0", TENSORRT)


def content(seed: int) -> bytes:
    return np.random.default_rng(seed).bytes(BYTES)


class Builds:
    """Counts what was compiled; every build gives other bytes."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, ...], Limits]] = []

    def __call__(
        self,
        bundle: Bundle,
        found: Library,
        cards: Sequence[str],
        limits: Limits,
        folder: Path,
        progress: Any,
    ) -> Built:
        self.asked.append((tuple(cards), limits))
        return build(bundle, found, cards, limits, folder, seed=len(self.asked))

    @property
    def count(self) -> int:
        return len(self.asked)


def build(
    bundle: Bundle, found: Library, cards: Sequence[str], limits: Limits, folder: Path, seed: int = 0
) -> Built:
    assert list(folder.iterdir()) == []
    engines = []
    for place, phase in enumerate(("step", "prompt")):
        data = content(2 * seed + place)
        (folder / f"{phase}.engine").write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        engines.append(EngineFile(f"{phase}.engine", len(data), sha256, {phase: 0}))
    return Built(
        flavour=found.flavour.name,
        version=found.version,
        cards=tuple(cards),
        bundle=bundle.raw["sha256"],
        limits=limits,
        engines=tuple(engines),
        outside=(Outside("head", "float32", (16, 61), "weights.data", 64),),
        seconds=1.5,
    )
