"""What a build gave: `engine.json`, the record that lies beside the engines it describes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mla_runtime.errors import BundleError, EngineError
from mla_runtime.fields import Field
from mla_runtime.manifest import PHASES, Phase, digest

FORMAT = 1
RECORD = "engine.json"
NOT_RUN, PASSED = "not run", "passed"  # of the bundle's canary on these engines


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest shapes that engines are built for: B, T (rows of a sequence's cache) and S of a prompt."""

    batch: int
    context: int
    chunk: int

    def cover(self, other: Limits) -> bool:
        """Whether engines of these limits serve sessions of the others."""
        return self.batch >= other.batch and self.context >= other.context and self.chunk >= other.chunk


@dataclass(frozen=True, slots=True)
class Outside:
    """A weight that engines take as an input, and where its bytes lie in the bundle.

    `name` is the engines' input and the bundle's initializer; step and prompt read the same memory.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return math.prod(self.shape) * int(np.dtype(self.dtype).itemsize)


@dataclass(frozen=True, slots=True)
class EngineFile:
    """A serialised engine: its size, its SHA-256, and which of its profiles serves which phase."""

    file: str
    size: int
    sha256: str
    profiles: Mapping[Phase, int]


@dataclass(frozen=True, slots=True)
class Built:
    """Engines of one bundle in a folder of their own.

    `bundle` is the SHA-256 of the bundle's manifest, `version` that of TensorRT, `cards` the compute
    capabilities compiled for, such as `sm86`. Each phase is served by exactly one of `engines`. `gpu` is
    the name of the only GPU they are for, None where every card of these capabilities takes them.
    `canary` is `passed` once the bundle's canary ran on these engines.
    """

    flavour: str
    version: str
    cards: tuple[str, ...]
    bundle: str
    limits: Limits
    engines: tuple[EngineFile, ...]
    outside: tuple[Outside, ...]
    seconds: float
    gpu: str | None = None
    canary: str = NOT_RUN

    def engine(self, phase: Phase) -> EngineFile:
        """Give the engine that serves a phase."""
        return next(engine for engine in self.engines if phase in engine.profiles)

    def json(self) -> dict[str, Any]:
        """Give the record as JSON has it, with a hash of its own."""
        raw = {"format": FORMAT, **asdict(self)}
        return {**raw, "sha256": digest(raw)}


def parse(raw: Mapping[str, Any], where: str | Path) -> Built:
    """Read a record; raises `EngineError` for anything that is not exactly one of this format."""
    if raw.get("format") != FORMAT:
        raise EngineError(
            f"{where}: a record of format {raw.get('format')!r}, and this version reads {FORMAT}; build the "
            "engines again"
        )
    if raw.get("sha256") != digest(raw):
        raise EngineError(f"{where}: the record is damaged; build the engines again")
    try:
        built = _built(Field(raw, str(where)))
    except BundleError as cause:
        msg = f"{where}: not a record of engines that this version wrote; build them again"
        raise EngineError(f"{msg} ({cause})") from cause
    if sorted(phase for engine in built.engines for phase in engine.profiles) != sorted(PHASES):
        raise EngineError(f"{where}: not one engine a phase; build the engines again")
    return built


def _built(field: Field) -> Built:
    names = {"flavour", "version", "cards", "bundle", "limits", "engines", "outside", "seconds"}
    top = field.object({"format", "sha256", "gpu", "canary", *names})
    limits = top["limits"].object({"batch", "context", "chunk"})
    return Built(
        flavour=top["flavour"].text(),
        version=top["version"].text(),
        cards=top["cards"].list(Field.text),
        bundle=top["bundle"].text(),
        limits=Limits(*(limits[name].integer(1, 2**31) for name in ("batch", "context", "chunk"))),
        engines=top["engines"].list(_engine),
        outside=top["outside"].list(_outside),
        seconds=top["seconds"].number(),
        gpu=top["gpu"].optional(Field.text),
        canary=top["canary"].one_of(NOT_RUN, PASSED),
    )


def _engine(field: Field) -> EngineFile:
    f = field.object({"file", "size", "sha256", "profiles"})
    profiles = {phase: value.integer(0, 1) for phase, value in f["profiles"].mapping().items()}
    # which phases there are is checked of all engines together
    return EngineFile(f["file"].text(), f["size"].integer(1), f["sha256"].text(), profiles)  # type: ignore[arg-type]


def _outside(field: Field) -> Outside:
    f = field.object({"name", "dtype", "shape", "file", "offset"})
    shape = f["shape"].list(lambda item: item.integer(1, 2**31))
    dtype = f["dtype"].one_of("float32", "float16", "int8")
    return Outside(f["name"].text(), dtype, shape, f["file"].text(), f["offset"].integer(0))
