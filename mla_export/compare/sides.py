"""What is compared: bundles of one source, each on every backend that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mla_export.checkpoint import differing
from mla_export.compare.result import Side, SideVerdict
from mla_runtime import backends
from mla_runtime.backends.base import Backend
from mla_runtime.bundle import Bundle
from mla_runtime.errors import BackendError, InputError

TORCH = "torch"  # the checkpoint itself, in float32
CPU = "ort:cpu"  # where graphs are opened, and where a bundle is the reference
# named already, so that a command line stays as it is
PLANNED = tuple(name for name in ("ort:cuda", "tensorrt-rtx", "tensorrt") if name not in backends.NAMES)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A bundle on a backend; None for the checkpoint in torch. Two jobs are never equal."""

    bundle: Bundle | None
    backend: str
    label: str = "checkpoint"

    @property
    def name(self) -> str:
        """What a side is called in tables."""
        return f"{self.label} on {self.backend}"

    @property
    def held(self) -> Bundle:
        """Its bundle, which a job of a backend has."""
        if self.bundle is None:
            raise ValueError(f"{self.name} has no bundle")
        return self.bundle

    def load(self) -> Backend:
        """Load the bundle; raises BackendError where the backend is not there, EngineError for no engines."""
        if self.bundle is None or self.backend in PLANNED:
            raise BackendError(f"this version has no backend {self.backend!r}; it has {known()}")
        return backends.load(self.backend, self.bundle, None)


def known() -> str:
    """Name the backends that there are."""
    return ", ".join((TORCH, *backends.NAMES))


def opened(paths: Sequence[str | Path]) -> list[Bundle]:
    """Open bundles of one source.

    Raises BundleError for what is no bundle, InputError for none, for one that is given twice, and for
    bundles that were not made from the same files, or for different contexts.
    """
    if not paths:
        raise InputError("no bundles to compare; give at least one")
    found = [Bundle.open(path) for path in paths]
    for bundle in found[1:]:
        if other := differing(found[0].manifest.source, bundle.manifest.source):
            raise InputError(
                f"{found[0].path} and {bundle.path} were made from different checkpoints ({other[0]} is "
                "not the same file); compare bundles of one"
            )
        _check_context(found[0], bundle)
    places = [bundle.path.resolve() for bundle in found]
    for bundle, place in zip(found, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{bundle.path} is given twice; give each bundle once")
    return found


def _check_context(first: Bundle, other: Bundle) -> None:
    """Raise InputError for contexts that differ: positions and LongRoPE's factors are fixed by them."""
    if first.model.max_context != other.model.max_context:
        raise InputError(
            f"{first.path} has a context of {first.model.max_context} and {other.path} of "
            f"{other.model.max_context}; export them with one --max-context"
        )


def jobs(bundles: Sequence[Bundle], names: Sequence[str]) -> list[Job]:
    """Give the checkpoint in torch, if asked for, then every bundle on every other backend.

    Raises InputError for a name that is no backend's.
    """
    for name in names:
        if name not in (TORCH, *backends.NAMES, *PLANNED):
            to_come = f", and {', '.join(PLANNED)} to come" if PLANNED else ""
            raise InputError(f"no backend {name!r}; known are {known()}{to_come}")
    chosen = list(dict.fromkeys(names))
    if not chosen:
        raise InputError(f"no backends to compare on; known are {known()}")
    torch = [Job(None, TORCH)] if TORCH in chosen else []
    labels = zip(bundles, _labels(bundles), strict=True)
    return torch + [Job(bundle, name, label) for bundle, label in labels for name in chosen if name != TORCH]


def _labels(bundles: Sequence[Bundle]) -> list[str]:
    """Give each bundle's folder name, or its path where two have one name."""
    names = [bundle.path.resolve().name for bundle in bundles]
    pairs = zip(bundles, names, strict=True)
    return [name if names.count(name) == 1 else str(bundle.path) for bundle, name in pairs]


def reference_bundle(bundles: Sequence[Bundle]) -> Bundle:
    """Give the first bundle that is in float32 throughout; raises InputError where there is none."""
    for bundle in bundles:
        formats = bundle.manifest.precision
        if {formats.compute, formats.weights, formats.cache, formats.rope} == {"float32"}:
            return bundle
    raise InputError(
        "none of these bundles is in fp32, so that there is nothing to hold them against; give the "
        "checkpoint (--checkpoint FOLDER), or a bundle in fp32 beside them"
    )


def reference_job(bundles: Sequence[Bundle], todo: Sequence[Job], *, first: bool = False) -> Job:
    """Give the job of the bundle that is the reference, among `todo` or beside it.

    It is the first bundle in fp32, or with `first` the first of all, whatever it is in. Raises InputError
    where there is no such bundle, or nothing else to hold against it.
    """
    bundle = bundles[0] if first else reference_bundle(bundles)
    among = [job for job in todo if job.bundle is bundle and job.backend == CPU]
    job = among[0] if among else Job(bundle, CPU, bundle.path.resolve().name)
    if all(other is job for other in todo):
        raise InputError(
            f"{job.name} is all there is, and it is the reference; give the checkpoint it was made from "
            "(--checkpoint FOLDER), another bundle of it, or another backend"
        )
    return job


def without_numbers(job: Job, verdict: SideVerdict, reason: str | None) -> Side:
    """Give a side that has nothing to show but why."""
    manifest = None if job.bundle is None else job.bundle.manifest
    return Side(
        name=job.name,
        bundle=None if job.bundle is None else str(job.bundle.path),
        backend=job.backend,
        target=None if manifest is None else manifest.target,
        absorb=None if manifest is None else manifest.absorb,
        precision="float32" if manifest is None else manifest.precision.words,
        verdict=verdict,
        reason=reason,
    )
