"""What a page is made of: the results of `compare`, `bench` and `inspect`, from this run or from files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Literal

from mla_export.compare.result import FORMAT, Agreement
from mla_export.page.unpack import unpack
from mla_runtime import Speed
from mla_runtime.errors import InputError
from mla_runtime.fields import read_json

RESULT_CAP = 256_000_000  # bytes: a comparison has every position of every side


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One bundle's speed on one backend: what `bench --json` prints.

    `origin` is the file that it was read from, where others have a bundle and a backend of the same names.
    """

    bundle: str
    backend: str
    absorb: str
    cache_bytes_per_token: int
    measurements: tuple[Speed, ...]
    origin: str = ""

    @property
    def label(self) -> str:
        """What the bundle is called in tables and charts: its folder's name."""
        return PurePath(self.bundle).name or self.bundle

    @property
    def name(self) -> str:
        """What it is called together with its backend."""
        return f"{self.label} on {self.backend}{f' ({self.origin})' if self.origin else ''}"


@dataclass(frozen=True, slots=True)
class Unmeasured:
    """A bundle that could not be measured on a backend, and why."""

    bundle: str
    backend: str
    reason: str


@dataclass(frozen=True, slots=True)
class Formats:
    """Cache bytes a token in each format that a chart shows."""

    float16: int
    int8: int


@dataclass(frozen=True, slots=True)
class Caches:
    """Cache bytes a token of each form of cache."""

    latent: Formats
    expanded: Formats


@dataclass(frozen=True, slots=True)
class Context:
    """Of a geometry, how many tokens fit."""

    max_context: int


@dataclass(frozen=True, slots=True)
class Exported:
    """Of a bundle, what it was written for, and the bytes of its files."""

    target: str
    absorb: str
    files: dict[str, int]


@dataclass(frozen=True, slots=True)
class Model:
    """What a token of a model keeps in each cache: of what `inspect --json` prints, that much."""

    path: str
    family: str
    geometry: Context
    cache_bytes_per_token: Caches
    bundle: Exported | None = None

    @property
    def costs(self) -> tuple[object, ...]:
        """What is equal between bundles of one model."""
        return self.family, self.geometry, self.cache_bytes_per_token


@dataclass(frozen=True, slots=True)
class Results:
    """Everything on a page. `comparison_missing` says why there is no comparison."""

    comparisons: tuple[Agreement, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()
    unmeasured: tuple[Unmeasured, ...] = ()
    models: tuple[Model, ...] = ()
    comparison_missing: str = "No comparison was given."

    @property
    def verdict(self) -> Literal["fail", "ambiguous", "pass", ""]:
        """The worst of all comparisons; empty where no side has one."""
        verdicts = {side.verdict for comparison in self.comparisons for side in comparison.sides}
        return (
            "fail"
            if "fail" in verdicts
            else "ambiguous"
            if "ambiguous" in verdicts
            else ("pass" if "pass" in verdicts else "")
        )

    @property
    def passed(self) -> bool:
        """Whether no comparison failed."""
        return self.verdict != "fail"


def read_results(paths: Iterable[str | Path]) -> Results:
    """Read saved results. Raises InputError for a file that is none, or of a newer format."""
    found = [(path, result(read_json(Path(path), InputError, RESULT_CAP), str(path))) for path in paths]
    speeds = [(Path(path).stem, one) for path, one in found if isinstance(one, Benchmark)]
    names = [one.name for _, one in speeds]
    return Results(
        comparisons=tuple(one for _, one in found if isinstance(one, Agreement)),
        benchmarks=tuple(
            one if names.count(one.name) == 1 else replace(one, origin=stem) for stem, one in speeds
        ),
        models=tuple(one for _, one in found if isinstance(one, Model)),
    )


def result(value: dict[str, Any], where: str) -> Agreement | Benchmark | Model:
    """Tell what a JSON document is, and take it."""
    if value.get("kind") == "compare":
        return _agreement(value, where)
    if "measurements" in value:
        return benchmark(value, where)
    if "geometry" in value and "cache_bytes_per_token" in value:
        return model(value, where)
    raise InputError(f"{where}: is no result of compare, bench or inspect; save one of them with --json")


def benchmark(value: dict[str, Any], where: str) -> Benchmark:
    """Take what `bench --json` printed; refuses times that give no rate."""
    found = unpack(Benchmark, value, where)
    for one in found.measurements:
        times = (one.prompt_seconds, one.step_seconds, one.step_worst_seconds)
        _positive(where, one.batch, one.prompt_tokens, *times)
    _positive(where, found.cache_bytes_per_token)
    return found


def model(value: dict[str, Any], where: str) -> Model:
    """Take what `inspect --json` printed."""
    found = unpack(Model, value, where)
    caches = found.cache_bytes_per_token
    _positive(where, found.geometry.max_context, *astuple(caches.latent), *astuple(caches.expanded))
    return found


def _agreement(value: dict[str, Any], where: str) -> Agreement:
    version = value.get("format")
    if version != FORMAT:
        raise InputError(
            f"{where}: a comparison of format {version!r}, and this version reads {FORMAT}; compare again "
            "with this version, or draw with that one"
        )
    return unpack(Agreement, value, where)


def _positive(where: str, *values: float) -> None:
    for value in values:
        if not 0 < value < math.inf:
            raise InputError(f"{where}: has {value} where a number above 0 belongs; measure again")
